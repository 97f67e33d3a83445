"""Figures of docs/experiments.md, and that of the table `recipes`: what attacks bring back, and what stays as it was."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from columns import Row, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
PLOT, FULL_PLOT, CONCEPTS_PLOT = DOCS / "recipes.svg", DOCS / "full-suite.svg", DOCS / "full-suite-concepts.svg"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")  # the first six Okabe and Ito's
MARKERS = "osD^vPX"
ORIGINAL = "original"
AGAIN = "shows the concept again, % (less is better)"
KEPT = {
    "open_unchanged": "open prompts\nunchanged", "unlisted_unchanged": "unlisted words\nunchanged",
    "IRA": "other concepts\nright", "CRA": "everything\nelse right",
}  # fmt: skip
Share = tuple[float, int]  # and of how many pictures


def plot(rows: Rows, attacks: Iterable[str], file: Path = PLOT) -> None:
    """Save the figure as SVG, the same bytes for the same rows; attacks that bring most back, over all recipes, come first."""
    under, after = by_attack(rows, attacks), {title: kept(rows, figure) for figure, title in KEPT.items()}
    with saved(file, (8, 6)) as figure:
        left, right = figure.subplots(1, 2, sharey=False)
        dots(left, under, AGAIN, "original, or another seed's")
        dots(right, after, "as before, % (more is better)")
        legend(figure, left)


def plot_attacks(groups: dict[str, Rows], attacks: Sequence[str], file: Path) -> None:
    """Save a figure of the attacks alone, in the order given; a panel for each group of erasures."""
    with saved(file, (8, 10)) as figure:
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (title, rows) in zip(panels, groups.items(), strict=True):
            dots(axes, {attack.replace("-", " "): attacked(rows, attack) for attack in attacks}, AGAIN)
            axes.set_title(title if len(groups) > 1 else "")
        legend(figure, panels[0])


def legend(figure: Figure, axes: Axes) -> None:
    """Put the recipes' names above a figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside upper center")


def by_attack(rows: Rows, attacks: Iterable[str]) -> dict[str, dict[str, Share]]:
    """Attack -> recipe, and the original -> share; what brings most back, over all recipes, comes first."""
    found = {attack.replace("-", " "): attacked(rows, attack) for attack in attacks}
    return dict(sorted(found.items(), key=lambda own: -sum(share for share, _ in own[1].values())))


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
    once = {
        (row["concept"], row.get("seed")): row for row in rows
    }.values()  # the original is the same under every recipe
    return found | {ORIGINAL: pooled((row[attack]["original"]["asr_after"], row[attack]["n"]) for row in once)}


def kept(rows: Rows, figure: str) -> dict[str, Share]:
    """Recipe -> a figure of what is retained, and the original's, or another seed's of what can only change."""
    measure = "canvas-afresh"
    found = by_recipe(rows, lambda row: (row[measure]["figures"][figure], row[measure]["n"][figure]))
    beside = "another_seed" if figure.endswith("unchanged") else "original"
    once = {row["concept"]: row[measure] for row in rows}.values()
    return found | {ORIGINAL: pooled((one[beside][figure], one["n"][figure]) for one in once)}


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
