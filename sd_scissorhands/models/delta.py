"""A sparse delta: the weights that an erasure changed as one small file, and the model that it gives back bit for bit.

The UNet's tensors, laid end to end in the order of their names (that of `hash_tensors`), make one line of weights. A
delta is a safetensors file that says what stands at some places of this line:

    values  (n,) float32: the changed weights as they are now, in the order of their places
    gaps    (m,) int16, read as unsigned: how many weights are passed over before the next changed one; `LEAP` passes
            over `LEAP` weights and changes none

These are six bytes a weight, and two more for every 65,535 weights passed over. .5 % of Stable Diffusion 1's weights
take 25.8 MB wherever they lie. Values and not differences are kept, because a sum would round: the result has every
bit, the sign of a zero included. A base in half precision is loaded, and so changed and saved, in float32.

The header names the base and the result by hash, and `apply_delta` checks both: a delta is not applied to another
model, and a damaged one gives none. Hashes find mistakes and not malice: who can forge a delta can forge its hashes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk import write_tensors
from ..machine import resolve_device
from ..run import Progress, silent
from ..settings import UserError
from .load import LoadedPipeline, hash_tensors, open_pipeline, save_pipeline

FORMAT, VERSION = "sdscissor-delta", 1
LEAP = 0xFFFF  # the gap after which no weight is changed
STORED = {"gaps": "I16", "values": "F32"}
TOLD = {
    "base": str, "base_sha256": str, "result_sha256": str, "recipe": str, "concepts": list, "seed": int, "size": int,
    "weights": int,
}  # fmt: skip
REMEDY = "it is no delta or a damaged one: get it again"


@dataclass(frozen=True)
class Origin:
    """Where a delta comes from, as its header says."""

    base: str  # the model it was made from, as the user named it
    base_sha256: str  # of that model's UNet, see `hash_tensors`
    result_sha256: str  # of the UNet that it gives
    recipe: str
    concepts: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Delta:
    """A delta as read; `positions` ascend strictly and lie in [0, size)."""

    origin: Origin
    size: int  # weights in the UNet
    positions: Tensor  # (n,) int64, on the line of all weights
    values: Tensor  # (n,) float32, finite

    def __len__(self) -> int:
        return self.values.numel()


# ---------------------------------------------------------------- places


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


def starts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Where each tensor begins on the line of all weights, in the order of the names."""
    names = sorted(tensors)
    return dict(zip(names, accumulate((tensors[name].numel() for name in names), initial=0), strict=False))


