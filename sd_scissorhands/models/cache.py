"""Where pipelines that are made of files lie, under HF_HOME, and who may write there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import hash_file
from ..places import cache_root, short_name


def cache_directory(stem: str, sha256: str) -> Path:
    """Where a pipeline that is made of a file goes, by the file's name and a hash."""
    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in stem)
    return cache_root() / f"{short_name(name, 60)}-{sha256[:12]}"


def hash_model_file(path: Path) -> str:
    """sha256 of a model file, which is read once as long as it stays what it is."""
    try:
        found = path.stat()
        return _hash(path.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error.strerror}") from None


@lru_cache
def _hash(path: Path, size: int, changed: int) -> str:
    return hash_file(path)


def lock(folder: Path) -> AbstractContextManager[Any]:
    """Within it no other process makes the same directory."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock")).acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder.parent}: {error.strerror}; name another cache in HF_HOME") from None
