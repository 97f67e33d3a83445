"""JSON and TOML from anybody's file: a value, or a ValueError in a few words, never another error."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

DEEPEST = 100  # lists and objects within each other; Python's own recursion ends somewhat below 1,000


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8, whatever the locale.

    Raises:
        ValueError: it is none, is nested too deep, or holds a number of thousands of digits.
    """
    try:
        return _shallow(json.loads(text))
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file, see `parse_json`.

    Raises:
        OSError, ValueError: it cannot be read.
    """
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


def _shallow(value: Any) -> Any:
    """The value, unless it is nested too deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [child for children in inner for child in children]
        if not level:
            return value
    raise ValueError(f"nested more than {DEEPEST} deep")
