"""Pictures before and after an erasure: pairs/pairs.json in the run, beside the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..files import read_json
from .base import Record

FOLDER, FILE = "pairs", "pairs.json"


@dataclass(frozen=True)
class Pair(Record):
    """A prompt's two pictures under one seed; files are named from the folder."""

    prompt: str
    seed: int
    original: str
    model: str


@dataclass(frozen=True)
class Pairs(Record):
    """What the original and an erased model draw for a few prompts."""

    weights_sha256: str  # of the erased model's denoiser
    blurred: bool  # whether the files are, since the concept is explicit
    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, run: Path, weights_sha256: str) -> Self | None:
        """The pairs of a run's model with these weights; None where there are none that can be read."""
        try:
            found = cls.from_json(read_json(run / FOLDER / FILE))
        except (OSError, ValueError):
            return None
        return found if found.weights_sha256 == weights_sha256 else None
