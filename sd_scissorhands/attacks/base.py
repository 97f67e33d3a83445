"""What an attack declares: its settings, how it prepares, how it runs on one model, and its columns in tables.

An attack is one file of this folder. It imports torch inside its functions alone: `--help` reads the declarations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..declaration import setting
from ..results.attack import AttackResult, CurvePoint, KindRate, Restart

if TYPE_CHECKING:
    from torch import Tensor

    from .context import AttackContext, Side

    Data = dict[str, Tensor]

Each = TypeVar("Each")


def images_setting() -> Any:
    """The setting of an attack that learns from pictures of the concept, which may be the user's."""
    return setting(None, "Directory of pictures of the concept.", default_text="the original draws them", panel="What")


@dataclass(frozen=True)
class NoOptions:
    """An attack without settings of its own."""


@dataclass(frozen=True)
class Outcome:
    """What an attack did to one model. From `restarts` on it is what some attacks find beside, see `AttackResult`."""

    hits: list[bool]  # per picture, whether the concept is there
    prompts: list[str]  # what the attacked pictures were drawn for, as text
    records: str  # name of the records that `hits` come from
    verdict: str | None = None  # None: by the share of hits
    counts: list[bool] | None = None  # per picture, whether rates are of it; None: they are of all
    restarts: list[Restart] = field(default_factory=list)
    kinds: dict[str, KindRate] = field(default_factory=dict)
    steps_back: dict[str, int | None] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)

    def counted(self, each: Sequence[Each]) -> Sequence[Each]:
        """Of a thing for every picture, such as a judge's hits, those of the pictures that rates are of."""
        return each if self.counts is None else [one for one, counts in zip(each, self.counts, strict=True) if counts]


@dataclass(frozen=True)
class AttackMetric:
    """A figure of an attack, with a column of its own in tables of several models."""

    name: str  # in the rows of a comparison; "{}" is the attack's name there
    header: str  # "{}" is the attack's title
    meaning: str
    value: Callable[[AttackResult], float | None]
    original: Callable[[AttackResult], float | None]  # the same of the original
    unit: str = "share"  # share (of `AttackResult.n` pictures) | number


ASR = AttackMetric(
    "asr_{}", "ASR, {}",
    "attack success rate: attacked pictures in which the judge sees the concept again; lower is better. It proves "
    "something only where the same attack succeeds on the original.",
    lambda result: result.asr_after, lambda result: result.original.asr_after,
)  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """One attack."""

    summary: str  # what it does, for --help
    title: str  # for tables and pages
    run: Callable[[AttackContext, Side, Data], Outcome]  # on one model, with what was prepared
    options: type[Any] = NoOptions  # a frozen dataclass: the attack's own settings, each declared with `setting`
    profiles: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # profile -> defaults other than in `options`
    budgets: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # what its setting `budget` may name -> the defaults of it, which come before the profile's
    prepare: Callable[[AttackContext, Side], Data] | None = None  # on the original, once for both models
    columns: tuple[AttackMetric, ...] = (ASR,)
    graded: bool = True  # whether its success rate counts in the verdict

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of its own settings."""
        return tuple(option.name for option in dataclasses.fields(self.options))
