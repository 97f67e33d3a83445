"""The model that a base becomes with a delta or an add-on, saved as a pipeline directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from ..errors import UserError
from ..machine import resolve_device
from ..naming import model_flag
from ..results.models import AppliedDelta
from ..run import Progress, silent
from .addon import ADD_ON, AddOn, change_in
from .delta import REMEDY, Delta, read_delta, set_weights
from .load import LoadedPipeline, open_pipeline, save_pipeline
from .tensor_files import TensorFile, hash_tensors


def apply_delta(
    base: str, path: Path, *, output_dir: Path, device: str = "cpu", progress: Progress = silent
) -> AppliedDelta:
    """The model that a delta or an add-on makes of its base, as a pipeline directory; a delta's denoiser has every bit of the erased one.

    Text encoder, VAE, tokenizer and scheduler are the base's own.

    Args:
        base: hub id, diffusers directory, single file, or "tiny", see `naming`.
        output_dir: a directory that does not exist yet; appears whole or not at all.

    Raises:
        UserError: an output directory that exists, see `read_delta`, `AddOn` and `open_pipeline`, or another base.
    """
    began = time.monotonic()
    _check_new(output_dir)
    change = AddOn.read(path) if is_addon(path) else read_delta(path)
    origin = change.origin
    with progress("apply", 4) as tick:
        tick(1)
        with model_flag("BASE"):
            loaded = open_pipeline(base, device=resolve_device(device))
        _check_base(change, path, loaded)
        tick(1)
        changed, result = _put(change, path, loaded)
        tick(1)
        _check_new(output_dir)  # again, after what may have been minutes
        left_out = save_pipeline(loaded, output_dir, None if _fits_files(loaded) else torch.float32)
        tick(1)
    return AppliedDelta(
        output_dir=str(output_dir), base=base, delta=str(path), recipe=origin.recipe, concepts=origin.concepts,
        seed=origin.seed, weights=changed, size=_size(loaded), base_sha256=loaded.weights_sha256, weights_sha256=result,
        erased_sha256=None if result == origin.result_sha256 else origin.result_sha256, left_out=left_out,
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip


def is_addon(path: Path) -> bool:
    """Whether a file is an add-on of ours, by its header; what cannot be read is none."""
    try:
        return change_in(TensorFile.open(path).metadata) == ADD_ON
    except UserError:
        return False


def _put(change: Delta | AddOn, path: Path, loaded: LoadedPipeline) -> tuple[int, str]:
    """Change the denoiser; how many weights changed, and its hash, which of a delta must be the one that it names."""
    weights = loaded.denoiser.state_dict()
    if isinstance(change, AddOn):
        return change.put(weights, loaded.files), hash_tensors(weights.items())
    set_weights(weights, change.positions, change.values)
    if (result := hash_tensors(weights.items())) != change.origin.result_sha256:
        raise UserError(f"{path} does not give the weights that its header says: {REMEDY}")
    return len(change), result


def _fits_files(loaded: LoadedPipeline) -> bool:
    """Whether the precision of the files holds every bit of the denoiser's weights."""
    files, weights = loaded.files.denoiser, loaded.denoiser.state_dict()
    return all(torch.equal(weights[name].to(files.dtype(name)).float(), weights[name].float()) for name in files.keys)


def _size(loaded: LoadedPipeline) -> int:
    return sum(tensor.numel() for tensor in loaded.denoiser.state_dict().values())


def _check_new(output_dir: Path) -> None:
    """Raises UserError if anything is at `output_dir`."""
    if os.path.lexists(output_dir):
        raise UserError(f"--output-dir {output_dir} exists already: choose another")


def _check_base(change: Delta | AddOn, path: Path, loaded: LoadedPipeline) -> None:
    """Raises UserError unless this was made from the model that was loaded."""
    origin = change.origin
    if loaded.weights_sha256 == origin.base_sha256 and (isinstance(change, AddOn) or _size(loaded) == change.size):
        return
    if loaded.weights_sha256 == origin.result_sha256:
        raise UserError(f"{loaded.name} is what {path} gives, already: name {origin.base!r}, or use it as it is")
    raise UserError(
        f"{path} was made from another model than {loaded.name}: from {origin.base!r}, sha256 "
        f"{origin.base_sha256[:12]!r}, and {loaded.name} has {loaded.weights_sha256[:12]}: name that model"
    )
