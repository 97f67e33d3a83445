"""Figures of recipes side by side: what attacks bring back, and what stays as it was."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from columns import Row, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
PLOT, FULL_PLOT = DOCS / "recipes.svg", DOCS / "full-suite.svg"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")  # the first six Okabe and Ito's
MARKERS = "osD^vPX"
ORIGINAL = "original"
AGAIN, AS_BEFORE = "shows the concept again, %\n(less is better)", "as before, %\n(more is better)"
EVALUATION = "canvas-afresh"  # the measure of what is kept
KEPT_PANEL = "all together"
KEPT = {
    "open_unchanged": "open prompts\nunchanged", "unlisted_unchanged": "unlisted words\nunchanged",
    "IRA": "other concepts\nright", "CRA": "everything\nelse right",
}  # fmt: skip
Share = tuple[float, int]  # and of how many pictures


def plot(groups: dict[str, Rows], attacks: Sequence[str], file: Path) -> None:
    """Save a figure as SVG, the same bytes for the same rows: a panel of the attacks, in the order given, for every group of erasures.

    Where all of them were evaluated, one more panel has what stays as it was, of all groups together.
    """
    rows = [row for own in groups.values() for row in own]
    evaluated = all(EVALUATION in row for row in rows)
    top, below = list(groups) + [KEPT_PANEL] * evaluated, list(groups) + ["."] * evaluated
    height = max(len(attacks), len(KEPT) + 1)
    with saved(file, (8 + (len(groups) - 1) * evaluated, 0.8 + 0.65 * height)) as figure:
        panels = figure.subplot_mosaic([top, below], height_ratios=[len(KEPT), height - len(KEPT)])
        for number, (title, own) in enumerate(groups.items()):
            under = {textwrap.fill(attack.replace("-", " "), 20): attacked(own, attack) for attack in attacks}
            dots(panels[title], under, AGAIN, f"{ORIGINAL}, or another seed's" if evaluated else ORIGINAL)
            panels[title].set_title(title if len(groups) > 1 else "")
            panels[title].tick_params(labelleft=not number)
        if evaluated:
            dots(panels[KEPT_PANEL], {title: kept(rows, name) for name, title in KEPT.items()}, AS_BEFORE)
            panels[KEPT_PANEL].set_title(KEPT_PANEL if len(groups) > 1 else "")
        handles, labels = panels[top[0]].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=4, loc="outside upper center")


@contextlib.contextmanager
def saved(file: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of so many inches to draw into, saved as SVG at the end: the same bytes for the same drawing."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "experiments", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def attacked(rows: Rows, attack: str) -> dict[str, Share]:
    """Recipe, and the original -> the share of an attack's pictures that show the concept."""
    rows = [row for row in rows if attack in row]
    found = by_recipe(rows, lambda row: (row[attack]["asr_after"], row[attack]["n"]))
    return found | {
        ORIGINAL: pooled((row[attack]["original"]["asr_after"], row[attack]["n"]) for row in once_each(rows))
    }


def kept(rows: Rows, figure: str) -> dict[str, Share]:
    """Recipe -> its share of a figure of what is retained; under ORIGINAL the original's, or another seed's where prompts are to stay unchanged."""
    found = by_recipe(rows, lambda row: (row[EVALUATION]["figures"][figure], row[EVALUATION]["n"][figure]))
    beside = "another_seed" if figure.endswith("unchanged") else "original"
    theirs = [row[EVALUATION] for row in once_each(rows)]
    return found | {ORIGINAL: pooled((one[beside][figure], one["n"][figure]) for one in theirs)}


def once_each(rows: Rows) -> Rows:
    """One row for every concept and seed: what was measured of the original is the same under every recipe."""
    return list({(row["concept"], row["seed"]): row for row in rows}.values())


def by_recipe(rows: Rows, share: Callable[[Row], Share]) -> dict[str, Share]:
    """A share over all rows of each recipe."""
    recipes = dict.fromkeys(row["variant"] for row in rows)
    return {recipe: pooled(share(row) for row in rows if row["variant"] == recipe) for recipe in recipes}


def pooled(shares: Iterable[Share]) -> Share:
    """One share of all pictures."""
    found = list(shares)
    count = sum(n for _, n in found)
    return sum(share * n for share, n in found) / count, count


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    z2 = 1.959964**2
    middle, half = share + z2 / (2 * count), math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    return (middle - half) / (1 + z2 / count), (middle + half) / (1 + z2 / count)


def dots(axes: Axes, groups: dict[str, dict[str, Share]], label: str, rule: str = ORIGINAL) -> None:
    """A group of lines for every title, from the top: a dot and its interval for every recipe, a rule for the original.

    Args:
        rule: what the rule is, for the legend.
    """
    recipes: Sequence[str] = list(dict.fromkeys(name for own in groups.values() for name in own if name != ORIGINAL))
    for at, own in enumerate(groups.values()):
        for place, recipe in enumerate(recipes):
            (share, count), y = own[recipe], at + 0.8 * ((place + 0.5) / len(recipes) - 0.5)
            style: dict[str, Any] = {"color": COLOURS[place], "label": recipe if not at else None}
            axes.plot([100 * end for end in interval(share, count)], [y, y], color=COLOURS[place], linewidth=1)
            axes.plot([100 * share], [y], MARKERS[place], markersize=4, **style)
        x = 100 * own[ORIGINAL][0]
        named = rule if not at else None
        axes.plot([x, x], [at - 0.45, at + 0.45], color="#000000", linewidth=2, zorder=1.5, label=named)
    axes.set(xlabel=label, xlim=(-2, 102), ylim=(len(groups) - 0.5, -0.5))
    axes.set_yticks(range(len(groups)), list(groups))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
