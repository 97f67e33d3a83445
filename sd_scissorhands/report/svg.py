"""Figures as inline SVG, in colours that the colour-blind can distinguish and that follow the page's, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from .phrases import known

FEW_DECADES = 1e4  # end over beginning of a logarithmic axis, up to which 1, 2 and 5 of each decade do not overlap
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's
COLOURS = (ORANGE, BLUE, GREEN, "#CC79A7", "#000000", "#56B4E9", "#E69F00")
POINT_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
THEME = {"#ffffff": "var(--card)", "#000000": "currentColor"} | {
    colour.lower(): f"var(--{name})" for name, colour in {"blue": BLUE, "orange": ORANGE, "green": GREEN}.items()
}  # what the page's style gives in light and dark

Points = Sequence[tuple[float, float]]  # (x, y)
Ends = Sequence[float] | None  # of a 95 % interval; None: not known


def draw(paint: Callable[[Any], None], alt: str, *, height: float, themed: bool = True) -> Any:
    """A figure 5 inches wide as SVG for the inside of a page: the same bytes every time, no metadata, no links.

    Args:
        themed: in the colours of the page's style, for light and dark; else in colours of its own.
    """
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": alt, "svg.fonttype": "none", "font.family": "DejaVu Sans",
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
        "grid.alpha": 0.3,
    }  # fmt: skip
    stream = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5, height), layout="constrained")
        paint(figure)
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, root, inside = re.split(r"(<svg[^>]*>)", stream.getvalue(), maxsplit=1)
    view = " ".join(re.findall(r'viewBox="[^"]*"', root))
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    if themed:
        inside = re.sub('#[0-9a-f]{6}(?=[;"])', lambda found: THEME.get(found[0], found[0]), inside)
    return Markup(f'<svg {view} role="img" fill="currentColor" aria-label="{escape(alt)}">{inside}')


def line(axes: Any, points: Points, label: str, colour: str, style: str, marker: str, **more: Any) -> None:
    """A line through the points that are known; nothing where none is."""
    found = [(x, y) for x, y in points if known(x) and known(y)]
    if found:
        axes.plot(*zip(*found, strict=True), style, color=colour, marker=marker, label=label, **more)


def bar(axes: Any, xs: Ends, ys: Ends, colour: str) -> None:
    """A line over an interval; none where it is not known."""
    if xs and ys:
        axes.plot(xs, ys, color=colour, linewidth=1.2, zorder=1.9)


def plain_ticks(axis: Any) -> None:
    """Name the ticks of a logarithmic axis as decimals: 1, 2 and 5 in each of a few decades, seven powers of ten in many."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,), numticks=7))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def percents(ends: Ends) -> Ends:
    """An interval of shares in per cent."""
    return [100 * end for end in ends] if ends else None


def legend(axes: Any, *, columns: int = 2, **more: Any) -> None:
    """The legend, above the axes on the left."""
    axes.legend(frameon=False, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), **more)
