"""An erased model in the format that the user's own program reads."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..disk import atomic
from ..lineage import started_from
from ..run import Progress, silent
from ..settings import OUTPUT_FORMATS, UserError
from .delta import Origin, write_delta
from .load import hash_tensors, locate
from .modelspec import HASH, OWN, metadata
from .single_file_writer import check_written, open_base, pieces_of, place_all, with_base
from .source import Part, Source
from .tensor_files import DTYPES, Piece, Stored, cast, check_no_pickle, write_stream

SHORT = {"float16": "-fp16", "bfloat16": "-bf16", "float32": "-fp32", None: ""}
ENDINGS = {
    "single-file": ".safetensors",
    "unet-only": "-unet.safetensors",
    "delta": "-delta.safetensors",
    "diffusers": "",
}
PT = {"format": "pt"}  # without which transformers reads no file
Tick = Callable[[int], None]


def export(
    path: Path,
    to: str,
    *,
    output: Path | None = None,
    dtype: str | None = None,
    base: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write a run's model, or any pipeline directory, in another format; it is read back before it takes its name.

    Args:
        path: a run directory or a diffusers directory.
        to: single-file (LDM names, for A1111 and ComfyUI), unet-only (the UNet under diffusers' names), diffusers, delta.
        output: file or directory that is not there yet; None: see `default_output`.
        dtype: a key of `DTYPES`; None: as the model is saved, with `base` as that file has it.
        base: for a single file: a file whose UNet alone is replaced.

    Returns:
        output, format, dtype, bytes, tensors, base_file, weights_sha256 (of the UNet that was exported, before rounding),
        seconds; for delta also delta_weights.

    Raises:
        UserError: anything that the user can put right; nothing is at `output` then.
    """
    began = time.monotonic()
    check_asked(to, dtype=dtype, base=base)
    source = Source.find(path)
    output = output or default_output(source, to, dtype)
    check_output(output, to)
    if base:
        check_no_pickle(base)
    writers: dict[str, Callable[..., dict[str, Any]]] = {
        "single-file": partial(_single_file, base_path=base), "unet-only": _unet_only, "diffusers": _diffusers,
        "delta": _delta,
    }  # fmt: skip
    weights = source.check_weights()
    facts = writers[to](source, output, weights, DTYPES.get(dtype or ""), progress)
    files = [output] if output.is_file() else [file for file in output.rglob("*") if file.is_file()]
    return {
        "output": str(output), "format": to, "dtype": dtype, "bytes": sum(file.stat().st_size for file in files), **facts,
        "base_file": str(base) if base else None, "weights_sha256": weights, "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip


def check_asked(to: str, *, dtype: str | None = None, base: Path | None = None, flag: str = "--to") -> None:
    """Refuse a format, or what does not go with it.

    Args:
        flag: that named the format.

    Raises:
        UserError: see there.
    """
    if to not in OUTPUT_FORMATS:
        raise UserError(f"{flag} {to!r} is unknown: choose {', '.join(OUTPUT_FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}")
    if base and to != "single-file":
        raise UserError(f"--base is for --to single-file: leave it out with {to}")
    if dtype and to == "delta":
        raise UserError("--dtype is not for --to delta, which holds float32: leave it out")


def check_exportable(directory: Path, to: str) -> None:
    """Whether a model can be written in a format, as far as its configs and names say; cheap.

    Raises:
        UserError: it cannot.
    """
    if to == "single-file":
        place_all(Source(directory, None))


def default_output(source: Source, to: str, dtype: str | None = None) -> Path:
    """In the run's directory, or under runs/ for a model that no run made: its name, the precision, and the format's ending."""
    home = source.home or Path("runs") / source.directory.name
    folder = home if source.home else home.parent
    if to == "delta":
        return folder / "delta.safetensors"
    return folder / f"{home.resolve().name}{SHORT[dtype]}{ENDINGS[to] or '-diffusers'}"


def check_output(output: Path, to: str) -> None:
    """Refuse what is there already, and a file that no program would take for safetensors.

    Raises:
        UserError: see there.
    """
    if os.path.lexists(output):
        raise UserError(f"--output {output} exists already: choose another")
    if to != "diffusers" and output.suffix != ".safetensors":
        raise UserError(f"--output {output} is no name for a {to}: end it with .safetensors")


# ---------------------------------------------------------------- formats


def _single_file(
    source: Source,
    output: Path,
    weights: str,
    dtype: torch.dtype | None,
    progress: Progress,
    base_path: Path | None = None,
) -> dict[str, Any]:
    placed = place_all(source, unet_only=base_path is not None)
    base = open_base(base_path, placed[0], source.directory) if base_path else None
    pieces = with_base(base, placed[0], dtype) if base else {}
    for one in placed if not base else ():
        pieces |= pieces_of(one, dtype)
    told = metadata(source, weights=weights, ldm=True, base=base.metadata if base else PT)

    def check(new: Path) -> None:
        check_written(new, source, placed, base)

    return _write(output, pieces, told, progress, check)


def _unet_only(
    source: Source, output: Path, weights: str, dtype: torch.dtype | None, progress: Progress
) -> dict[str, Any]:
    denoiser = source.denoiser
    pieces = plain_pieces(denoiser, dtype)
    told = metadata(source, weights=weights, ldm=False, base=PT)
    return _write(output, pieces, told, progress, lambda new: check_plain(new, denoiser))


def _write(
    output: Path, pieces: dict[str, Piece], told: dict[str, str], progress: Progress, check: Callable[[Path], None]
) -> dict[str, Any]:
    with progress("export", len(pieces)) as tick, atomic(output) as new:
        write_stream(new, pieces, told, hash_key=HASH, tick=tick)
        check(new)
        check_output(output, "single-file")  # again, after what may have been minutes
    return {"tensors": len(pieces)}


def plain_pieces(part: Part, dtype: torch.dtype | None) -> dict[str, Piece]:
    """A part under its own names, in another precision."""

    def one(name: str) -> Piece:
        if not part.tensor(name).is_floating_point():
            return part.file.piece(part.keys[name])
        kept = dtype or part.dtype(name)
        return Piece.of(part.shape(name), kept, lambda: part.cast(name, kept))

    return {part.keys[name]: one(name) for name in part.keys}


def check_plain(path: Path, part: Part) -> None:
    """Read back what was written under a part's own names.

    Raises:
        UserError: something does not come back.
    """
    written = Stored.open(path)
    for name, key in part.keys.items():
        found = written.tensor(key)
        if not torch.equal(found, cast(name, part.tensor(name), found.dtype)):
            raise UserError(f"{path} does not read back as it should ({key}): check the disk")


def _diffusers(
    source: Source, output: Path, weights: str, dtype: torch.dtype | None, progress: Progress
) -> dict[str, Any]:
    count = sum(len(part.keys) for part in source.parts.values())
    with progress("export", count) as tick, atomic(output) as folder:
        shutil.copytree(source.directory, folder, ignore=partial(_left_out, frozenset(source.parts)))
        for name, part in source.parts.items():
            told, key = PT, OWN + "hash_sha256"
            if part is source.denoiser:
                told, key = metadata(source, weights=weights, ldm=False, base=PT), HASH
            new = folder / part.file.path.relative_to(source.directory)
            write_stream(new, plain_pieces(part, dtype), told, hash_key=key, tick=tick)
            check_plain(new, part)
            if name in source.family.texts:
                _say_dtype(folder / name / "config.json", dtype)
        check_output(output, "diffusers")
    return {"tensors": count}


def _left_out(written: Collection[str], folder: str, names: list[str]) -> set[str]:
    """What is not copied: pickles, and weights in the folders whose weights are written anew, variants of them included."""
    pickles = {name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))}
    return pickles | {name for name in names if Path(folder).name in written and name.endswith(".safetensors")}


