"""A sparse delta: the weights that an erasure changed as one small file, and the model that it gives back bit for bit.

The UNet's tensors, laid end to end in the order of their names (that of `hash_tensors`), make one line of weights. A
delta is a safetensors file with the values at some positions of this line:

    values  (n,) float32: the changed weights as they are now, in the order of their positions
    gaps    (m,) int16, read as unsigned: how many weights are passed over before the next changed one; `LEAP` passes
            over `LEAP` weights and changes none

These are six bytes a weight, and two more for every 65,535 weights passed over. .5 % of Stable Diffusion 1's weights
take 25.8 MB wherever they lie. It holds values and not differences, because a sum would round: the result has every
bit, the sign of a zero included. A base in half precision is loaded and changed in float32, and saved as its files are.

The header names the base and the result by hash, and `apply.apply_delta` checks both: a delta is not applied to another
model, and a damaged one gives none. Hashes find mistakes and not malice: who can forge a delta can forge its hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk import write_tensors
from ..errors import UserError, reason
from ..files import open_file
from ..naming import without_folder
from ..parsing import parse_json
from ..results.base import Record
from ..results.models import WrittenDelta
from .tensor_files import hash_tensors

FORMAT, VERSION = "sdscissor-delta", 1
LEAP = 0xFFFF  # the gap after which no weight is changed
TENSORS = {"gaps": "I16", "values": "F32"}
REMEDY = "it is no delta or a damaged one: get it again"


@dataclass(frozen=True)
class Origin(Record):
    """Where a delta comes from."""

    base: str  # the model it was made from, as the user named it; in a file see `without_folder`
    base_sha256: str  # of that model's denoiser, see `hash_tensors`
    result_sha256: str  # of the denoiser that it gives
    recipe: str
    concepts: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Delta:
    """A delta as read; `positions` ascend strictly and lie in [0, size)."""

    origin: Origin
    size: int  # weights in the denoiser
    positions: Tensor  # (n,) int64, on the line of all weights
    values: Tensor  # (n,) float32, finite

    def __len__(self) -> int:
        return self.values.numel()


# ---------------------------------------------------------------- positions


def encode(positions: Tensor) -> Tensor:
    """Gaps of ascending positions, (n,) int64 -> (m,) int16; m is n and the leaps needed.

    Raises:
        ValueError: positions that do not ascend strictly from 0 or more.
    """
    passed = positions.diff(prepend=positions.new_tensor([-1])) - 1  # (n,)
    if (passed < 0).any():
        raise ValueError("positions must ascend strictly from 0 or more")
    leaps = passed // LEAP
    gaps = torch.full((passed.numel() + int(leaps.sum()),), LEAP, dtype=torch.int32)  # (m,)
    gaps[(leaps + 1).cumsum(0) - 1] = (passed % LEAP).int()
    return gaps.to(torch.int16)  # the lower sixteen bits, which old releases of safetensors do not store as unsigned


def decode(gaps: Tensor) -> Tensor:
    """The inverse of `encode`, (m,) int16 -> (n,) int64; whatever the gaps, positions ascend strictly from 0."""
    passed = gaps.long() & LEAP
    changed = passed != LEAP
    return ((passed + changed).cumsum(0) - 1)[changed]


def offsets(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Where each tensor begins on the line of all weights, in the order of the names."""
    names = sorted(tensors)
    return dict(zip(names, accumulate((tensors[name].numel() for name in names), initial=0), strict=False))


