"""JSON and TOML from anybody's file: a value, or a ValueError in a few words, never another error."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 28  # of a file that is read at once
DEEPEST = 100  # lists and objects within each other; Python's own recursion ends somewhat below 1,000


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8, whatever the locale.

    Raises:
        ValueError: it is none, is nested too deep, names a key twice, or holds a number of thousands of digits.
    """
    try:
        return _shallow(json.loads(text, object_pairs_hook=_once))
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file, see `parse_json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else, is no regular file, or is over 256 MiB large.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a FIFO would be waited for without end
        raise ValueError("no regular file")
    if found.st_size > MOST_BYTES:
        raise ValueError(f"over {MOST_BYTES >> 20} MiB large")
    return parse_json(path.read_bytes())


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        ValueError: it is none, is nested too deep, or holds a number of thousands of digits.
    """
    try:
        return _shallow(tomllib.loads(text))
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return values


def _shallow(value: Any) -> Any:
    """The value, unless it is nested too deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [child for children in inner for child in children]
        if not level:
            return value
    raise ValueError(f"nested more than {DEEPEST} deep")
