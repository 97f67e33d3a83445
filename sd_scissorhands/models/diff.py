"""Which layers two checkpoints differ in, and how much; two tensors at a time, whatever the size of the models."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..parsing import choose
from ..results.models import Difference, DifferenceRow
from ..run import Progress, silent
from .addon import change_in
from .keys import OPEN_CLIP, UNET, UNUSED_BLOCK, XL_OPEN_CLIP, KeyLocation, ldm_locations
from .locate import find_pipeline
from .prediction import MARKERS
from .tensor_files import TensorFile

GROUPS = ("block", "layer", "parameter")
HALVES = (torch.float16, torch.bfloat16)
WEIGHTS_AT_ONCE = 1 << 22  # weights
ORDER = (
    "conv_in", "input_blocks.0.", "time_embed", "label_emb", "add_embedding", "down_blocks", "input_blocks", "mid",
    "up_blocks", "output_blocks",
)  # fmt: skip
UNET_BLOCK = r"(?:(?:(?:down|up)_blocks\.\d+|mid_block)\.\w+\.\d+|(?:in|out)put_blocks\.\d+\.\d+|middle_block\.\d+|\w+)"
BLOCK = re.compile(rf"(?:unet\.|{re.escape(UNET)}){UNET_BLOCK}|\w+")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    file: TensorFile
    location: KeyLocation

    def read(self) -> Tensor:
        """The tensor, lazily and in diffusers' layout."""
        return self.location.read(self.file.tensor(self.location.key))


@dataclass(frozen=True)
class Checkpoint:
    """One of two checkpoints: its tensors by name."""

    ldm: bool  # whether the names are those of LDM files, or component.name of diffusers
    tensors: dict[str, StoredTensor]


@dataclass
class Sums:
    """The sums of a comparison; of one tensor or of many."""

    size: int = 0  # weights
    changed: int = 0
    moved: float = 0.0  # sum of squares of the difference
    before: float = 0.0  # sum of squares of the first
    most: float = 0.0  # largest absolute difference

    def add(self, other: Sums) -> None:
        """Add another's."""
        self.size, self.changed = self.size + other.size, self.changed + other.changed
        self.moved, self.before = self.moved + other.moved, self.before + other.before
        self.most = other.most if math.isnan(other.most) else max(self.most, other.most)

    def row(self, name: str) -> DifferenceRow:
        """The figures; None for what is not finite."""
        relative = math.sqrt(self.moved / self.before) if self.before else math.inf if self.moved else 0.0
        share = self.changed / self.size if self.size else 0.0
        finite = (value if math.isfinite(value) else None for value in (relative, self.most))
        return DifferenceRow(name, self.size, self.changed, share, *finite)


def difference(a: str, b: str, *, by: str = "block", progress: Progress = silent) -> Difference:
    """Compare two checkpoints, in whatever layout each is.

    Tensors of other precision are compared in the coarser one, so that an export in half precision differs from its
    source in nothing; float16 and bfloat16 in float32.

    Args:
        a, b: run directory, diffusers directory, single file, UNet file, hub id or "tiny".
        by: one of `GROUPS`.

    Raises:
        UserError: no such checkpoint, a damaged one, or two that have nothing in common.
    """
    if by not in GROUPS:
        raise UserError(f"--by {by!r} is unknown{choose(by, GROUPS)}")
    one, other = open_checkpoint(a), open_checkpoint(b)
    first = _renamed(one, other) if one.ldm and not other.ldm else one.tensors
    second = _renamed(other, one) if other.ldm and not one.ldm else other.tensors
    both = sorted((name for name in first if name in second), key=network_order)
    if not both:
        raise UserError(f"{a} and {b} have no tensor in common: they are of different kinds")
    whole, groups, other_shape, rounded = Sums(), dict[str, Sums](), list[str](), 0
    with progress("diff", len(both)) as tick:
        for name in both:
            before, after = first[name].read(), second[name].read()
            tick(1)
            if before.shape != after.shape:
                other_shape.append(name)
                continue
            found = measure(before, after)
            rounded += before.dtype != after.dtype
            whole.add(found)
            groups.setdefault(group_of(name, by), Sums()).add(found)
    rows = tuple(sums.row(name) for name, sums in groups.items() if sums.changed)
    only_a, only_b = tuple(n for n in first if n not in second), tuple(n for n in second if n not in first)
    total = whole.row("all")
    return Difference(
        a=a, b=b, by=by, identical=not (whole.changed or other_shape or only_a or only_b),
        tensors=len(both) - len(other_shape), weights=total.size, changed=total.changed, share=total.share,
        relative_l2=total.relative_l2, max_abs=total.max_abs, rounded=rounded, only_a=only_a, only_b=only_b,
        other_shape=tuple(other_shape), same=len(groups) - len(rows), rows=rows,
    )  # fmt: skip


