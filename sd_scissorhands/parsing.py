"""JSON and TOML from anybody's text: a value, or an error in a few words; and values as settings have them."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable
from typing import Any

from .errors import UsageError, UserError

NEAR = 0.6  # how alike a mistyped name must be to another, 1 is equal
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


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        ValueError: it is none, is nested too deep, or holds a number of thousands of digits.
    """
    try:
        return _shallow(tomllib.loads(text))
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None


def assignment(text: str) -> tuple[str, Any]:
    """The name and the value of NAME=VALUE: a number, true, false or a list as TOML writes them, else a text.

    Raises:
        UsageError: no NAME=VALUE.
    """
    name, sign, value = (part.strip() for part in text.partition("="))
    if not (name and sign):
        raise UsageError(f"--set {text!r} is not NAME=VALUE")
    try:
        return name.replace("-", "_"), parse_toml(f"value = {value}")["value"]
    except ValueError:
        return name.replace("-", "_"), value


def of_type(source: str, name: str, declared: Any, value: Any) -> Any:
    """A value of TOML as a setting's declared type has it.

    Raises:
        UserError: it is of another, naming where it stands.
    """
    declared = getattr(declared, "__name__", None) or str(declared)  # a class where annotations are evaluated
    if declared.startswith("tuple"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif declared.startswith("float") and (type(value) is float or (type(value) is int and abs(value) < 1e300)):
        return float(value)
    elif type(value).__name__ == declared.removesuffix(" | None"):
        return value
    raise UserError(f"{source}: {name} = {shortened(repr(value))} is not of type {declared}")


def shortened(text: str, most: int = 60) -> str:
    """A text that may be long, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(name: str, known: Iterable[str], near: float = NEAR) -> str:
    """The question after an unknown name, with a comma before it; empty where no known one is near."""
    found = difflib.get_close_matches(name, tuple(known), n=1, cutoff=near)
    return f", did you mean {found[0]!r}?" if found else ""


def choose(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest if one is near, and all."""
    names = tuple(known)
    question = did_you_mean(name, names)
    return f"{question + ' C' if question else ': c'}hoose {', '.join(names)}"


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
