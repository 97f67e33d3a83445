"""How an erasure found out what it did: part of `result` in run.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Record


@dataclass(frozen=True, kw_only=True)
class Proof(Record):
    """What held-out latents show of an erased model; see `sd_scissorhands.proof`, which forms the words."""

    converged: bool  # gone, and the rest whole
    gone: bool
    whole: bool
    sentence: str  # for people
    remedy: str = ""  # where it has not converged
    left: dict[str, float] = field(default_factory=dict)  # kind of words -> share of the concept that is left
    moved: dict[str, float] = field(
        default_factory=dict
    )  # captions, open -> change of the prediction, of what words change
    pictures: int  # drawn under names of the concept
    original: int  # of these, those in which the original's own pictures show it
    shown: int  # and of these, those in which the erased model's do
    changed: float  # distance of retained pictures from the original's, over that under another seed
    explained: float  # share of the noise that the original finds in its own pictures
