"""What a rehearsal found: the object that `sdscissor erase --rehearse --json` prints."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Record
from .forecast import Forecast


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Record):
    """Erasure, evaluation and attack on a few samples; nothing of it is left."""

    rehearsed: dict[str, float]  # command -> seconds that it took
    judges: tuple[str, ...]
    output_dir: str  # of the run itself, which can be written there
    seconds: dict[str, float]  # command -> seconds to expect of the run itself
    forecast: Forecast  # of the erasure
