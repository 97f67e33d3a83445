"""What the demo came to: the object that `sdscissor demo --json` prints."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Record


@dataclass(frozen=True)
class DemoRow(Record):
    """One model: the original, the erased one, or that of another recipe."""

    name: str
    figures: dict[str, float | None]  # by metric
    trimmed: int
    seconds: float
    asr: float | None  # of the learned embedding


@dataclass(frozen=True)
class DemoRates(Record):
    """How often an attack brings the concept back."""

    asr_after: float | None
    original: float | None  # the same on the original
    verdict: str = ""  # see `AttackResult`


@dataclass(frozen=True)
class DemoResult(Record):
    """One concept taken out of the embedded model, beside controls and under attack."""

    concept: str
    model_dir: str
    report: str  # the page
    rows: tuple[DemoRow, ...]
    attacks: dict[str, DemoRates]  # on the erased model
