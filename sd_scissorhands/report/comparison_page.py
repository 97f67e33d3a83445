"""The page of a comparison: rows in, means with their spread and what chance leaves open, one HTML file out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ..classifier.metrics import CLASSIFIER_METRICS
from ..evaluation.metrics import answering
from ..results.comparison import ComparisonResult, ComparisonRow, RecipeLine, Spread
from .declared import Figure, figure
from .page import template, write_page
from .phrases import known, worded
from .reading import read_comparison
from .scatter import Point, retraining_plot, tradeoff_plot
from .verdict import worst

ROWS = "rows.json"  # what a comparison came to
ORIGINAL, RETRAIN = "original", "retrain"  # in the place of a recipe: the model as it was, and trained without D_f
PLAIN = {ORIGINAL: "the model as it was", RETRAIN: "trained anew without what is to be forgotten"}

Grouped = TypeVar("Grouped", ComparisonRow, RecipeLine)


def write_comparison(folder: Path) -> Path:
    """Write `folder`/report.html from `folder`/rows.json: whole in itself, no network.

    Raises:
        UserError: `folder` holds no comparison, or cannot be written to.
    """
    result = read_comparison(folder / ROWS)
    tables, every = grouped(result.table), figures(result)
    columns = {group: figures(result, group) for group in tables}
    page = template("comparison.html.j2").render(
        result=result, figures=every, terms=[one for one in dict.fromkeys(every.values()) if one.meaning], columns=columns, rows=result.rows, tables=tables, ranged=ranged,
        remarks=remarks, interval=interval, shared={group: _shared(table, columns[group]) for group, table in tables.items()},
        links={row.run: _link(folder, row.run) for row in result.rows if row.run},
        plots={group: drawn for group in tables if (drawn := plot(result, group))},
        target="concept" if result.kind == "diffusion" else "forget",
        original=ORIGINAL, broken=[row for row in result.rows if row.recipe == ORIGINAL and row.broken],
    )  # fmt: skip
    return write_page(folder / "report.html", page)


def figures(result: ComparisonResult, group: str | None = None) -> dict[str, Figure]:
    """The figures, and then the costs, that any row, or any of a group, has."""
    rows = result.rows if group is None else grouped(result.rows)[group]
    names = [name for kind in ("figures", "costs") for row in rows for name in getattr(row, kind)]
    measured = [name for name in dict.fromkeys(names) if any(known(row.value(name)) for row in rows)]
    return {name: figure(name, result.columns) for name in measured}


def grouped(lines: Sequence[Grouped]) -> dict[str, list[Grouped]]:
    """Rows, or lines of the table, by what they are about."""
    groups = dict.fromkeys(line.group or "" for line in lines)
    return {group: [line for line in lines if (line.group or "") == group] for group in groups}


def ranged(spread: Spread, unit: str) -> str:
    """The least and the most over the runs; nothing for a single run."""
    return interval([spread.least, spread.most], unit) if spread.runs > 1 else ""


def interval(ends: Sequence[float], unit: str) -> str:
    """From one value to another, a single one where they are alike."""
    low, high = (worded(end, unit) for end in ends)
    return high if low == high else f"{low.removesuffix('%')}–{high}"


def remarks(line: RecipeLine) -> str:
    """What must be known of a recipe beside its figures."""
    parts = [
        PLAIN.get(line.recipe, ""),
        "baseline" if line.baseline else "",
        f"diverged in {line.failed} of {line.runs}" if line.failed else "",
        f"COLLAPSED in {line.collapsed} of {line.runs}" if line.collapsed else "",
    ]
    return "; ".join(part for part in parts if part)


def _link(folder: Path, run: str) -> str:
    """The page of a run, as seen from the comparison's; nothing where it has none."""
    return quote(f"{run}/report.html") if (folder / run / "report.html").exists() else ""


def _shared(table: Sequence[RecipeLine], names: Iterable[str]) -> dict[str, int | None]:
    """The n of a figure where all recipes have the same."""
    counts = {name: {spread.n for line in table if (spread := line.figures[name])} for name in names}
    return {name: found.pop() if len(found) == 1 else None for name, found in counts.items()}


def plot(result: ComparisonResult, group: str) -> Any:
    """Every recipe by what it costs the rest and how well the concept is gone, as inline SVG; None without the figures."""
    if result.kind == "classifier":
        return retraining_plot(_from_retraining(grouped(result.rows)[group]))
    points = []
    for line in result.table:
        spreads = {name: spread for name in ("asr", *answering("whole")) if (spread := line.figures.get(name))}
        least = worst({name: spread.mean for name, spread in spreads.items()})
        if "asr" in spreads and least:
            asr, left = spreads["asr"], spreads[least]
            points.append(Point(_label(line), asr.mean, left.mean, asr.interval, left.interval))
    return tradeoff_plot(points)


def _from_retraining(rows: Sequence[ComparisonRow]) -> dict[str, list[tuple[float, float]]]:
    """Name -> (how far it is from the retrained model on what is forgotten, how well the rest is done) by run, in %.

    By the metrics of classifiers that declare these axes.
    """
    forgotten, retained = (
        next(name for name, one in CLASSIFIER_METRICS.items() if one.axis == axis) for axis in ("forgotten", "retained")
    )
    retrained = {(row.target, row.seed): row.value(forgotten) for row in rows if row.recipe == RETRAIN}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        aim, own, test = retrained.get((row.target, row.seed)), row.value(forgotten), row.value(retained)
        if known(aim) and known(own) and known(test):
            points.setdefault(_label(row), []).append((100 * abs(own - aim), 100 * test))
    return points


def _label(line: ComparisonRow | RecipeLine) -> str:
    return f"{line.recipe} (baseline)" if line.baseline else line.recipe