def differing(base: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Flat indices (int64, ascending, on the CPU) of the weights whose bits differ, by name, where there are any."""
    found = {}
    for name, now in changed.items():
        moved = bits(base[name].to(now.device)) != bits(now)
        if moved.any():
            found[name] = moved.view(-1).nonzero().view(-1).cpu()
    return found


def bits(values: Tensor) -> Tensor:
    """float32 as int32 bit patterns, so that 0.0 and -0.0 differ."""
    return values.detach().contiguous().view(torch.int32)


def set_weights(tensors: Mapping[str, Tensor], positions: Tensor, values: Tensor) -> None:
    """Put values, (n,), at ascending positions, (n,), on the line of `tensors`, in place."""
    with torch.no_grad():
        for name, start, (first, last) in _stretches(tensors, positions):
            flat = tensors[name].view(-1)
            flat[(positions[first:last] - start).to(flat.device)] = values[first:last].to(flat.device)


def _stretches(tensors: Mapping[str, Tensor], positions: Tensor) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(name, start, the part of `positions` that lies in it) of every tensor that any lies in."""
    begin = starts(tensors)
    ends = torch.tensor([start + tensors[name].numel() for name, start in begin.items()])
    bounds = [0, *torch.searchsorted(positions, ends).tolist()]
    for (name, start), part in zip(begin.items(), pairwise(bounds), strict=True):
        if part[0] < part[1]:
            yield name, start, part


# ---------------------------------------------------------------- the file


def write_delta(
    path: Path,
    changed: Mapping[str, Tensor],
    *,
    base: Mapping[str, Tensor],
    origin: Origin,
    indices: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write what makes a base model into a changed one; weights whose bits are the same take no room.

    That nothing else differs is proven before anything is written: with the old values put back, the tensors must have
    the base's hash, and with the new ones, which they hold again afterwards, the result's.

    Args:
        changed: the UNet's state dict, every tensor float32 and contiguous.
        base: by name, the same tensors before; with `indices`, (n,) their values at these indices alone.
        indices: by name, flat indices, (n,) int64 ascending, of the weights that may differ; None: look at all.

    Returns:
        delta (the path), delta_weights and delta_bytes.

    Raises:
        ValueError: tensors that are not float32, weights outside `indices` that differ, or another result.
        UserError: a changed weight that is not finite, or a disk that refuses.
    """
    if other := [name for name, tensor in changed.items() if tensor.dtype != torch.float32]:
        raise ValueError(f"{other[0]} is {changed[other[0]].dtype}: a delta is made of float32 weights")
    if indices is None:
        indices = differing(base, changed)
        base = {name: _at(base[name], rows) for name, rows in indices.items()}
    positions, before, after = _moved(changed, base, indices)
    if not torch.isfinite(after).all():
        raise UserError(f"{path} is not written: a changed weight is NaN or infinite; lower --lr")
    _prove(changed, positions, before, after, origin)
    size = sum(tensor.numel() for tensor in changed.values())
    write_tensors(path, {"gaps": encode(positions), "values": after}, header(origin, size, after.numel()))
    return {"delta": str(path), "delta_weights": after.numel(), "delta_bytes": path.stat().st_size}


def _at(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[rows.to(tensor.device)].cpu()


def _moved(
    changed: Mapping[str, Tensor], base: Mapping[str, Tensor], indices: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n,) int64, old and new values (n,) float32 of the weights at `indices` whose bits differ."""
    begin, found = starts(changed), [(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0))]
    for name in sorted(indices):
        rows, old, new = indices[name].cpu(), base[name].detach().cpu(), _at(changed[name], indices[name])
        moved = bits(old) != bits(new)
        found.append((rows[moved] + begin[name], old[moved], new[moved]))
    positions, before, after = map(torch.cat, zip(*found, strict=True))
    return positions, before, after


def _prove(changed: Mapping[str, Tensor], positions: Tensor, before: Tensor, after: Tensor, origin: Origin) -> None:
    set_weights(changed, positions, before)
    try:
        whole = hash_tensors(changed.items()) == origin.base_sha256
    finally:
        set_weights(changed, positions, after)
    if not whole:
        raise ValueError("the model differs from its base elsewhere than at the indices given")
    if hash_tensors(changed.items()) != origin.result_sha256:
        raise ValueError("the model is not the result that the origin names")


def header(origin: Origin, size: int, weights: int) -> dict[str, str]:
    """All that a delta says of itself, as JSON under one name.

    safetensors writes several names in any order; with one, equal deltas are equal files.
    """
    told = {"version": VERSION, **dataclasses.asdict(origin), "size": size, "weights": weights}
    return {FORMAT: json.dumps(told)}


def read_delta(path: Path) -> Delta:
    """A delta, with everything in it checked; the tensors are read only when the header says what it should.

    Raises:
        UserError: a missing, truncated or damaged file, no delta, or one of another version.
    """
    try:
        with safe_open(path, "pt") as file:
            origin, size, weights = _read_header(path, file.metadata() or {})
            told = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: part.get_dtype() for name, part in told.items()}
            if kinds != STORED or told["values"].get_shape() != [weights]:
                raise UserError(f"{path} holds other tensors than its header says: {REMEDY}")
            gaps, values = file.get_tensor("gaps"), file.get_tensor("values")
    except (OSError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}): {REMEDY}") from None
    positions = decode(gaps.view(-1))
    if positions.numel() != weights or (weights and int(positions[-1]) >= size):
        raise UserError(f"{path} has indices that do not fit its values or its model: {REMEDY}")
    if not torch.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: {REMEDY}")
    return Delta(origin, size, positions, values)


