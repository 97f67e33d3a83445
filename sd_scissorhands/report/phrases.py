"""How figures, settings and verdicts are put into words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ..naming import is_path, without_folder
from ..results.base import Record
from ..results.evaluation import JudgeError

TONES = ("good", "fair", "poor")


def known(value: Any) -> TypeGuard[float]:
    """Whether `value` is a figure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def rank(value: float, limits: tuple[float, float]) -> int:
    """How many of the limits, the one for "good" and the one for "fair", a value falls below."""
    return sum(value < limit - 1e-9 for limit in limits)


def first_upper(text: str) -> str:
    """A text with its first letter as of a sentence's."""
    return text[:1].upper() + text[1:]


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
    return sum(filter(known, counts.values())) if isinstance(counts, Mapping) else None


def prompt(text: str) -> str:
    """A prompt as the page shows it: an empty one in brackets."""
    return text or "(no words)"


def brief(value: Any) -> str:
    """A number in four digits, a dash for nothing."""
    return f"{value:.4g}" if known(value) else "–"


def worded(value: Any, unit: str) -> str:
    """A figure in its unit (share, number, distance or bytes), a dash for nothing."""
    if unit == "share":
        return percent(value)
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB" if known(value) else "–"
    return number(round(value)) if known(value) and abs(value) >= 100 else brief(value)


def between(interval: Any, unit: str = "share") -> str:
    """An interval of shares, or of numbers; nothing for nothing."""
    if not (isinstance(interval, list | tuple) and len(interval) == 2 and all(map(known, interval))):
        return ""
    low, high = interval
    return f"{100 * low:.1f}–{100 * high:.1f}%" if unit == "share" else f"{low:,.6g}–{high:,.6g}"


def opposite(interval: Any) -> list[float] | None:
    """The interval of 1 - share, from that of a share; None for nothing."""
    return [1 - end for end in reversed(interval)] if interval and all(map(known, interval)) else None


def links(page: str) -> list[tuple[str, str]]:
    """(id, title) of every section of a page."""
    from markupsafe import Markup

    return [(id_, Markup(title)) for id_, title in re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', page)]


def facts(value: Any) -> dict[str, Any]:
    """What is known of a thing, by name."""
    values = value.to_json() if isinstance(value, Record) else value if isinstance(value, Mapping) else {}
    return {name: one for name, one in values.items() if one is not None}


def plain(value: Any) -> str:
    """A value of a setting in words, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Record | Mapping):
        values = facts(value) if isinstance(value, Record) else value
        return ", ".join(f"{str(name).replace('_', ' ')} {plain(one)}" for name, one in values.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return "–" if value is None or value != value else str(value)


def shareable(value: Any) -> Any:
    """A setting without the folders of this machine that it may name."""
    if isinstance(value, list | tuple):
        return [shareable(one) for one in value]
    if isinstance(value, Mapping):
        return {name: shareable(one) for name, one in value.items()}
    if isinstance(value, Record):
        return shareable(facts(value))
    local = isinstance(value, str) and "/" in value and (value.startswith((".", "~")) or is_path(value))
    return Path(value).name if local else without_folder(value) if isinstance(value, str) else value


def described(value: Any) -> str:
    """A judge, or what else there are facts of, in words; a judge's name comes first."""
    values = facts(value)
    judge = values.pop("judge", None)
    return ", ".join(part for part in (judge and plain(judge), values and plain(values)) if part)


def command(value: Any) -> str:
    """A command line as it is typed; nothing for nothing."""
    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else value if isinstance(value, str) else ""


def markdown(value: Any) -> Any:
    """A value that means nothing to Markdown or HTML, on one line."""
    from markupsafe import escape

    return escape(re.sub(r"([\\`*_\[\]()#|~!])", r"\\\1", " ".join(plain(value).split())))


def judge_errs(error: JudgeError | None) -> str | None:
    """How often a judge is right about the original, and the share of pictures with the concept that this leaves."""
    if error is None:
        return None
    found = f"sees the concept in {error.seen:,} of the original's {error.pictures:,} pictures of it and in {error.wrong:,} of {error.anchors:,} of the anchor's"
    if not error.shown or len(error.shown) != 3:
        return found
    share, *ends = error.shown
    return f"{found}; corrected for that, {percent(share)} of the model's pictures show it ({between(ends)})"
