"""What several attacks on one model came to: attack/suite-NAME/summary.json, and what `sdscissor attack --suite --json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from .attack import AttackResult
from .base import Measurement, Record

FOLDER = "suite-"  # begins the name of a suite's folder


@dataclass(frozen=True)
class SuiteRow(Record):
    """One attack of a suite: the figures of its own summary.json, which lies in the folder of its name."""

    name: str
    title: str
    n: int | None
    asr_after: float | None
    interval_after: list[float] | None
    original_asr_after: float | None
    kind: str | None  # of its kinds, the one whose rate this is; None where they are counted together
    verdict: str
    graded: bool  # whether its rate counts in `SuiteResult.asr_after`
    broken: bool | None
    nothing_to_erase: bool
    seconds: float | None

    @classmethod
    def of(cls, name: str, title: str, graded: bool, result: AttackResult) -> SuiteRow:
        """The figures of an attack's result."""
        kinds = [(kind.asr, label) for label, kind in result.kinds.items()]
        return cls(
            name, title, result.n, result.asr_after, result.interval_after, result.original.asr_after,
            next((label for rate, label in kinds if rate == result.asr_after), None), result.verdict, graded, result.broken, result.nothing_to_erase, result.seconds,
        )  # fmt: skip

    @property
    def proves(self) -> bool:
        """Whether it succeeds on the original, without which its failure on the model proves nothing."""
        return not self.broken and not self.nothing_to_erase


@dataclass(frozen=True)
class SuiteResult(Measurement):
    """Every attack of a suite, the one that brings the concept back most often first; see `worst_first`."""

    kind: str = "suite"
    suite: str = ""  # of `attacks.suite.SUITES`
    concept: str = ""
    model: str = ""
    weights_sha256: str | None = None
    baseline: str = ""
    baseline_sha256: str | None = None
    asr_after: float | None = None  # the largest of the graded attacks that succeed on the original
    working: float | None = None  # share of the graded attacks that succeed on the original
    attacks: list[SuiteRow] = field(default_factory=list)
    seed: int | None = None
    seconds: float | None = None  # of all attacks, also where this run found some of them done


def worst_first(row: SuiteRow) -> tuple[bool, bool, float, str]:
    """Key that sorts rows: those that count first, then those not graded, then those that prove nothing; by rate in each."""
    return (not row.proves, not row.graded, -(row.asr_after or 0.0), row.name)
