"""Which layers two checkpoints differ in, and how much; two tensors at a time, whatever the size of the models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..run import Progress, silent
from ..settings import UserError
from .delta import FORMAT
from .keys import OPEN_CLIP, UNET, XL_OPEN_CLIP, Blocks, Place, Places, text_layouts, unet_places, vae_places
from .source import Source
from .tensor_files import Stored

GROUPS = ("block", "layer", "parameter")
HALVES = (torch.float16, torch.bfloat16)
CHUNK = 1 << 22  # weights
ORDER = (
    "conv_in", "input_blocks.0.", "time_embed", "label_emb", "add_embedding", "down_blocks", "input_blocks", "mid",
    "up_blocks", "output_blocks",
)  # fmt: skip
UNET_BLOCK = r"(?:(?:(?:down|up)_blocks\.\d+|mid_block)\.\w+\.\d+|(?:in|out)put_blocks\.\d+\.\d+|middle_block\.\d+|\w+)"
BLOCK = re.compile(rf"(?:unet\.|{re.escape(UNET)}){UNET_BLOCK}|\w+")


@dataclass(frozen=True)
class Ref:
    """One tensor of a file."""

    file: Stored
    place: Place

    def read(self) -> Tensor:
        """It, lazily."""
        return self.place.read(self.file.tensor(self.place.key))


@dataclass(frozen=True)
class Side:
    """One of two checkpoints: its tensors by name."""

    name: str
    ldm: bool  # whether the names are those of LDM files, or part.name of diffusers
    tensors: dict[str, Ref]


@dataclass
class Sums:
    """What a comparison adds up; of one tensor or of many."""

    size: int = 0
    changed: int = 0
    moved: float = 0.0  # sum of squares of the difference
    before: float = 0.0  # sum of squares of the first
    most: float = 0.0
    tensors: int = 0

    def add(self, other: Sums) -> None:
        """Take in another's."""
        self.size, self.changed, self.tensors = (
            self.size + other.size, self.changed + other.changed, self.tensors + other.tensors,
        )  # fmt: skip
        self.moved, self.before = self.moved + other.moved, self.before + other.before
        self.most = other.most if math.isnan(other.most) else max(self.most, other.most)

    def told(self) -> dict[str, Any]:
        """size, changed, share of the weights changed, relative_l2 and max_abs; None for what no number says."""
        relative = math.sqrt(self.moved / self.before) if self.before else math.inf if self.moved else 0.0
        return {
            "size": self.size, "changed": self.changed, "share": self.changed / self.size if self.size else 0.0,
            "relative_l2": _known(relative), "max_abs": _known(self.most),
        }  # fmt: skip


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def difference(a: str, b: str, *, by: str = "block", progress: Progress = silent) -> dict[str, Any]:
    """Compare two checkpoints, in whatever layout each is.

    Tensors of other precision are compared in the coarser one, so that an export in half precision differs from its
    source in nothing; float16 and bfloat16 in float32.

    Args:
        a, b: run directory, diffusers directory, single file, UNet file, hub id or "tiny".
        by: one of `GROUPS`.

    Returns:
        a, b, by, identical, tensors and weights (compared), changed, share, relative_l2 (||b - a|| / ||a||), max_abs,
        rounded (tensors compared in a coarser precision), only_a, only_b, other_shape (names), same (groups without a
        difference) and rows: name, size, changed, share, relative_l2, max_abs of every group with one, in the
        network's own order.

    Raises:
        UserError: no such checkpoint, a damaged one, or two that have nothing in common.
    """
    if by not in GROUPS:
        raise UserError(f"--by {by!r} is unknown: choose {', '.join(GROUPS)}")
    one, other = aligned(open_side(a), open_side(b))
    both = [name for name in one.tensors if name in other.tensors]
    if not both:
        raise UserError(f"{a} and {b} have no tensor in common: they are of different kinds")
    whole, groups, odd, rounded = Sums(), dict[str, Sums](), list[str](), 0
    with progress("diff", len(both)) as tick:
        for name in sorted(both, key=network_order):
            first, second = one.tensors[name].read(), other.tensors[name].read()
            tick(1)
            if first.shape != second.shape:
                odd.append(name)
                continue
            found = measure(first, second)
            rounded += first.dtype != second.dtype
            whole.add(found)
            groups.setdefault(group_of(name, by), Sums()).add(found)
    rows = [{"name": name, **sums.told()} for name, sums in groups.items() if sums.changed]
    only_a, only_b = ([name for name in x.tensors if name not in y.tensors] for x, y in ((one, other), (other, one)))
    return {
        "a": a, "b": b, "by": by, "identical": not (whole.changed or odd or only_a or only_b), "tensors": whole.tensors,
        "weights": whole.size, **{k: v for k, v in whole.told().items() if k != "size"}, "rounded": rounded,
        "only_a": only_a, "only_b": only_b, "other_shape": odd, "same": len(groups) - len(rows), "rows": rows,
    }  # fmt: skip


