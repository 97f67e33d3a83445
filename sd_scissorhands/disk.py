"""Files that are written whole or not at all: under a temporary name, and then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError, printable, reason
from .files import open_file
from .parsing import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMULA = tuple("=+-@＝＋－＠")  # begins one, also at full width
LOCK = ".lock"  # in a folder that a command works in, see `locked`
T = TypeVar("T")


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
        with suppress(OSError):
            _remove(temporary)
        raise UserError(f"cannot write {path}: {reason(error)}; free some space or choose another directory") from error
    except BaseException:
        _remove(temporary)
        raise


def inside(folder: Path, name: str) -> Path:
    """The path of something in a folder.

    Raises:
        UserError: it lies outside: by .., as an absolute path, or through a link.
    """
    path = folder / name
    with suppress(OSError, ValueError, RuntimeError):  # a NUL, or links in a circle
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    raise UserError(f"{path} leads out of {folder}, where all files of a run must lie: choose another --output-dir")


def refuse_file_in_place(folder: Path) -> None:
    """Refuse an output directory where, or above where, a file lies.

    Raises:
        UserError: naming the file.
    """
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                which = "" if place == folder else f": {place}"
                raise UserError(f"--output-dir {folder}{which} is a file: choose another")
            return


@contextmanager
def locked(folder: Path, alone: bool = True) -> Iterator[None]:
    """Hold a folder against every other command until the block ends, or the process dies, however.

    The system's advisory lock on a file in the folder; where there is none (Windows, some network disks) nothing is held.

    Args:
        alone: False: another process of this command holds it.

    Raises:
        UserError: another command works in the folder, or it cannot be written to.
    """
    refuse_file_in_place(folder)
    if fcntl is None or not alone:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    handle = _lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is held, so that nobody else's is
        os.close(handle)
        with suppress(OSError):
            for place in made:  # as long as they are empty
                place.rmdir()


def _lock(folder: Path) -> int:
    """The open file that the lock is on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise UserError(
                    f"--output-dir {folder} is in use by another command: wait until it has ended, or choose another"
                ) from None
            except OSError:  # a disk that has no locks
                return handle
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), (folder / LOCK).stat()):
                    return handle
            os.close(handle)  # its former holder deleted it between our opening and our locking
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {reason(error)}; free some space or choose another --output-dir"
        ) from None


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
        new.write_text(text, encoding="utf-8", errors="backslashreplace")  # paths may hold other bytes


def spreadsheet_cell(value: Any) -> Any:
    """A value of a CSV: a text that a spreadsheet would run as a formula gets an apostrophe, and controls are escaped."""
    if not isinstance(value, str):
        return value
    text = "".join(letter if letter in "\r\n\t" else printable(letter) for letter in value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


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


def hash_files(files: Iterable[Path], below: Path | None = None) -> str:
    """sha256 over the names and the contents of files, in their order.

    Args:
        below: the folder within which their names count; None: their last parts alone.

    Raises:
        UserError: one cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError("no regular file")
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({reason(error)}): change its permissions or name another"
            ) from None
        digest.update(
            f"{path.relative_to(below).as_posix() if below else path.name}\0{content}\n".encode(errors="replace")
        )
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """sha256 of a text's UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def parse_facts(file: Path, metadata: Mapping[str, str], name: str, kind: type[T]) -> T:
    """What the metadata of a safetensors file hold as JSON under a name.

    Raises:
        UserError: they do not.
    """
    try:
        if isinstance(value := parse_json(metadata[name]), kind):
            return value
    except (KeyError, ValueError):
        pass
    raise UserError(f"{file} is damaged (its {name}): delete it and run again")
