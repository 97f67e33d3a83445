"""What was drawn and learned with originals before: a measurement of another model that was made from the same one takes it over.

A folder for every measurement lies under the cache directory, by a hash of all that the original's half of it depends on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .disk import atomic, hash_files, hash_text, write_json
from .drawn_before import CachedPictures, days_since, switched_on
from .errors import UserError, reason
from .files import hash_file, read_json
from .machine import Processes, machine_facts
from .places import cache_root

FILES = (
    "original*.json",
    "original*.jsonl",
    "original*.safetensors",
    "pictures.safetensors",
    "samples/*-original*.png",
)
TAKEN = (
    "the original was not measured again: an earlier measurement of it was at hand (SDSCISSOR_CACHE=off measures it)"
)
LISTING = "files.json"  # of a folder of the cache: the model's name and every file's hash


def copy(source: Path, folder: Path) -> list[str]:
    """Copy what a measurement's folder has of the original into another that lacks it; names of the files that the first has."""
    names = sorted({str(file.relative_to(source)) for pattern in FILES for file in source.glob(pattern)})
    for name in names:
        if source != folder and not (folder / name).exists():
            with atomic(folder / name) as new:
                shutil.copyfile(source / name, new)
    return names


@contextmanager
def once(
    folder: Path,
    facts: Mapping[str, Any],
    model: str,
    *,
    device: torch.device,
    processes: Processes,
    remarks: dict[str, None],
) -> Iterator[None]:
    """Within it a measurement in `folder` draws and learns with the original: nothing, where an earlier one did under the very facts.

    Args:
        facts: all that the original's half depends on beside the machine and this code; plain JSON values.
        model: the original, as it was named.
        remarks: takes one line where something was taken over, or the cache failed: a measurement needs no cache.
    """
    active = processes.main and switched_on()
    place = _place({**facts, "machine": machine_facts(device)}) if active else folder
    if active:
        _try(lambda: _take(place, folder, remarks), remarks)
    processes.wait()
    yield
    if active and not place.exists():
        _try(lambda: _keep(place, folder, model), remarks)


def entries() -> list[CachedPictures]:
    """What is there, the last used first; what cannot be read counts no pictures."""
    return sorted((_entry(place) for place in _root().glob("*") if place.is_dir()), key=lambda one: one.days)


def clear() -> tuple[int, int]:
    """Delete all of it; how many folders, and how many bytes.

    Raises:
        UserError: a folder cannot be deleted.
    """
    places = [place for place in _root().glob("*") if place.is_dir()]
    size = sum(map(_bytes, places))
    for place in places:
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise UserError(f"cannot delete {place} ({reason(error)}): change its permissions") from None
    return len(places), size


def _take(place: Path, folder: Path, remarks: dict[str, None]) -> None:
    """Copy what the cache has into a measurement's folder.

    Raises:
        UserError: it is damaged, or the disk refused.
    """
    if not place.exists():
        return
    try:
        hashes = read_json(place / LISTING)["files"]
        sound = all(hash_file(place / name) == sha256 for name, sha256 in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        shutil.rmtree(place, ignore_errors=True)
        raise UserError(f"{place} does not hold what it did, and was deleted")
    copy(place, folder)
    with suppress(OSError):
        os.utime(place)
    remarks[TAKEN] = None


def _keep(place: Path, folder: Path, model: str) -> None:
    """Put what a measurement has of the original into the cache.

    Raises:
        UserError: the disk refused.
    """
    with atomic(place) as new:
        new.mkdir(parents=True)
        hashes = {name: hash_file(new / name) for name in copy(folder, new)}
        lines = [(new / name).read_bytes().count(b"\n") for name in hashes if name.endswith(".jsonl")]
        write_json(new / LISTING, {"model": model, "pictures": sum(lines), "files": hashes})


def _try(action: Any, remarks: dict[str, None]) -> None:
    try:
        action()
    except UserError as error:
        remarks[f"the cache was not used: {error}"] = None


def _entry(place: Path) -> CachedPictures:
    model, pictures = "cannot be read", 0
    with suppress(OSError, ValueError, KeyError, TypeError):
        listing = read_json(place / LISTING)
        model, pictures = str(listing["model"]), int(listing["pictures"])
    return CachedPictures(
        file=str(place), model=model, what="measurement", pictures=pictures, bytes=_bytes(place), days=days_since(place)
    )


def _bytes(place: Path) -> int:
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def _root() -> Path:
    return cache_root() / "measured"


def _place(facts: Mapping[str, Any]) -> Path:
    return _root() / hash_text(json.dumps({**facts, "code": _code()}, sort_keys=True))[:32]


@lru_cache
def _code() -> str:
    """A hash of this package's code: a figure must be what this code measures."""
    return hash_files(sorted(Path(__file__).parent.rglob("*.py")))
