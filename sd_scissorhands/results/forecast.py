"""What an erasure would do and take: the object that `sdscissor erase --dry-run --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import Record


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """What `erase` would do. Bytes are the device's, or on a CPU the whole process's."""

    concepts: tuple[str, ...]
    anchors: tuple[str, ...]  # what would take the place of each
    explicit: bool  # whether pictures of a concept may be
    model: str
    weights_sha256: str
    ema: str  # see `models.keys`
    scope: str
    scope_size: int  # weights that might change
    tensors: int  # that these lie in
    trimmed: int  # weights that the edit would change
    memory_bytes: int  # the largest of `peak_bytes`
    peak_bytes: dict[str, int]  # by stage
    seconds: dict[str, float]  # by stage
    picture_seconds: float  # of one picture as it is judged, under guidance
    pass_seconds: float  # of one sample's forward pass
    profile: str  # of the model, see `recipes.PROFILES`
    evaluations: dict[str, int]  # of the network by stage, see `evaluations_of`
    learned: bool  # whether an erasure of its kind was timed on this machine
    settings: dict[str, Any]