def _read_header(path: Path, metadata: Mapping[str, str]) -> tuple[Origin, int, int]:
    """Origin, weights of the UNet and changed weights."""
    if FORMAT not in metadata:
        raise UserError(f"{path} is a safetensors file but no delta: name one that erase --train selection wrote")
    try:
        told = json.loads(metadata[FORMAT])
        version = told["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} has a header that makes no sense: {REMEDY}") from None
    if version != VERSION:
        raise UserError(f"{path} is a delta of version {version!r}, not {VERSION}: update sd_scissorhands")
    sound = all(type(told.get(name)) is kind for name, kind in TOLD.items())  # exactly: True is no number
    sound = sound and all(isinstance(name, str) for name in told["concepts"])
    if not sound or not 0 <= told["weights"] <= told["size"]:
        raise UserError(f"{path} has a header that makes no sense: {REMEDY}")
    own = {field.name: told[field.name] for field in dataclasses.fields(Origin)}
    return Origin(**own | {"concepts": tuple(own["concepts"])}), told["size"], told["weights"]


# ---------------------------------------------------------------- the model


def apply_delta(
    base: str,
    path: Path,
    *,
    output_dir: Path,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The model that a delta makes of its base, as a pipeline directory; the UNet has every bit of the erased one.

    Text encoder, VAE, tokenizer and scheduler are the base's own.

    Args:
        base: hub id, diffusers directory, single file, or "tiny", see `naming`.
        output_dir: a directory that is not there yet; appears whole or not at all.

    Returns:
        output_dir, base, delta, recipe, concepts, seed, weights (changed), size (of the UNet), base_sha256,
        weights_sha256, seconds.

    Raises:
        UserError: an output directory that exists, see `read_delta` and `open_pipeline`, or another base.
    """
    began = time.monotonic()
    check_new(output_dir)
    delta = read_delta(path)
    with progress("apply", 4) as tick:
        opened = _open(base, device)
        weights = opened.denoiser.state_dict()
        check_base(delta, path, opened)
        tick(1)
        set_weights(weights, delta.positions, delta.values)
        tick(1)
        if hash_tensors(weights.items()) != delta.origin.result_sha256:
            raise UserError(f"{path} does not give the weights that its header says: {REMEDY}")
        tick(1)
        check_new(output_dir)  # again, after what may have been minutes
        save_pipeline(opened, output_dir)
        tick(1)
    return {
        "output_dir": str(output_dir), "base": base, "delta": str(path), "recipe": delta.origin.recipe,
        "concepts": list(delta.origin.concepts), "seed": delta.origin.seed, "weights": len(delta), "size": delta.size,
        "base_sha256": opened.weights, "weights_sha256": delta.origin.result_sha256,
        "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip


def _open(base: str, device: str) -> LoadedPipeline:
    try:
        return open_pipeline(base, device=resolve_device(device))
    except UserError as error:
        raise UserError(str(error).replace("--model", "BASE", 1)) from None


def check_new(output_dir: Path) -> None:
    """Raises UserError if anything is at `output_dir`."""
    if os.path.lexists(output_dir):
        raise UserError(f"--output-dir {output_dir} exists already: choose another")


def check_base(delta: Delta, path: Path, opened: LoadedPipeline) -> None:
    """Raises UserError unless a delta was made from the model that was opened."""
    origin, size = delta.origin, sum(tensor.numel() for tensor in opened.denoiser.state_dict().values())
    if opened.weights == origin.base_sha256 and size == delta.size:
        return
    if opened.weights == origin.result_sha256:
        raise UserError(f"{opened.name} is what {path} gives, already: name {origin.base!r}, or use it as it is")
    raise UserError(
        f"{path} was made from another model than {opened.name}: from {origin.base!r}, sha256 "
        f"{origin.base_sha256[:12]!r}, and {opened.name} has {opened.weights[:12]}: name that model"
    )
