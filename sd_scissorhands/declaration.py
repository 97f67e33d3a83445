"""A setting, declared once: its default, help, choices, bounds and audience. Flags, TOML keys, API and checks come from here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import UserError
from .parsing import choose

Choices = tuple[str, ...] | Callable[[], tuple[str, ...]]
BASIC = "Most used"  # the panel of settings of level `basic`, the only one that --help shows
PANELS = (
    BASIC,
    "What",
    "Rows of I2P",
    "Data",
    "Scores, selection, edit",
    "Repair",
    "Drawing and counting",
    "Judges",
    "Diffusion: judging and attacking",
    "Classifiers",
    "Run",
)  # of --help-all, in order
LEVELS = ("basic", "advanced", "file")  # shown by --help, by --help-all alone, or read from a settings file alone
LARGEST = 2**31 - 1  # integer where no `most` is declared: more no tensor of a batch has
SEED = {"least": 0, "most": 2**32 - 1}  # with room to count draws beside it in a generator's 64 bits


@dataclass(frozen=True)
class Declared:
    """What is declared of a setting beside its type and default."""

    help: str
    level: str = "advanced"  # of `LEVELS`
    choices: Choices | None = None  # a function where the names are a registry's, which may grow
    examples: Choices | None = None  # names shown and completed where more than they may be given
    least: float | None = None  # smallest value allowed
    most: float | None = None  # largest value allowed
    remedy: str = ""  # ends the message about a value out of bounds
    open_ends: bool = False  # whether `least` and `most` themselves are refused
    default_text: str | None = None  # shown in --help in the place of the default
    panel: str = ""  # of `PANELS`
    flag: str | None = None  # where it is not the field's name
    listed: bool = False  # whether the flag takes a list with commas; else a tuple's flag is repeatable

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the command line shows and completes: the examples, else the choices."""
        return (self.examples() if callable(self.examples) else self.examples) or self.allowed or ()

    @property
    def text(self) -> str:
        """The help, with the names."""
        if "{choices}" not in self.help:
            return self.help
        return self.help.replace("{choices}", f": {', '.join(self.names)}" if self.names else "")

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The choices as they are now; None where anything may be given."""
        return self.choices() if callable(self.choices) else self.choices


def setting(default: Any, help: str, **declared: Any) -> Any:
    """A dataclass field with its declaration, see `Declared`."""
    return dataclasses.field(default=default, metadata={"declared": Declared(help, **declared)})


def declared_of(field: dataclasses.Field) -> Declared | None:
    """The declaration of a dataclass field; None where it has none."""
    return field.metadata.get("declared")


def choices(kind: Any) -> dict[str, tuple[str, ...]]:
    """Name -> what may be chosen, of every field that has choices."""
    fields = ((field.name, declared_of(field)) for field in dataclasses.fields(kind))
    return {name: declared.allowed for name, declared in fields if declared and declared.allowed}


def check_declared(values: Any, spelled: Callable[[str], str] = str, error: type[UserError] = UserError) -> None:
    """Refuse a value outside its declared choices or bounds, and what no setting can be; None is never refused.

    Args:
        values: a dataclass instance.
        spelled: from a field's name to what the user typed, such as `--top-k`.
        error: raised, naming the setting, the value and what is allowed.
    """
    for field in dataclasses.fields(values):
        value, declared = getattr(values, field.name), declared_of(field)
        if declared is None or value is None:
            continue
        name = spelled(field.name)
        for one in value if isinstance(value, tuple | list) else (value,):
            if wrong := _unusable(one):
                raise error(f"{name} {wrong}")
            if outside := _outside(one, declared):
                raise error(f"{name} {one} {outside}" + (f": {declared.remedy}" if declared.remedy else ""))
        if (allowed := declared.allowed) is not None and value not in allowed:
            raise error(f"{name} {value!r} is unknown{choose(str(value), allowed)}")


def _unusable(value: Any) -> str:
    """Why a value can be no setting at all, whatever is declared; nothing if it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no finite number"
    if type(value) is int and value.bit_length() > 64:
        return f"has {value.bit_length()} bits: it must be an integer of at most 64"
    return "holds a NUL character, which no name has" if isinstance(value, str) and "\0" in value else ""


def _outside(value: Any, declared: Declared) -> str:
    """What is wrong with a value's size; nothing if it is within its bounds, or no number."""
    least, most, open_ends = declared.least, declared.most, declared.open_ends
    if not isinstance(value, int | float):
        return ""
    if most is None and type(value) is int and value > LARGEST:
        return f"is too large: it must be at most {LARGEST}"
    low = least is not None and not (value > least if open_ends else value >= least)
    high = most is not None and not (value < most if open_ends else value <= most)
    if not (low or high):
        return ""
    if least is not None and most is not None:
        return f"is outside ({least}, {most})" if open_ends else f"is outside [{least}, {most}]"
    if most is not None:
        return f"is too large: it must be at most {most}"
    if least == 0:
        return "must be above 0" if open_ends else "is negative"
    return f"is too small: it must be at least {least}"
