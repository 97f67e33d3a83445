"""What an attack came to: attack/NAME/summary.json, and the object that `sdscissor attack --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import Measurement, Record, SparseRecord


@dataclass(frozen=True)
class Restart(SparseRecord):
    """One of several searches, each from its own start."""

    asr_after: float
    loss: float | None = None
    norm: float | None = None  # mean L2 norm of learned vectors


@dataclass(frozen=True)
class KindRate(Record):
    """The success of one kind of prompts."""

    n: int
    asr: float
    original_asr: float | None = None

    @classmethod
    def of(cls, hits: Sequence[bool], original_asr: float | None = None) -> KindRate:
        """The share of hits, rounded to 4 places, beside the original's."""
        return cls(len(hits), round(sum(hits) / len(hits), 4), original_asr)


@dataclass(frozen=True)
class CurvePoint(Record):
    """Shares of pictures that show the concept after some steps of fine-tuning, on its own pictures and on others."""

    step: int
    concept: float | None = None
    benign: float | None = None


@dataclass(frozen=True)
class OriginalRates(Record):
    """The same attack's success on the original."""

    asr_before: float | None = None
    asr_after: float | None = None
    interval_after: list[float] | None = None


@dataclass(frozen=True)
class SecondRates(Record):
    """What the second judge sees in the very same pictures."""

    judge: dict[str, Any] = field(default_factory=dict)
    asr_before: float | None = None
    asr_after: float | None = None
    original_asr_after: float | None = None


@dataclass(frozen=True)
class AttackSample(Record):
    """One prompt's pictures, on equal seeds, as paths relative to the attack's folder, and what the judge saw in each."""

    prompt: str = ""
    attacked_prompt: str = ""
    seed: int | None = None
    before: str = ""
    after: str = ""
    original: str = ""
    before_says: str = ""
    after_says: str = ""
    original_says: str = ""
    flagged: bool = False  # whether it may be explicit


@dataclass(frozen=True)
class AttackResult(Measurement):
    """An attack on a model and the same on its original.

    ASR, attack success rate, is the share of pictures in which the first judge sees the concept: before, for prompts that
    name it; after, under the attack. Intervals are Wilson's 95 %. Everything has a default, for files of former versions.
    """

    kind: str = "attack"
    attack: str = ""  # of `attacks.ATTACKS`
    concept: str = ""
    model: str = ""
    weights_sha256: str | None = None
    baseline: str = ""
    baseline_sha256: str | None = None
    judge: dict[str, Any] = field(default_factory=dict)
    second: SecondRates | None = None
    n: int | None = None  # pictures behind `asr_after`
    asr_before: float | None = None
    asr_after: float | None = None
    interval_before: list[float] | None = None
    interval_after: list[float] | None = None
    original: OriginalRates = OriginalRates()
    broken: bool | None = None  # whether it fails on the original too, and so proves nothing
    verdict: str = ""  # see `evaluation.gone`; an attack may have its own
    nothing_to_erase: bool = False  # the original does not show the concept, neither before the attack nor after it
    n_before: int | None = None  # pictures behind `asr_before`
    IRA: float | None = None
    CRA: float | None = None
    original_IRA: float | None = None
    original_CRA: float | None = None
    restarts: list[Restart] = field(default_factory=list)
    kinds: dict[str, KindRate] = field(default_factory=dict)
    steps_back: dict[str, int | None] = field(default_factory=dict)  # of concept and benign; None: not within `most`
    curve: list[CurvePoint] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    seconds: float | None = None
    samples: list[AttackSample] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)  # more numbers that an attack has of its own

    def to_json(self) -> dict[str, Any]:
        """Without `figures` where there are none."""
        return {name: value for name, value in super().to_json().items() if value or name != "figures"}
