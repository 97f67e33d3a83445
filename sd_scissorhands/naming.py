"""One string names a model: tiny, a directory, a file, or a hub id with what is meant of it (owner/name@revision:variant)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import UserError
from .parsing import choose

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
FORM = re.compile(r"(?P<location>[^@:]+)(@(?P<revision>[^@:]+))?(:(?P<variant>[\w.-]+))?")


@dataclass(frozen=True)
class Name:
    """A model's name in its parts; `str` puts them together again."""

    location: str  # tiny, a path, or a hub id
    revision: str | None = None  # branch, tag or commit on the hub
    variant: str | None = None  # which of several sets of weights: fp16, non_ema

    @classmethod
    def parse(cls, text: str) -> Name:
        """From one string; a path that exists means itself, whatever characters it holds."""
        if is_path(text):
            return cls(text)
        before, _, variant = text.rpartition(":")
        if is_path(before):
            return cls(before, None, variant or None)
        found = FORM.fullmatch(text)
        return cls(**found.groupdict()) if found else cls(text)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.location + revision + (f":{self.variant}" if self.variant else "")


def model_named(model: str, revision: str | None, variant: str | None = None) -> str:
    """A model as one string, from flags that say a part of it.

    Raises:
        UserError: given twice, or a revision of what lies on this machine.
    """
    name = Name.parse(model)
    for flag_, given, in_name in (("--revision", revision, name.revision), ("--variant", variant, name.variant)):
        if given and in_name not in (None, given):
            raise UserError(f"--model {model} names {in_name!r} already: leave out {flag_} {given}")
    if revision and is_path(name.location):
        raise UserError(f"--model {model} lies on this machine and has no revisions: leave out --revision {revision}")
    return str(Name(name.location, revision or name.revision, variant or name.variant))


def model_of(text: str) -> str:
    """A model's name; of a run directory the model in it."""
    folder = Path(text)
    try:
        held = (folder / "run.json").is_file() and (folder / "model").is_dir()
    except (OSError, ValueError):  # longer than any path, or with a NUL
        return text
    return str(folder / "model") if held else text


def without_folder(text: str) -> str:
    """A model's name for others to read: of an absolute path its last part alone."""
    return Path(text).name if Path(text).is_absolute() else text


def is_path(text: str) -> bool:
    """Whether something lies at a path."""
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # longer than any path, or ~ of nobody
        return False


def may_be_on_hub(text: str) -> bool:
    """Whether a text has the form of a hub id, owner/name, and not that of a path."""
    return HUB_ID.fullmatch(text) is not None and not text.endswith(".safetensors")


def check_model(model: str) -> None:
    """Refuse what is not on this machine and cannot be on the hub.

    Raises:
        UserError: naming --model.
    """
    location = Name.parse(model).location
    if location == "tiny" or is_path(location):
        return
    if runs := runs_beside(location):
        parent, _, name = location.rpartition("/")
        raise UserError(f"--model {model} does not exist, {parent} has other runs{choose(name, runs)}")
    if not may_be_on_hub(location):
        raise UserError(
            f"--model {model} does not exist: name a diffusers directory, a .safetensors file, a hub id (owner/name), or tiny"
        )


def runs_beside(location: str) -> list[str]:
    """Names of the runs in the folder in which something would lie."""
    parent = location.rpartition("/")[0]
    return sorted(file.parent.name for file in Path(parent).glob("*/run.json")) if parent and is_path(parent) else []


@contextmanager
def model_flag(flag: str = "") -> Iterator[None]:
    """Within it errors about --model name another flag, or none."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--model ", f"{flag} " if flag else "", 1)) from None


def absolute(text: str) -> str:
    """A model's name that means the same from any working directory: of a local one its absolute path."""
    name = Name.parse(text)
    if name.location == "tiny" or not is_path(name.location):
        return text
    return str(replace(name, location=os.path.abspath(Path(name.location).expanduser())))