def measure(a: Tensor, b: Tensor) -> Sums:
    """How much two tensors of one shape differ, in float64 sums over parts of them; 0 and -0 are the same, NaN and NaN too."""
    found = Sums(a.numel())
    for first, second in zip(a.reshape(-1).split(WEIGHTS_AT_ONCE), b.reshape(-1).split(WEIGHTS_AT_ONCE), strict=True):
        before, after = _in_one_precision(first, second)
        equal = (before == after) | (before.isnan() & after.isnan())
        moved = (after.double() - before.double()).masked_fill(equal, 0)
        part = Sums(0, int((~equal).sum()), moved.square().sum().item(), before.double().square().sum().item())
        part.most = moved.abs().max().item() if moved.numel() else 0.0
        found.add(part)
    return found


def _in_one_precision(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the coarser precision of the two, where that is one of theirs."""
    if a.dtype != b.dtype and a.is_floating_point() and b.is_floating_point():
        halves = {tensor.dtype for tensor in (a, b)} & set(HALVES)
        common = halves.pop() if len(halves) == 1 else torch.float32
        a, b = a.to(common), b.to(common)
    return (a.float(), b.float()) if a.is_floating_point() and a.dtype != torch.float64 else (a.double(), b.double())


# ---------------------------------------------------------------- checkpoints


def open_checkpoint(name: str) -> Checkpoint:
    """One checkpoint.

    Raises:
        UserError: no such thing, or none that is known.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        components = find_pipeline(name).components.values()
        keys = {f"{one.name}.{own}": (one.file(own), key) for one in components for own, key in one.keys.items()}
        return Checkpoint(False, {own: StoredTensor(file, KeyLocation(key)) for own, (file, key) in keys.items()})
    file = TensorFile.open(path)
    if change := change_in(file.metadata):
        raise UserError(f"{name} is {change}: make its model with sdscissor apply, then compare that")
    if any(key.startswith(UNET) for key in file.entries):
        ldm, prefix = True, ""
    elif "input_blocks.0.0.weight" in file.entries:
        ldm, prefix = True, UNET
    elif any(key.startswith("down_blocks.") for key in file.entries):
        ldm, prefix = False, "unet."
    else:
        raise UserError(f"{name} is no Stable Diffusion checkpoint: name a whole model or a UNet")
    return Checkpoint(
        ldm, {prefix + key: StoredTensor(file, KeyLocation(key)) for key in file.entries if key not in MARKERS}
    )


def _renamed(ldm: Checkpoint, pipeline: Checkpoint) -> dict[str, StoredTensor]:
    """An LDM file's tensors under the names of a pipeline's, as far as it has them; the rest as they are."""
    names: dict[str, list[str]] = {}
    for name in pipeline.tensors:
        component, _, own = name.partition(".")
        names.setdefault(component, []).append(own)
    xl, open_clip = (any(key.startswith(prefix) for key in ldm.tensors) for prefix in (XL_OPEN_CLIP, OPEN_CLIP))
    found, taken = dict[str, StoredTensor](), {key for key in ldm.tensors if key.startswith(UNUSED_BLOCK)}
    for component, locations in ldm_locations(names, xl=xl, open_clip=open_clip).items():
        for own, location in locations.items():
            taken.add(location.key)
            if one := ldm.tensors.get(location.key):
                found[f"{component}.{own}"] = replace(one, location=replace(location, key=one.location.key))
    return found | {key: one for key, one in ldm.tensors.items() if key not in taken}


# ---------------------------------------------------------------- names


def group_of(name: str, by: str) -> str:
    """The group that a tensor counts in: its block (of the UNet; else the whole part), its layer, or itself."""
    if by == "parameter":
        return name
    if by == "layer":
        return name.rpartition(".")[0] or name
    found = BLOCK.match(name)
    return found.group() if found else name


def network_order(name: str) -> tuple[Any, ...]:
    """For sorting: part by part, from a UNet's input to its output, numbers as numbers."""
    inner = name.removeprefix(UNET).removeprefix("unet.")
    at = next((n for n, first in enumerate(ORDER) if inner.startswith(first)), len(ORDER))
    is_unet = inner != name
    return (not is_unet, at if is_unet else 0, *(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in inner.split(".")
    ))  # fmt: skip
