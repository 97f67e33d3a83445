"""Files that are written whole or not at all: under a temporary name, and then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import open_file
from .settings import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (file or directory) and rename it to `path` when the block ends well.

    Raises:
        UserError: the disk refused (full, read-only); whatever stood at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        _replace(temporary, path)
    except (OSError, SafetensorError) as error:
        _remove(temporary)
        raise UserError(f"cannot write {path}: {reason(error)}; free some space or choose another directory") from error
    except BaseException:
        _remove(temporary)
        raise


def reason(error: Exception) -> str:
    """Why a file could not be read or written, in one line."""
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def _replace(new: Path, path: Path) -> None:
    if new.is_dir() and path.exists():
        old = path.with_name(f".{path.name}.old")
        _remove(old)
        path.rename(old)
        new.rename(path)
        _remove(old)
    else:
        os.replace(new, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically."""
    with atomic(path) as new:
        new.write_text(text)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors atomically, readable by the user's umask (save_file alone makes mode 0600)."""
    with atomic(path) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata)
        share(new)


def share(path: Path) -> None:
    """Give files the mode of the user's umask."""
    umask = os.umask(0)
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~umask)


def read_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        UserError: missing or damaged file.
    """
    try:
        open_file(path).close()  # safe_open would wait for what is no regular file
        with safe_open(path, "pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged ({reason(error)}): delete it and run again") from None
