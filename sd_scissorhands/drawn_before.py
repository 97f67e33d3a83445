"""Latents that models drew before: a file for every set of pictures under the cache directory, by a hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .disk import hash_text, read_tensors, write_tensors
from .errors import UserError
from .places import cache_root
from .results.base import Record

SWITCH = "SDSCISSOR_CACHE"  # variable of the environment; off: nothing is read or written


@dataclass(frozen=True, kw_only=True)
class CachedPictures(Record):
    """A file or a folder of the cache."""

    file: str
    model: str  # as it was named
    what: str  # "latents" of an erasure's pictures, or the original's half of a "measurement"
    pictures: int
    bytes: int
    days: float  # since it was last used


def switched_on() -> bool:
    """Whether the cache is used.

    Raises:
        UserError: the variable holds neither on nor off.
    """
    value = os.environ.get(SWITCH, "on").lower()
    if value not in ("on", "off"):
        raise UserError(f"{SWITCH}={value} is neither on nor off: unset it, or set it to off")
    return value == "on"


def folder() -> Path:
    """Where the files lie."""
    return cache_root() / "drawn"


def read(facts: Mapping[str, Any], shape: Sequence[int]) -> Tensor | None:
    """The latents drawn under these facts, as they were written; None where there are none.

    Args:
        facts: all that they depend on, plain JSON values.
        shape: that they must have.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    file, known = _place(facts)
    if not file.exists():
        return None
    tensors, metadata = read_tensors(file)
    latents = tensors.get("latents", torch.empty(0))
    sound = latents.dtype == torch.float32 and tuple(latents.shape) == tuple(shape)
    if not sound or metadata.get("facts") != known or metadata.get("sha256") != _hash(latents):
        raise UserError(f"{file} does not hold what its name says: delete it and run again")
    with suppress(OSError):
        os.utime(file)
    return latents


def write(facts: Mapping[str, Any], latents: Tensor, model: str) -> None:
    """Keep latents (N, c, h, w), float32 on the CPU, for `read`.

    Raises:
        UserError: the disk refused.
    """
    file, known = _place(facts)
    write_tensors(file, {"latents": latents}, {"facts": known, "sha256": _hash(latents), "model": model})


def entries() -> list[CachedPictures]:
    """What is there, the last used first; what cannot be read counts no pictures."""
    found = [_entry(file) for file in folder().glob("*.safetensors")]
    return sorted(found, key=lambda one: one.days)


def clear() -> tuple[int, int]:
    """Delete all of it; how many files, and how many bytes.

    Raises:
        UserError: a file cannot be deleted.
    """
    files = [file for file in folder().glob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    for file in files:
        try:
            file.unlink()
        except OSError as error:
            raise UserError(f"cannot delete {file} ({error.strerror}): change its permissions") from None
    return len(files), size


def _entry(file: Path) -> CachedPictures:
    from safetensors import SafetensorError, safe_open

    model, pictures = "cannot be read", 0
    with suppress(SafetensorError, OSError), safe_open(file, "pt") as opened:
        model = (opened.metadata() or {}).get("model", model)
        pictures = opened.get_slice("latents").get_shape()[0]
    return CachedPictures(
        file=str(file), model=model, what="latents", pictures=pictures, bytes=file.stat().st_size, days=days_since(file)
    )


def days_since(path: Path) -> float:
    """Days since a file or a folder of the cache was last used."""
    return round(max(time.time() - path.stat().st_mtime, 0) / 86400, 2)


def _place(facts: Mapping[str, Any]) -> tuple[Path, str]:
    """A file, and the facts as it has them."""
    known = json.dumps(facts, sort_keys=True)
    return folder() / f"{hash_text(known)[:32]}.safetensors", known


def _hash(latents: Tensor) -> str:
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()
