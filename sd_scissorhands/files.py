"""Files that a user or a stranger wrote: regular ones alone, texts of a bounded size, every fault in one line.

What is no regular file (a FIFO, a socket, a device) would block until someone writes, or never end.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Any

from .errors import UserError, printable, reason
from .parsing import parse_json, parse_toml

MOST_TEXT = 2**27  # bytes of a text: the largest vocabularies of tokenizers have 30 MB


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading, in bytes.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def read_text(path: Path, flag: str = "") -> str:
    """Read a text in UTF-8, without its byte-order mark if it has one; lines end as the file has them.

    Args:
        flag: that names the file, for the error.

    Raises:
        UserError: it cannot be opened, is no regular file, too large, or no UTF-8.
    """
    try:
        return _read(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, too
        raise UserError(
            f"{flag} {printable(path)} cannot be read ({reason(error)}): name a text in UTF-8".lstrip()
        ) from None


def read_json(path: Path) -> Any:
    """Read a JSON file, where what damage means is the caller's to say.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        ValueError: it is too large, no UTF-8, or no JSON; see `parse_json`.
    """
    return parse_json(_read(path))


def read_object(path: Path, remedy: str = "get it again") -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: it cannot be opened, is no regular file, too large, another value, or no JSON; `remedy` ends the line.
    """
    try:
        if isinstance(values := read_json(path), dict):
            return values
        why = "it holds no JSON object"
    except (OSError, ValueError) as error:
        why = reason(error)
    raise UserError(f"{printable(path)} is damaged ({why}): {remedy}")


def read_toml(path: Path, flag: str = "") -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: see `read_text`; or it is no TOML.
    """
    try:
        return parse_toml(read_text(path, flag))
    except ValueError as error:
        raise UserError(f"{flag} {printable(path)} is not TOML: {reason(error)}: mend it".lstrip()) from None


def check_regular(folder: Path) -> None:
    """Refuse a model's folder with something in it, or in its subfolders, that libraries would hang on.

    Raises:
        UserError: naming it.
    """
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        try:
            mode = path.stat().st_mode
        except OSError:  # a broken link, say: it ends in an error, not in waiting
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{printable(path)} is no regular file: remove it")


def hash_file(path: Path, start: int = 0) -> str:
    """sha256 of a file's bytes from `start` on, in hex.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    with open_file(path) as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> str:
    with open_file(path) as file:
        found = file.read(MOST_TEXT + 1)
    if len(found) > MOST_TEXT:
        raise ValueError(f"it is over {MOST_TEXT >> 20} MiB large, no text of this kind")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
