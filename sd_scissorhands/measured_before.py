"""What was drawn and learned with originals before: a measurement of another model that was made from the same one takes it over.

A folder for every measurement lies under the cache directory, by a hash of all that the original's half of it depends on.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .concepts import prompts_dir
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
    "samples/*[0-9]-original*.png",  # not a model's with a part "of the original merged in"
)
TAKEN = (
    "the original was not measured again: an earlier measurement of it was at hand (SDSCISSOR_CACHE=off measures it)"
)
LISTING = "files.json"  # of a folder of the cache: the model's name and every file's hash
BEGUN = "begun.json"  # of a measurement's folder: what its half of the original was begun under, and whether it was taken over


def copy_original(source: Path, folder: Path) -> list[str]:
    """Copy what a measurement's folder has of the original into another that has nothing else of it; names of what was copied.

    Parts of two measurements do not mix: a fine-tuning that one has finished would go without its weights in the other.
    """
    names, own = _names(source), _names(folder)
    if not own <= names or not all(filecmp.cmp(source / name, folder / name, shallow=False) for name in own):
        return []
    for name in sorted(names - own):
        with atomic(folder / name) as new:
            shutil.copyfile(source / name, new)
    return sorted(names - own)


def declared_here(*things: Any) -> bool:
    """Whether this package declares all of some judges, attacks or domains: of other code nothing has a hash."""
    return all(getattr(thing, "__module__", "").partition(".")[0] == __package__ for thing in things)


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
    active = switched_on() and processes.main
    place = _place({**facts, "machine": machine_facts(device)}) if active else folder
    if active:
        _try(lambda: _begin(place, folder), remarks)
    processes.wait()
    if _begun(folder).get("taken"):
        remarks[TAKEN] = None
    yield
    if active:
        _try(lambda: _keep(place, folder, model), remarks)


def entries() -> list[CachedPictures]:
    """What is there, the last used first; what cannot be read counts no pictures."""
    found = []
    for place in _root().glob("*"):
        with suppress(FileNotFoundError):  # another process has just renamed or deleted it
            found += [_entry(place)] if place.is_dir() else []
    return sorted(found, key=lambda one: one.days)


def clear() -> tuple[int, int]:
    """Delete all of it; how many folders, and how many bytes.

    Raises:
        UserError: a folder cannot be deleted.
    """
    places = [place for place in _root().glob("*") if place.is_dir()]
    size = sum(map(_bytes, places))
    for place in places:
        try:
            place.unlink() if place.is_symlink() else shutil.rmtree(place)
        except OSError as error:
            raise UserError(f"cannot delete {place} ({reason(error)}): change its permissions") from None
    return len(places), size


def _begin(place: Path, folder: Path) -> None:
    """Note in a measurement's folder what the original's half is begun under, and copy what the cache has of it.

    Raises:
        UserError: what the cache has is damaged, or the disk refused.
    """
    if not _names(folder):
        write_json(folder / BEGUN, {"place": place.name, "taken": False})
    if not place.exists():
        return
    try:
        hashes = read_json(place / LISTING)["files"]
        sound = hashes.keys() == _names(place) and all(hash_file(place / name) == hashes[name] for name in hashes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        shutil.rmtree(place, ignore_errors=True)
        raise UserError(f"{place} does not hold what it did{': delete it' if place.exists() else ', and was deleted'}")
    if copy_original(place, folder):
        write_json(folder / BEGUN, {"place": place.name, "taken": True})
    with suppress(OSError):
        os.utime(place)


def _begun(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(read_json(folder / BEGUN))
    return {}


def _keep(place: Path, folder: Path, model: str) -> None:
    """Put what a measurement has of the original into the cache, unless it is there, or was begun under anything else.

    Raises:
        UserError: the disk refused.
    """
    if place.exists() or _begun(folder).get("place") != place.name:
        return
    try:
        with atomic(place) as new:
            new.mkdir(parents=True)
            hashes = {name: hash_file(new / name) for name in copy_original(folder, new)}
            ledgers = [new / name for name in hashes if name.endswith(".jsonl")]
            pictures = sum(ledger.read_bytes().count(b"\n") - 1 for ledger in ledgers)  # the first line is no picture's
            write_json(new / LISTING, {"model": model, "pictures": pictures, "files": hashes})
    except UserError:
        if not place.exists():  # else another process was first
            raise


def _names(folder: Path) -> set[str]:
    """Files of a folder that are of the original."""
    return {file.relative_to(folder).as_posix() for pattern in FILES for file in folder.glob(pattern)}


def _try(action: Callable[[], object], remarks: dict[str, None]) -> None:
    try:
        action()
    except (UserError, OSError) as error:
        remarks[f"the cache was not used: {reason(error)}"] = None


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
    """A hash of this package's code and prompts: a figure must be what these measure."""
    return hash_files([*sorted(Path(__file__).parent.rglob("*.py")), *sorted(prompts_dir().glob("*.t*"))])
