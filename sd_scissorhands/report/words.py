"""How figures, settings and verdicts are put into words."""

from __future__ import annotations

import re
from typing import Any


def grade(value: Any, limits: tuple[float, float], words: list[str]) -> tuple[str, str]:
    """The first, second or third of `words`, and the tone of it."""
    if not isinstance(value, int | float):
        return "Not comparable", "none"
    rank = sum(value < limit - 1e-9 for limit in limits)
    return words[rank], ("good", "fair", "poor")[rank]


def change(canvas: dict[str, Any]) -> float | None:
    """The worse of the changes of IRA and CRA against the original."""
    pairs = [(canvas["figures"].get(key), canvas["original"].get(key)) for key in ("IRA", "CRA")]
    return min((now - before for now, before in pairs if None not in (now, before)), default=None)


def percent(share: Any) -> str:
    """A share as a percentage with one decimal, a dash for nothing."""
    return f"{100 * share:.1f}%" if isinstance(share, int | float) else "–"


def points(difference: Any) -> str:
    """A difference of shares in percentage points, a dash for nothing."""
    return f"{100 * difference:+.1f} points".replace("-", "−") if isinstance(difference, int | float) else "–"


def number(value: Any) -> str:
    """A number with its thousands apart, a dash for nothing."""
    return f"{value:,}" if isinstance(value, int | float) else "–"


def plain(value: Any) -> str:
    """A value of a setting in words, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {plain(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "–" if value is None else str(value)


def markdown(value: Any) -> Any:
    """A value that means nothing to Markdown or HTML, on one line."""
    from markupsafe import escape

    return escape(re.sub(r"([\\`*_\[\]()#|~!])", r"\\\1", " ".join(plain(value).split())))
