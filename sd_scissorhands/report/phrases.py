"""How figures, settings and verdicts are put into words."""

from __future__ import annotations

import re
import shlex
from typing import Any


def known(value: Any) -> bool:
    """Whether `value` is a figure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def grade(value: Any, limits: tuple[float, float], words: list[str]) -> tuple[str, str]:
    """The first, second or third of `words`, and the tone of it."""
    if not known(value):
        return "Not comparable", "none"
    rank = sum(value < limit - 1e-9 for limit in limits)
    return words[rank], ("good", "fair", "poor")[rank]


def change(summary: dict[str, Any]) -> float | None:
    """The worse of the changes of IRA and CRA against the original."""
    pairs = [(summary["figures"].get(key), summary["original"].get(key)) for key in ("IRA", "CRA")]
    return min((now - before for now, before in pairs if known(now) and known(before)), default=None)


def percent(share: Any) -> str:
    """A share as a percentage with one decimal, a dash for nothing."""
    return f"{100 * share:.1f}%" if known(share) else "–"


def points(difference: Any) -> str:
    """A difference of shares in percentage points, a dash for nothing."""
    return f"{100 * difference:+.1f} points".replace("-", "−") if known(difference) else "–"


def number(value: Any) -> str:
    """A number with its thousands apart, a dash for nothing."""
    return f"{value:,}" if known(value) else "–"


def total(counts: Any) -> int | float | None:
    """The sum of a table's figures; None for no table."""
    return sum(filter(known, counts.values())) if isinstance(counts, dict) else None


def brief(value: Any) -> str:
    """A number in four digits, a dash for nothing."""
    return f"{value:.4g}" if known(value) else "–"


def between(interval: Any, share: bool = True) -> str:
    """An interval of shares, or of counts; nothing for nothing."""
    if not (isinstance(interval, list | tuple) and len(interval) == 2 and all(map(known, interval))):
        return ""
    low, high = interval
    return f"{100 * low:.1f}–{100 * high:.1f}%" if share else f"{low:,.6g}–{high:,.6g}"


def plain(value: Any) -> str:
    """A value of a setting in words, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')} {plain(one)}" for name, one in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else "–" if value is None else str(value)


def command(value: Any) -> str:
    """A command line as it is typed; nothing for nothing."""
    return shlex.join(map(str, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def markdown(value: Any) -> Any:
    """A value that means nothing to Markdown or HTML, on one line."""
    from markupsafe import escape

    return escape(re.sub(r"([\\`*_\[\]()#|~!])", r"\\\1", " ".join(plain(value).split())))
