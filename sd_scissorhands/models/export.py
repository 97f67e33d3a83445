"""An erased model in the format that the user's own program reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..disk import atomic
from ..errors import UserError
from ..files import read_object
from ..lineage import started_from
from ..naming import model_flag
from ..parsing import choose
from ..results.models import AddOnFit, Export
from ..run import Progress, silent
from ..settings import OUTPUT_FORMATS
from .addon import BACK, RANK, RESULT, WHOLE, check_unet, make_addon, result_dtype
from .component import Component
from .delta import Origin, write_delta
from .locate import find_pipeline, locate
from .modelspec import HASH, metadata
from .pipeline_copy import PT, SUM, copy_pipeline, without_origin, write_component
from .pipeline_directory import PipelineDirectory
from .prediction import MARKERS, Prediction
from .single_file_writer import (
    check_written,
    locate_components,
    open_base,
    tensors_to_write,
    under_own_names,
    with_last_text_block,
)
from .tensor_files import DTYPES, TensorFile, TensorToWrite, cast, check_no_pickle, write_tensor_file

SHORT = {"float16": "-fp16", "bfloat16": "-bf16", "float32": "-fp32", None: ""}
ENDINGS = {
    "single-file": ".safetensors",
    "unet-only": "-unet.safetensors",
    "diffusers": "-diffusers",
    "lycoris": "-lycoris.safetensors",
}


def export(
    path: Path,
    to: str,
    *,
    output: Path | None = None,
    dtype: str | None = None,
    base: Path | None = None,
    rank: int | None = None,
    progress: Progress = silent,
) -> Export:
    """Write a run's model, or any pipeline directory, in another format; it is read back before it takes its name.

    Args:
        path: a run directory or a diffusers directory.
        to: single-file (LDM names, for A1111 and ComfyUI), unet-only (the UNet under diffusers' names), diffusers, lycoris (an add-on, see `addon`), delta.
        output: file or directory that does not exist yet; None: see `default_output`.
        dtype: a key of `DTYPES`; None: as the model is saved, with `base` as that file has it.
        base: for a single file: a file whose UNet alone is replaced.
        rank: for an add-on: every layer's change is brought down to it; None: the whole change.

    Raises:
        UserError: anything that the user can put right; nothing is at `output` then.
    """
    began = time.monotonic()
    check_request(to, dtype=dtype, base=base, rank=rank)
    model = find_pipeline(path)
    check_exportable(model, "unet-only" if base else to)
    output = output or default_output(model, to, dtype, rank)
    check_output(output, to)
    if base:
        check_no_pickle(base)
    weights, precision = model.check_weights(), DTYPES.get(dtype or "")
    delta_weights = note = left_out = fit = None
    if to == "delta":
        tensors, delta_weights = 2, _delta(model, output, weights, progress)
    elif to == "lycoris":
        tensors, fit, note = *_addon(model, output, weights, precision, rank, progress), BACK
    elif to == "diffusers":
        tensors, left_out = _directory(model, output, weights, precision, progress)
    else:
        tensors, note = _file(model, to, output, weights, precision, base, progress)
    files = [output] if output.is_file() else [file for file in output.rglob("*") if file.is_file()]
    return Export(
        output=str(output), format=to, dtype=dtype, bytes=sum(file.stat().st_size for file in files), tensors=tensors,
        delta_weights=delta_weights, addon=fit, note=note, base_file=str(base) if base else None, weights_sha256=weights,
        seconds=round(time.monotonic() - began, 2), left_out=left_out,
    )  # fmt: skip


def check_request(
    to: str, *, dtype: str | None = None, base: Path | None = None, rank: int | None = None, flag: str = "--to"
) -> None:
    """Raises UserError for an unknown format (named by `flag`) or precision, and for options that the format does not take."""
    if to not in OUTPUT_FORMATS:
        raise UserError(f"{flag} {to!r} is unknown{choose(to, OUTPUT_FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown{choose(dtype, DTYPES)}")
    if base and to != "single-file":
        raise UserError(f"--base is for --to single-file: leave it out with {to}")
    if dtype and to == "delta":
        raise UserError("--dtype is not for --to delta, which holds float32: leave it out")
    if rank is not None and to != "lycoris":
        raise UserError(f"--rank is for --to lycoris: leave it out with {to}")
    if rank is not None and rank < 1:
        raise UserError(f"--rank {rank} must be at least 1: leave it out for the whole change")


def check_exportable(model: PipelineDirectory, to: str) -> None:
    """Raises UserError for a model that cannot be written in a format, by its configs and names alone; cheap."""
    if to == "single-file":
        locate_components(model)
    elif to == "lycoris":
        check_unet(model)


def default_output(model: PipelineDirectory, to: str, dtype: str | None = None, rank: int | None = None) -> Path:
    """In the run's directory, or under runs/ for a model that no run made: its name, the precision, and the format's ending."""
    run = model.directory.parent if model.manifest else None
    folder, name = (run, run.resolve().name) if run else (Path("runs"), model.directory.absolute().name)
    name += f"-rank{rank}" if rank else ""
    return folder / ("delta.safetensors" if to == "delta" else f"{name}{SHORT[dtype]}{ENDINGS[to]}")


def check_output(output: Path, to: str) -> None:
    """Raises UserError for a path that exists already, and for a file that no program would take for safetensors."""
    if os.path.lexists(output):
        raise UserError(f"--output {output} exists already: choose another")
    if to != "diffusers" and output.suffix.lower() != ".safetensors":
        raise UserError(f"--output {output} is no name for a {to}: end it with .safetensors")


# ---------------------------------------------------------------- formats


def _file(
    model: PipelineDirectory,
    to: str,
    output: Path,
    weights: str,
    dtype: torch.dtype | None,
    base_path: Path | None,
    progress: Progress,
) -> tuple[int, str | None]:
    """A single file, or the denoiser alone; returns how many tensors were written, and what another program misreads."""
    ldm = to == "single-file"
    located = locate_components(model, unet_only=base_path is not None) if ldm else [under_own_names(model.denoiser)]
    base = open_base(base_path, located[0], model.directory) if base_path else None
    tensors = {key: base.copied(key) for key in base.entries if key not in MARKERS} if base else {}
    for component in located:
        tensors |= tensors_to_write(component, dtype, base)
    note = None
    if ldm:
        predicted, tensors = Prediction.of_scheduler(model.config("scheduler")), with_last_text_block(tensors)
        tensors |= predicted.markers(tensors[next(iter(located[0].by_key()))].code)
        note = predicted.misread_by_comfyui(tensors)
    about = metadata(model, weights=weights, ldm=ldm, base=base.metadata if base else PT)
    with progress("export", len(tensors)) as tick, atomic(output) as new:
        write_tensor_file(new, tensors, about, hash_key=HASH, tick=tick)
        if ldm:
            check_written(new, model, located, base)
        else:
            _check_plain([new], model.denoiser)
        check_output(output, to)  # again, after what may have been minutes
    return len(tensors), note


def _check_plain(paths: Sequence[Path], component: Component) -> None:
    """Read back what was written under a component's own names.

    Raises:
        UserError: something does not come back.
    """
    written = {key: file for file in map(TensorFile.open, paths) for key in file.entries}
    for name, key in component.keys.items():
        found = written[key].tensor(key)
        if not torch.equal(found, cast(name, component.tensor(name), found.dtype)):
            raise UserError(f"{written[key].path} does not read back as it should ({key}): check the disk")


def _check_stored(path: Path, tensors: Mapping[str, TensorToWrite]) -> None:
    """Raises UserError unless every tensor of a file comes back byte by byte."""
    written = TensorFile.open(path)
    for key, one in tensors.items():
        if b"".join(written.raw(key)) != b"".join(map(bytes, one.load())):
            raise UserError(f"{path} does not read back as it should ({key}): check the disk")


def _directory(
    model: PipelineDirectory, output: Path, weights: str, dtype: torch.dtype | None, progress: Progress
) -> tuple[int, str | None]:
    """A diffusers directory, copied but for the denoiser, and for what is cast; returns how many tensors it has, and what it lacks."""
    components = model.components if dtype else {model.denoiser.name: model.denoiser}
    about = {model.denoiser.name: (metadata(model, weights=weights, ldm=False, base=PT), HASH)}
    count = sum(len(component.keys) for component in components.values())
    with progress("export", count) as tick, atomic(output) as folder:
        left_out = copy_pipeline(model, folder, without=tuple(components))
        for name, component in components.items():
            header, key = about.get(name, (PT, SUM))
            written = write_component(component, folder / name, dtype=dtype, metadata=header, hash_key=key, tick=tick)
            _check_plain(written, component)
            if dtype and name in model.family.texts:
                _write_dtype(folder / name / "config.json", dtype)
        without_origin(folder / model.denoiser.name / "config.json")
        check_output(output, "diffusers")
    return sum(len(component.keys) for component in model.components.values()), left_out


def _write_dtype(config: Path, dtype: torch.dtype) -> None:
    """Change the precision in a text encoder's config, by which transformers loads it."""
    values = read_object(config)
    values |= {name: str(dtype).removeprefix("torch.") for name in ("dtype", "torch_dtype") if name in values}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _delta(model: PipelineDirectory, output: Path, weights: str, progress: Progress) -> int:
    """Returns how many weights changed."""
    base = base_pipeline(model)
    assert model.manifest and model.manifest.erased
    source, erased = model.manifest.source, model.manifest.erased
    origin = Origin(
        str(source.model), str(source.weights_sha256), weights, erased.recipe, erased.concepts, erased.seed
    )  # fmt: skip
    with progress("export", 1) as tick:
        written = write_delta(output, model.denoiser.float_tensors(), base=base.denoiser.float_tensors(), origin=origin)
        tick(1)
    return written.delta_weights


def _addon(
    model: PipelineDirectory,
    output: Path,
    weights: str,
    dtype: torch.dtype | None,
    rank: int | None,
    progress: Progress,
) -> tuple[int, AddOnFit]:
    """Returns how many tensors it has, and how near it comes."""
    base = base_pipeline(model)
    assert model.manifest
    with progress("export", len(model.denoiser.keys)) as tick, atomic(output) as new:
        tensors, fit = make_addon(model, base.denoiser, rank, dtype, tick)
        about = metadata(model, weights=weights, ldm=False, base=PT, adapter="lora" if rank else "lycoris")
        write_tensor_file(
            new,
            tensors,
            about | {RANK: str(rank or WHOLE), RESULT: str(result_dtype(model.denoiser)).removeprefix("torch.")},
            hash_key=HASH,
        )
        _check_stored(new, tensors)
        check_output(output, "lycoris")  # again, after what may have been minutes
    return len(tensors), AddOnFit(
        base=str(started_from(model.manifest)),
        rank=rank,
        unet_tensors=fit.tensors,
        equal=fit.equal,
        energy_lost=fit.lost,
    )


def base_pipeline(model: PipelineDirectory) -> PipelineDirectory:
    """The model that a run started from; fetched from the hub where it is not here.

    Raises:
        UserError: no run made it, or its base cannot be fetched, or is not what it was.
    """
    if not (model.manifest and model.manifest.erased):
        raise UserError(f"{model.directory} was made by no run here, so its base is unknown: name a run directory")
    run, name = model.directory.parent, str(started_from(model.manifest))
    try:
        with model_flag():
            base = locate(name)
    except UserError as error:
        raise UserError(f"the base of {run} cannot be had: {error}") from None
    if base.denoiser.sha256() != model.manifest.source.weights_sha256:
        raise UserError(f"{name} is not the model any more that {run} was made from: put it back")
    return base