def measure(a: Tensor, b: Tensor) -> Sums:
    """How much two tensors of one shape differ, in float64 sums over parts of them; 0 and -0 are the same, NaN and NaN too."""
    found = Sums(a.numel(), tensors=1)
    for first, second in zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True):
        before, after = in_one_precision(first, second)
        equal = (before == after) | (before.isnan() & after.isnan())
        moved = (after.double() - before.double()).masked_fill(equal, 0)
        part = Sums(0, int((~equal).sum()), moved.square().sum().item(), before.double().square().sum().item())
        part.most = moved.abs().max().item() if moved.numel() else 0.0
        found.add(part)
    return found


def in_one_precision(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the coarser precision of the two, where that is one of theirs."""
    if a.dtype != b.dtype and a.is_floating_point() and b.is_floating_point():
        halves = {tensor.dtype for tensor in (a, b)} & set(HALVES)
        common = halves.pop() if len(halves) == 1 else torch.float32
        a, b = a.to(common), b.to(common)
    return (a.float(), b.float()) if a.is_floating_point() and a.dtype != torch.float64 else (a.double(), b.double())


# ---------------------------------------------------------------- what is compared


def open_side(name: str) -> Side:
    """One checkpoint.

    Raises:
        UserError: no such thing, or none that is known.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _of_file(name, Stored.open(path))
    parts = (Source.find(path) if path.is_dir() else Source.of(name)).parts
    return Side(name, False, {
        f"{part.name}.{own}": Ref(part.file, Place(key)) for part in parts.values() for own, key in part.keys.items()
    })  # fmt: skip


def _of_file(name: str, file: Stored) -> Side:
    keys = file.entries
    if FORMAT in file.metadata:
        raise UserError(f"{name} is a delta: make its model with sdscissor apply, then compare that")
    if any(key.startswith(UNET) for key in keys):
        return Side(name, True, {key: Ref(file, Place(key)) for key in keys})
    if "input_blocks.0.0.weight" in keys:
        return Side(name, True, {UNET + key: Ref(file, Place(key)) for key in keys})
    if any(key.startswith("down_blocks.") for key in keys):
        return Side(name, False, {f"unet.{key}": Ref(file, Place(key)) for key in keys})
    raise UserError(f"{name} is no Stable Diffusion checkpoint: name a whole model or a UNet")


def aligned(a: Side, b: Side) -> tuple[Side, Side]:
    """Both under the same names: diffusers' where either has them."""
    if a.ldm == b.ldm:
        return a, b
    return (renamed(a, b), b) if a.ldm else (a, renamed(b, a))


def renamed(ldm: Side, other: Side) -> Side:
    """An LDM file's tensors under the names of a pipeline's, as far as it has them; the rest as they are."""
    places, found = places_in(ldm, other.tensors), dict[str, Ref]()
    for name, place in places.items():
        if place.key in ldm.tensors:
            ref = ldm.tensors[place.key]
            found[name] = replace(ref, place=replace(place, key=ref.place.key))
    taken = {place.key for place in places.values()}
    return Side(ldm.name, False, found | {key: ref for key, ref in ldm.tensors.items() if key not in taken})


def places_in(ldm: Side, names: Iterable[str]) -> dict[str, Place]:
    """Where a pipeline's tensors stand in an LDM file, by part.name."""
    by_part: dict[str, list[str]] = {}
    for name in names:
        part, _, own = name.partition(".")
        by_part.setdefault(part, []).append(own)
    xl, open_clip = (any(key.startswith(prefix) for key in ldm.tensors) for prefix in (XL_OPEN_CLIP, OPEN_CLIP))
    layouts: dict[str, Places] = {
        "unet": lambda own: unet_places(own, Blocks.of_names(by_part["unet"])),
        "vae": vae_places,
        **text_layouts(xl=xl, open_clip=open_clip),
    }
    return {
        f"{part}.{own}": place
        for part in by_part.keys() & layouts
        for own, place in layouts[part](by_part[part]).items()
    }


# ---------------------------------------------------------------- names


def group_of(name: str, by: str) -> str:
    """What a tensor is counted under: its block (of the UNet; else the whole part), its layer, or itself."""
    if by == "parameter":
        return name
    if by == "layer":
        return name.rpartition(".")[0] or name
    found = BLOCK.match(name)
    return found.group() if found else name


def network_order(name: str) -> tuple[Any, ...]:
    """For sorting: part by part, from a UNet's input to its output, numbers as numbers."""
    inner = name.removeprefix(UNET).removeprefix("unet.")
    place = next((n for n, first in enumerate(ORDER) if inner.startswith(first)), len(ORDER))
    is_unet = inner != name
    return (not is_unet, place if is_unet else 0, *(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in inner.split(".")
    ))  # fmt: skip
