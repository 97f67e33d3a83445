"""What a metric declares, by how it is computed: `Share`, `Number`, `Distance`, or `Read` from a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ...concepts import Concept
    from ..judge_set import JudgeSet
    from ..judges.base import Judge
    from ..prompts import Row

RETAINED = ("twin", "caption")  # prompts whose pictures are compared with the original's as a whole


@dataclass(frozen=True)
class Recorded:
    """What an evaluation of a concept recorded, to compute figures from."""

    rows: Mapping[str, Sequence[Row]]  # by kind of prompt, see `domains.base.Domain.evaluation_prompts`
    records: Mapping[str, Mapping[int, Any]]  # of "model", "original" and "again", its other seeds: by row number
    judges: JudgeSet
    concept: Concept

    @property
    def retained(self) -> list[Row]:
        """The rows that have nothing to do with the concept."""
        return [row for kind in RETAINED for row in self.rows[kind]]

    def features(self, side: str) -> Tensor:
        """Features of the retained rows' pictures: (N, d)."""
        from ..records import feature_rows

        return feature_rows(self.records[side][row.number] for row in self.retained)

    def answers(self, side: str, judge: Judge, kind: str) -> list[tuple[dict[str, Any], str]]:
        """(the judge's record, the prompt) of every row of a kind."""
        name, records = judge.facts["judge"], self.records[side]
        return [(records[row.number][name], row.prompt) for row in self.rows.get(kind, ())]


@dataclass(frozen=True)
class Metric:
    """A metric under the name that it has in JSON and in gates."""

    title: str  # heads its column
    meaning: str  # in a sentence
    _: KW_ONLY
    unit: str = "share"  # share | number | distance
    better: str = "higher"  # higher | lower | original: as the original's is right
    kinds: tuple[str, ...] = ("concept",)  # of evaluations that have it: concept, i2p, prompts, images
    gate: bool = True  # whether it can be held against a bound
    by_seed: bool = False  # it compares with the original's pictures, so that another seed's value stands beside it
    question: str | None = None  # of the page's verdict that it answers: gone | whole
    of_erased: bool = False  # it says how well the concept is gone: nothing where the original does not show it
    limits: tuple[float, float] = (
        -0.02,
        -0.05,
    )  # where it answers "whole": least change against the original, for "good" and "fair"
    in_words: str = ""  # heads its column on a small terminal, where three figures fit; "": left out there
    finding: str = ""  # what its value counts, in the words of that answer; else its title stands there

    def read(self, name: str, result: Any) -> float | None:
        """Its value in a result, the erased model's; None where it could not be recorded."""
        return result.figures.get(name)


@dataclass(frozen=True)
class Share(Metric):
    """A share of right answers, by every judge, with n and a 95 % interval; under `figures`.

    `answers(recorded, side, judge)`: of each picture of "model" or "original", or each word of its prompt, whether it is as
    it should be; None where the judge cannot know.
    """

    answers: Callable[[Recorded, str, Judge], Sequence[bool | None]]


@dataclass(frozen=True)
class Number(Metric):
    """A number `value(recorded, side)` of "model" and of "original"; under `figures`, or under `kept` with both sides."""

    value: Callable[[Recorded, str], float | None]
    _: KW_ONLY
    unit: str = "number"
    under_kept: bool = False

    def read(self, name: str, result: Any) -> float | None:
        return ((result.kept or {}).get(name) or {}).get("model") if self.under_kept else super().read(name, result)


@dataclass(frozen=True)
class Distance(Metric):
    """A distance `between(a, b)` of features, (n, d) and (m, d); under `kept`, with what another seed alone makes of it."""

    between: Callable[[Tensor, Tensor], float]
    _: KW_ONLY
    unit: str = "distance"
    better: str = "lower"

    def read(self, name: str, result: Any) -> float | None:
        return (result.kept or {}).get(name)


@dataclass(frozen=True)
class Read(Metric):
    """What a result holds anyway, found in it by `found`."""

    found: Callable[[Any], float | None]
    _: KW_ONLY
    unit: str = "number"
    better: str = "lower"

    def read(self, name: str, result: Any) -> float | None:
        return self.found(result)
