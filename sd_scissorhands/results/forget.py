"""What a forgetting came to: `result` in run.json, and the object that `sdscissor forget --json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Reported

Figures = dict[str, float | None]  # by metric; None: nothing to count
Intervals = dict[str, tuple[float, float]]  # 95 %; of relearning the range over its seeds


@dataclass(frozen=True, kw_only=True)
class ForgetResult(Reported):
    """An image classifier that forgot some of its training pictures."""

    run_dir: str
    model_dir: str  # in the format that the model came in
    recipe: str
    seed: int
    forget: str  # what was forgotten, in words
    scope_size: int  # weights that were allowed to change
    trimmed: int  # weights that the edit changed
    conflict_rate: float | None  # share of repair steps whose gradient was projected; None: none was
    mean_correction: float | None  # of these, length of what the projection added over the gradient's
    steps: int  # of the repair
    seconds: float  # of the unlearning alone
    peak_bytes: int | None  # beyond what was in use before it; None: the system does not say
    weights_sha256: str
    figures: Figures
    n: dict[str, int]  # pictures, or relearnings, behind each figure
    intervals: Intervals
    notes: dict[str, str] = field(default_factory=dict)  # what must be known of a figure
    original: Figures  # of the model as it was
    retrained: Figures | None  # of one trained without what is forgotten; None: there is none
    intervals_beside: dict[str, Intervals] = field(default_factory=dict)  # of original and retrained
