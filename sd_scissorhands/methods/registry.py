"""The frame of every method: any scorer, then any selection, then any edit. Scorers and edits are files, found by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from .distributed import SINGLE_PROCESS, ProcessGroup
from .interface import Parameters, Task
from .selection import Selection

DATA = {  # a task's method -> the data that it shows
    "forget": "forget", "relearn": "forget", "respond": "forget", "gone": "forget", "retain": "retain",
    "retain_each": "retain", "kept": "retain", "replacement": "pairs", "explain": "unseen", "repair": "repair",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What scorers and edits can be told; each takes what concerns it."""

    draws: int = 10  # batches
    seed: int = 0
    granularity: str = "weight"  # weight | channel
    init: str = "layer"  # of reinitialise: layer | kaiming | trunc_normal
    path_share: float = 0.1  # of relevance: share of a layer's units that count per input, LRA-NPP's K
    damping: float = 0.1  # of newton: lambda
    newton_step: float | None = None  # of newton: m / (n - m); None: as the task's own numbers are
    rounds: int = 10  # of newton: steps at most
    tolerance: float = 0.015  # of newton: how much of what is kept a step may cost
    group: ProcessGroup = (
        SINGLE_PROCESS  # who share the draws of a sensitivity; every process does the rest by itself, all alike
    )
    tick: Callable[[], None] = lambda: None  # called after every draw


class Only:
    """A task that shows a stage the data that it declared, and refuses it any other: zero-shot is held, not promised."""

    def __init__(self, task: Task, needs: tuple[str, ...]):
        self._task, self._needs = task, needs

    def __getattr__(self, name: str):
        data = DATA.get(name)
        if data is not None and data not in self._needs:
            raise PermissionError(f"{name} shows {data} data, which was not declared: only {', '.join(self._needs)} is")
        return getattr(self._task, name)


def load(kind: str, name: str) -> ModuleType:
    """The file of a scorer (`kind` "scorers") or of an edit ("edits").

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return importlib.import_module(f".{kind}.{name}", __package__)
    except ModuleNotFoundError:
        raise ValueError(f"{name!r} is none of the {kind}") from None


def passes(scorer: str) -> int:
    """Losses that a scorer computes per draw."""
    return load("scorers", scorer).PASSES


def score(task: Task, parameters: Parameters, scorer: str, options: Options) -> dict[str, Tensor]:
    """Scores by name, float32 and shaped as the parameters.

    Raises:
        ValueError: unknown scorer, or one that finds nothing to go by.
        FloatingPointError: a score is not finite.
    """
    method = load("scorers", scorer)
    return method.score(Only(task, method.NEEDS), parameters, options)


def edit(task: Task, parameters: Parameters, selection: Selection, name: str, options: Options) -> None:
    """Change the selected weights in place; all others stay bit-identical.

    Raises:
        ValueError: unknown edit.
    """
    method = load("edits", name)
    if len(selection):
        method.edit(Only(task, method.NEEDS), parameters, selection, options)
