"""`sdscissor init`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from ..declaration import PANELS, Declared, declared_of
from ..settings import BY_RECIPE, LEFT_OPEN, EraseSettings
from .flags import fields_of

WIDTH = 100  # letters of a line
OWN = "Of a scorer or an edit"  # the last group: what their files declare
HEAD = (
    "Settings of sdscissor erase, read by --config FILE; flags win over the file.\n"
    "Take the # from a line that begins with #name to set it. \"\" leaves a setting open, as if the line were not there. "
    f"A value in brackets is what {EraseSettings.recipe} sets on Stable Diffusion."
)  # fmt: skip


def init() -> None:
    """Print a settings file with every setting of erase, each commented out with its help and default.

    Example:

        sdscissor init > settings.toml
    """
    print(template(), end="")


def template() -> str:
    """The settings file, in the groups of --help-all."""
    from ..methods.method import declared_settings

    chosen = EraseSettings().resolved("large").to_json()
    groups: dict[str, list[str]] = {panel: [] for panel in PANELS}
    for name, _, declared, _ in fields_of(EraseSettings, files=True):
        groups[declared.panel] += _lines(name, getattr(EraseSettings, name), declared, chosen)
    groups[OWN] = [
        line for name, field in declared_settings().items() if (own := declared_of(field))
        for line in _lines(name, None, own, chosen | {name: field.default})
    ]  # fmt: skip
    titled = ([f"# ---- {title}", "", *lines] for title, lines in groups.items() if lines)
    return "\n".join([*_comment(HEAD), "", *(line for lines in titled for line in lines)])


def _lines(name: str, default: Any, declared: Declared, chosen: dict[str, Any]) -> Iterator[str]:
    """A setting's help, and the setting with its default."""
    text = declared.text
    if default is None:
        text += f" Default: {_when_open(name, declared, chosen)}."
    yield from _comment(text)
    yield f"#{name} = {json.dumps('' if default is None else default)}"
    yield ""


def _when_open(name: str, declared: Declared, chosen: dict[str, Any]) -> str:
    """What stands for a setting that is left open, in words."""
    open_ = declared.default_text or (BY_RECIPE if name in LEFT_OPEN or name not in vars(EraseSettings) else "none")
    value = chosen.get(name)
    return f"{open_} ({json.dumps(value)})" if open_ == BY_RECIPE and value is not None else open_


def _comment(text: str) -> list[str]:
    """Lines of a comment."""
    return [f"# {line}" for part in text.split("\n") for line in textwrap.wrap(part, WIDTH - 2)]
