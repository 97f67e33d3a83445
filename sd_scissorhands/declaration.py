"""A setting, declared once: its default, help, choices, bounds and audience. Flags, TOML keys, API and checks come from here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import UsageError

LEVELS = ("basic", "advanced", "file")  # shown first in --help, shown after, or read from a settings file alone


@dataclass(frozen=True)
class Declared:
    """What is declared of a setting beside its type and default."""

    help: str
    level: str = "advanced"  # of `LEVELS`
    choices: tuple[str, ...] | None = None
    least: float | None = None  # smallest value allowed
    most: float | None = None  # largest value allowed
    open_ends: bool = False  # whether `least` and `most` themselves are refused
    default_text: str | None = None  # shown in --help in the place of the default
    panel: str = ""  # of --help


def setting(default: Any, help: str, **declared: Any) -> Any:
    """A dataclass field with its declaration, see `Declared`."""
    return dataclasses.field(default=default, metadata={"declared": Declared(help, **declared)})


def declared_of(field: dataclasses.Field) -> Declared | None:
    """The declaration of a dataclass field; None where it has none."""
    return field.metadata.get("declared")


def check_declared(values: Any, spelled: Any = str) -> None:
    """Refuse a value outside its declared choices or bounds; None is never refused.

    Args:
        values: a dataclass instance.
        spelled: from a field's name to what the user typed, such as `--top-k`.

    Raises:
        UsageError: naming the setting, the value and what is allowed.
    """
    for field in dataclasses.fields(values):
        value, declared = getattr(values, field.name), declared_of(field)
        if declared is None or value is None:
            continue
        if declared.choices is not None and value not in declared.choices:
            raise UsageError(f"{spelled(field.name)} {value!r} is unknown: choose {', '.join(declared.choices)}")
        if outside := _outside(value, declared):
            raise UsageError(f"{spelled(field.name)} {value} {outside}")


def _outside(value: Any, declared: Declared) -> str:
    least, most, open_ends = declared.least, declared.most, declared.open_ends
    low = least is not None and (value <= least if open_ends else not value >= least)
    high = most is not None and (value >= most if open_ends else not value <= most)
    if not (low or high):
        return ""
    if least is not None and most is not None:
        return f"is outside ({least:g}, {most:g})" if open_ends else f"is outside [{least:g}, {most:g}]"
    if least is not None:
        return f"must be above {least:g}" if open_ends else f"is too small: it must be at least {least:g}"
    return f"must be below {most:g}" if open_ends else f"is too large: it must be at most {most:g}"
