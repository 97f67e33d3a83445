"""What an erasure came to: `result` in run.json, and the object that `sdscissor erase --json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Reported, SparseRecord
from .proof import Proof


@dataclass(frozen=True, kw_only=True)
class EraseResult(Reported, SparseRecord):
    """A model without some concepts."""

    run_dir: str
    model_dir: str  # a pipeline's, within `run_dir`
    concepts: tuple[str, ...]
    anchors: tuple[str, ...]  # what took the place of each
    explicit: bool | None  # whether pictures of a concept may be; None: a former version did not say
    recipe: str
    seed: int
    scope_size: int  # weights that were allowed to change
    trimmed: int  # weights that the edit changed
    conflict_rate: float | None  # share of repair steps whose gradient was projected; None: none was
    mean_correction: float | None  # of these, length of what the projection added over the gradient's
    steps: int  # of the repair
    delta: str | None = None  # file of the changed weights, where few were trained
    delta_weights: int | None = None
    delta_bytes: int | None = None
    weights_sha256: str  # of the denoiser
    converged: bool | None = None  # whether the concept is gone and the rest whole, by its proof; None: none was made
    proof: Proof | None = None
    pair_correlation: float | None = None  # of the concept's latents with their pairs', mean
    licence: dict[str, str] = field(default_factory=dict)  # of the original, see `models.licence`
    ema: str | None = None  # see `models.keys`
    device: str = ""
    processes: int = 1
    seconds: float
    left_out: str | None = None  # what of the base was not carried over, in a sentence
    exported: str | None = None  # the model in another format
    export_note: str | None = None  # what another program would take that file for, if it is not that
    hub: str | None = None  # address of the repository that it was uploaded to
