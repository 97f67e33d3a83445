"""Files that a user or a stranger wrote: regular ones alone, texts of a bounded size, every fault in one line.

What is no regular file (a FIFO, a socket, a device) would block until someone writes, or never end.
"""

from __future__ import annotations

import errno
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
        with open_file(path) as file:
            found = file.read(MOST_TEXT + 1)
        if len(found) > MOST_TEXT:
            raise ValueError(f"it is over {MOST_TEXT >> 20} MiB large, no text of this kind")
        return found.decode("utf-8-sig")
    except UnicodeDecodeError:
        reason = "it is no text in UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, too
        reason = fault(error)
    raise UserError(f"{flag} {printable(path)} cannot be read ({reason}): name a text in UTF-8".lstrip())


def read_object(path: Path, remedy: str = "get it again") -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: see `read_text`; or it is another value, or no JSON.
    """
    try:
        if isinstance(values := parse_json(read_text(path)), dict):
            return values
        reason = "it holds no JSON object"
    except ValueError as error:
        reason = fault(error)
    raise UserError(f"{printable(path)} is damaged ({reason}): {remedy}")


def read_toml(path: Path, flag: str = "") -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: see `read_text`; or it is no TOML.
    """
    try:
        return parse_toml(read_text(path, flag))
    except ValueError as error:
        raise UserError(f"{flag} {printable(path)} is not TOML: {fault(error)}".lstrip()) from None


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


def fault(error: Exception) -> str:
    """Why a file could not be read, in one printable line."""
    return printable(reason(error)[:200])
