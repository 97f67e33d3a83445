"""The frame of every method: any scorer, then any selection, then any edit.

A scorer and an edit are a file each, which declares the data that it needs and the settings of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..declaration import check_declared, declared_of
from .distributed import SINGLE_PROCESS, ProcessGroup
from .edits import EDITS
from .interface import Parameters, Task
from .scorers import SCORERS
from .selection import Selection

Scores = dict[str, Tensor]  # by the parameters' names, float32 and shaped as they are
DATA = {  # a task's method -> the data that it shows
    "forget": "forget", "relearn": "forget", "respond": "forget", "forgotten": "forget", "retain": "retain",
    "retain_each": "retain", "retained": "retain", "replacement": "pairs", "explain": "unseen", "repair": "repair",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What every scorer and edit is given. One with settings of its own adds them in a subclass, see `setting`."""

    draws: int = 10  # batches
    seed: int = 0
    granularity: str = "weight"  # of the selection: weight | channel
    group: ProcessGroup = SINGLE_PROCESS  # shares the draws of a sensitivity; every process does the rest, all alike
    tick: Callable[[], None] = lambda: None  # called after every draw

    def __post_init__(self) -> None:
        """Refuse a value that its declaration does not allow.

        Raises:
            UserError: naming the setting, the value and what is allowed.
        """
        check_declared(self)


@dataclass(frozen=True)
class Scorer:
    """How much each weight matters to what is to be forgotten, and what it takes to know.

    A scorer of units (rows of a weight, with their number of the bias) gives every weight of a row the row's score.
    """

    score: Callable[[Task, Parameters, Any], Scores]  # the last is of the type `options`
    needs: tuple[str, ...]  # of the data in `DATA`; it is refused any other
    passes: int  # losses that it computes per draw
    options: type[Options] = Options
    families: tuple[str, ...] | None = (
        None  # denoisers whose layers it has rules for (`unet`, `transformer`); None: any
    )

    @property
    def zero_shot(self) -> bool:
        """Whether it sees nothing that the model was trained on, only what the model drew itself or never saw."""
        return self.needs == ("unseen",)


@dataclass(frozen=True)
class Edit:
    """What is done to the selected weights, in place; all others stay bit-identical."""

    edit: Callable[[Task, Parameters, Selection, Any], object]  # the last is of the type `options`
    needs: tuple[str, ...] = ()  # of the data in `DATA`; it is refused any other
    options: type[Options] = Options


class DeclaredDataOnly:
    """A task that refuses a scorer or an edit any data that it did not declare: zero-shot is enforced, not promised."""

    def __init__(self, task: Task, needs: tuple[str, ...]):
        self._task, self._needs = task, needs

    def __getattr__(self, name: str):
        data = DATA.get(name)
        if data is not None and data not in self._needs:
            raise PermissionError(f"{name} shows {data} data, which was not declared: only {', '.join(self._needs)} is")
        return getattr(self._task, name)


def score(task: Task, parameters: Parameters, name: str, options: Options) -> Scores:
    """Scores by a scorer's name.

    Args:
        options: of the type that the scorer declares, see `options_for`.

    Raises:
        UsageError: unknown scorer.
        ValueError: it finds nothing to go by.
        FloatingPointError: a score is not finite.
    """
    scorer = SCORERS[name]
    return scorer.score(DeclaredDataOnly(task, scorer.needs), parameters, options)


def edit(task: Task, parameters: Parameters, selection: Selection, name: str, options: Options) -> None:
    """Change the selected weights in place by an edit's name; nothing selected is the identity.

    Raises:
        UsageError: unknown edit.
    """
    chosen = EDITS[name]
    if len(selection):
        chosen.edit(DeclaredDataOnly(task, chosen.needs), parameters, selection, options)


# ---------------------------------------------------------------- settings of their own


def own_settings(options: type[Options]) -> dict[str, dataclasses.Field]:
    """The settings that a scorer or an edit declares beside those that all have, by name."""
    return {field.name: field for field in dataclasses.fields(options) if declared_of(field)}


def options_for(method: Scorer | Edit, shared: Options, values: Mapping[str, Any]) -> Options:
    """A scorer's or an edit's options: what all share, and of `values` what it declares; the rest are another's."""
    own = {name: values[name] for name in own_settings(method.options) if name in values}
    return method.options(**vars(shared), **own)


def declared_settings(*methods: Scorer | Edit) -> dict[str, dataclasses.Field]:
    """The own settings of some scorers and edits, by name; of all of them where none is named."""
    chosen = methods or tuple(method for registry in (SCORERS, EDITS) for _, method in registry)
    return {name: field for method in chosen for name, field in own_settings(method.options).items()}