def _say_dtype(config: Path, dtype: torch.dtype | None) -> None:
    """transformers loads a text encoder in the precision that its config names."""
    if dtype is None:
        return
    told = json.loads(config.read_text())
    for name in ("dtype", "torch_dtype"):
        if name in told:
            told[name] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")


def _delta(source: Source, output: Path, weights: str, dtype: torch.dtype | None, progress: Progress) -> dict[str, Any]:
    if not source.manifest:
        raise UserError(f"{source.directory} was made by no run here, so its base is unknown: name a run directory")
    result, base = source.manifest["result"], base_of(source)
    denoiser = source.denoiser
    changed = {name: denoiser.tensor(name).float().clone() for name in denoiser.keys}
    told = source.manifest["source"]
    concepts = tuple(result["concepts"])
    origin = Origin(told["model"], told["weights_sha256"], weights, result["recipe"], concepts, result["seed"])
    with progress("export", 1) as tick:
        facts = write_delta(output, changed, base=base, origin=origin)
        tick(1)
    return {"tensors": 2, "delta_weights": facts["delta_weights"]}


def base_of(source: Source) -> dict[str, torch.Tensor]:
    """The UNet that a run started from, by name, float32; fetched from the hub where it is not here.

    Raises:
        UserError: it cannot be had, or is not what it was.
    """
    manifest = source.manifest or {}
    name, told = str(started_from(dict(manifest))), manifest["source"]["weights_sha256"]
    try:
        directory, variant = locate(name)
    except UserError as error:
        raise UserError(f"the base of {source.home} cannot be had: {str(error).replace('--model ', '', 1)}") from None
    denoiser = Source(directory, None, variant).denoiser
    tensors = {own: denoiser.tensor(own).float() for own in denoiser.keys}
    if hash_tensors(tensors.items()) != told:
        raise UserError(f"{name} is not the model any more that {source.home} was made from: put it back")
    return tensors
