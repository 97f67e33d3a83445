"""What export, apply, diff and verify return."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Record, SparseRecord


@dataclass(frozen=True, kw_only=True)
class AddOnFit(Record):
    """How near a base comes to the erased model with an add-on over it, in the precision of the latter."""

    base: str  # the model that it belongs over
    rank: int | None  # None: it holds the whole change
    unet_tensors: int
    equal: int  # of these, bit for bit
    energy_lost: float  # share of the change's sum of squares


@dataclass(frozen=True, kw_only=True)
class Export(SparseRecord):
    """A model that was written in another format."""

    output: str
    format: str  # of `settings.OUTPUT_FORMATS`
    dtype: str | None  # None: as saved
    bytes: int
    tensors: int
    delta_weights: int | None = None  # of a delta: changed weights
    addon: AddOnFit | None = None  # of an add-on
    base_file: str | None  # whose UNet alone was replaced
    weights_sha256: str  # of the denoiser before rounding
    seconds: float
    note: str | None = None  # what another program would take the file for, if it is not that
    hub: str | None = None  # address of the repository
    left_out: str | None = None  # what of the model was not carried over, in a sentence


@dataclass(frozen=True)
class WrittenDelta(Record):
    """A delta that was written."""

    delta: str  # path
    delta_weights: int  # changed
    delta_bytes: int


@dataclass(frozen=True)
class AppliedDelta(SparseRecord):
    """A model that was made of its base and a delta or an add-on."""

    output_dir: str
    base: str
    delta: str  # path of either
    recipe: str
    concepts: tuple[str, ...]
    seed: int
    weights: int  # changed
    size: int  # all of the denoiser's
    base_sha256: str
    weights_sha256: str
    seconds: float
    left_out: str | None = None  # what of the base was not carried over, in a sentence
    erased_sha256: str | None = None  # of the erased model, where an add-on does not give it bit for bit


@dataclass(frozen=True)
class DifferenceRow(Record):
    """How much a group of tensors differs between two checkpoints, a and b."""

    name: str
    size: int  # weights
    changed: int
    share: float  # of the weights
    relative_l2: float | None  # ||b - a|| / ||a||; None: not finite
    max_abs: float | None  # None: not finite


@dataclass(frozen=True)
class Difference(SparseRecord):
    """What two checkpoints, a and b, differ in."""

    a: str
    b: str
    by: str  # of `diff.GROUPS`
    identical: bool
    tensors: int  # compared
    weights: int  # compared
    changed: int
    share: float
    relative_l2: float | None
    max_abs: float | None
    rounded: int  # tensors that were compared in a coarser precision
    only_a: tuple[str, ...]  # tensors
    only_b: tuple[str, ...]
    other_shape: tuple[str, ...]
    same: int  # groups without a difference
    rows: tuple[DifferenceRow, ...]  # groups with one, in the network's own order
    plot: str | None = None  # path


@dataclass(frozen=True)
class Check(Record):
    """One thing that `verify` looked at."""

    what: str
    holds: bool | None  # None: could not be looked at
    found: str


@dataclass(frozen=True)
class Verification(Record):
    """A run directory held against its run.json."""

    run_dir: str
    holds: bool  # nothing that was looked at fails
    checks: tuple[Check, ...]
    never_checked: tuple[str, ...]  # what `verify` does not find out
