"""What a comparison came to: rows.json, and the object that `sdscissor compare --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .base import Record, Reported

COSTS = ("trimmed", "seconds", "peak_bytes")  # of a row's numbers, those that say what it cost
Number = float | None


@dataclass(frozen=True)
class ComparisonRow(Record):
    """The figures of one model: of a recipe on one target under one seed, or of what it is compared with.

    In JSON the target is called concept (of a denoiser) or forget (of a classifier), and figures and costs lie beside it.
    """

    recipe: str  # or original, or retrain
    target: str
    seed: int
    figures: dict[str, Number] = field(default_factory=dict)
    costs: dict[str, Number] = field(default_factory=dict)  # see `COSTS`
    n: dict[str, int] = field(default_factory=dict)  # pictures behind a figure
    intervals: dict[str, list[float] | None] = field(default_factory=dict)  # 95 %
    baseline: bool = False
    run: str | None = None  # directory, relative to the comparison's
    group: str | None = None  # of classifiers: rows of different groups are never in one mean; None: a denoiser
    forgotten: str | None = None  # of classifiers
    original_asr: float | None = None  # of denoisers, as the next two: of the first attack
    broken: bool | None = None
    nothing_to_erase: bool | None = None  # of denoisers: the original does not show the concept
    collapsed: bool | None = None
    failed: str | None = None  # why there are no figures

    def value(self, name: str) -> Number:
        """A figure or a cost; None where it is not known."""
        return self.figures.get(name, self.costs.get(name))

    def to_json(self) -> dict[str, Any]:
        """Flat: figures and costs lie beside the rest."""
        if self.group is None:
            about: dict[str, Any] = {"concept": self.target, "seed": self.seed}
            attacked = {"original_asr": self.original_asr, "broken": self.broken, "collapsed": self.collapsed}
            attacked |= {"nothing_to_erase": self.nothing_to_erase}
        else:
            about, attacked = {"forget": self.target, "group": self.group, "seed": self.seed}, {}
            about |= {} if self.forgotten is None else {"forgotten": self.forgotten}
        return {
            "recipe": self.recipe, **about, **self.figures, **attacked, **self.costs, "n": self.n,
            "intervals": self.intervals, "baseline": self.baseline, "run": self.run,
            **({} if self.failed is None else {"failed": self.failed}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Any, *, strict: bool = True) -> Self:
        """The inverse of `to_json`: what is no field is a figure."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.__name__} is {type(values).__name__}, not an object")
        known = {"concept", "forget", *cls.__dataclass_fields__}
        figures = {name: value for name, value in values.items() if name not in known}
        costs = {name: figures.pop(name) for name in COSTS if name in figures}
        target = values.get("concept", values.get("forget"))
        fields = {name: value for name, value in values.items() if name in known}
        return super().from_json({**fields, "target": target, "figures": figures, "costs": costs}, strict=strict)


@dataclass(frozen=True)
class Spread(Record):
    """A figure over several runs: other runs may give `least` to `most`, other pictures what is in `interval`."""

    mean: float
    least: float
    most: float
    runs: int
    n: int | None = None  # pictures behind it
    interval: list[float] | None = None


@dataclass(frozen=True)
class RecipeLine(Record):
    """The rows of one recipe, and of one group of targets, as one line of the table."""

    group: str
    recipe: str
    baseline: bool = False
    runs: int = 0
    failed: int = 0  # of the runs
    collapsed: int = 0
    figures: dict[str, Spread | None] = field(default_factory=dict)  # costs, too


@dataclass(frozen=True)
class RecipeNote(Record):
    """What a recipe is, for the page."""

    summary: str = ""
    source: str = ""
    baseline: bool = False


@dataclass(frozen=True)
class ColumnNote(Record):
    """What a column is that an attack brought."""

    header: str
    meaning: str = ""
    unit: str = "share"  # share | number


@dataclass(frozen=True, kw_only=True)
class ComparisonResult(Reported):
    """Every recipe on every target under every seed."""

    kind: str  # diffusion | classifier
    model: str = ""
    targets: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    recipes: dict[str, RecipeNote] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)  # as asked; empty of classifiers
    command: list[str] = field(default_factory=list)
    seconds: float | None = None
    rows: list[ComparisonRow]  # the originals' first
    table: list[RecipeLine]
    columns: dict[str, ColumnNote] = field(default_factory=dict)  # figure -> what it is, where an attack declared it

    def to_json(self) -> dict[str, Any]:
        """Without `columns` where there are none; with the directory once it is known."""
        values = {name: value for name, value in super().to_json().items() if value or name != "columns"}
        return values | ({"output_dir": str(self.folder)} if self.folder else {})