def changed_indices(base: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Flat indices, (n,) int64, ascending, on the CPU, of the weights whose bits differ, by name, where there are any."""
    found = {}
    for name, now in changed.items():
        moved = _bits(base[name].to(now.device)) != _bits(now)
        if moved.any():
            found[name] = moved.reshape(-1).nonzero().view(-1).cpu()
    return found


def _bits(values: Tensor) -> Tensor:
    """float32 as int32 bit patterns, so that 0.0 and -0.0 differ."""
    return values.detach().contiguous().view(torch.int32)


def set_weights(tensors: Mapping[str, Tensor], positions: Tensor, values: Tensor) -> None:
    """Put values, (n,), at ascending positions, (n,), on the line of `tensors`, in place."""
    begin = offsets(tensors)
    ends = torch.tensor([start + tensors[name].numel() for name, start in begin.items()])
    bounds = pairwise([0, *torch.searchsorted(positions, ends).tolist()])
    with torch.no_grad():
        for (name, start), (first, last) in zip(begin.items(), bounds, strict=True):
            flat = tensors[name].view(-1)
            flat[(positions[first:last] - start).to(flat.device)] = values[first:last].to(flat.device)


# ---------------------------------------------------------------- the file


def write_delta(
    path: Path, changed: Mapping[str, Tensor], *, base: Mapping[str, Tensor], origin: Origin
) -> WrittenDelta:
    """Write what makes a base model into a changed one; weights whose bits are the same take no space.

    Args:
        changed: the denoiser's state dict, every tensor float32 and contiguous.
        base: the same tensors before.

    Raises:
        ValueError: tensors that are not float32, or not those that `origin` names by hash.
        UserError: a changed weight that is not finite, or a disk that refuses.
    """
    if other := [name for name, tensor in changed.items() if tensor.dtype != torch.float32]:
        raise ValueError(f"{other[0]} is {changed[other[0]].dtype}: a delta is made of float32 weights")
    if {name: one.shape for name, one in base.items()} != {name: one.shape for name, one in changed.items()}:
        raise ValueError("the model has other tensors than its base")
    indices, begin = changed_indices(base, changed), offsets(changed)
    names = [name for name in begin if name in indices]
    moved = [changed[name].detach().reshape(-1)[indices[name].to(changed[name].device)].cpu() for name in names]
    positions = torch.cat([torch.empty(0, dtype=torch.int64), *(indices[name] + begin[name] for name in names)])
    values = torch.cat([torch.empty(0), *moved])
    if not torch.isfinite(values).all():
        raise UserError(f"{path} is not written: a changed weight is NaN or infinite; lower --lr")
    if hash_tensors(base.items()) != origin.base_sha256:
        raise ValueError("the base is not the one that the origin names")
    if hash_tensors(changed.items()) != origin.result_sha256:
        raise ValueError("the model is not the result that the origin names")
    size = sum(tensor.numel() for tensor in changed.values())
    write_tensors(path, {"gaps": encode(positions), "values": values}, header(origin, size, values.numel()))
    return WrittenDelta(str(path), values.numel(), path.stat().st_size)


def header(origin: Origin, size: int, weights: int) -> dict[str, str]:
    """A delta's metadata, as JSON under one name.

    safetensors writes several names in any order; with one, equal deltas are equal files.
    """
    return {
        FORMAT: json.dumps(
            {
                "version": VERSION,
                **origin.to_json(),
                "base": without_folder(origin.base),
                "size": size,
                "weights": weights,
            }
        )
    }


def read_delta(path: Path) -> Delta:
    """A delta, with everything in it checked; the tensors are read only when the header is sound.

    Raises:
        UserError: a missing, truncated or damaged file, no delta, or one of another version.
    """
    try:
        open_file(path).close()  # safe_open would wait for what is no regular file
        with safe_open(path, "pt") as file:
            origin, size, weights = _read_header(path, file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: one.get_dtype() for name, one in slices.items()}
            if dtypes != TENSORS or slices["values"].get_shape() != [weights]:
                raise UserError(f"{path} holds other tensors than its header says: {REMEDY}")
            gaps, values = file.get_tensor("gaps"), file.get_tensor("values")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): {REMEDY}") from None
    positions = decode(gaps.view(-1))
    if positions.numel() != weights or (weights and int(positions[-1]) >= size):
        raise UserError(f"{path} has indices that do not fit its values or its model: {REMEDY}")
    if not torch.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: {REMEDY}")
    return Delta(origin, size, positions, values)


def _read_header(path: Path, metadata: Mapping[str, str]) -> tuple[Origin, int, int]:
    """Origin, weights of the denoiser and changed weights."""
    if FORMAT not in metadata:
        raise UserError(f"{path} is a safetensors file but no delta: name one that erase --train selection wrote")
    try:
        values = parse_json(metadata[FORMAT])
        if (version := values["version"]) != VERSION:
            raise UserError(f"{path} is a delta of version {version!r}, not {VERSION}: update sd_scissorhands")
        origin, size, weights = Origin.from_json(values), values["size"], values["weights"]
        if not (type(size) is type(weights) is int and 0 <= weights <= size):  # exactly: True is no number
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} has a header that makes no sense: {REMEDY}") from None
    return origin, size, weights
