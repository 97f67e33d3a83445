"""The page of a comparison: rows in, means with their spread and what chance leaves open, one HTML file out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar
from urllib.parse import quote

from ..evaluation.chance import wilson
from ..results.comparison import ComparisonResult, ComparisonRow, RecipeLine, Spread
from .declared import Figure, figure
from .page import template, write_page
from .phrases import known, worded
from .plots import retraining_plot, tradeoff_plot
from .reading import read_comparison
from .verdict import RETAINED

ROWS = "rows.json"  # what a comparison came to
ORIGINAL, RETRAIN = "original", "retrain"  # in the place of a recipe: the model as it was, and trained without D_f
PLAIN = {ORIGINAL: "the model as it was", RETRAIN: "trained anew without what is to be forgotten"}

Grouped = TypeVar("Grouped", ComparisonRow, RecipeLine)


def write_comparison(folder: Path) -> Path:
    """Write `folder`/report.html from `folder`/rows.json: whole in itself, no scripts, no network.

    Raises:
        UserError: `folder` holds no comparison, or cannot be written to.
    """
    result = read_comparison(folder / ROWS)
    tables = grouped(result.table)
    columns = {group: figures(result, group) for group in tables}
    page = template("comparison.html.j2").render(
        result=result, figures=figures(result), columns=columns, rows=result.rows, tables=tables, ranged=ranged,
        remarks=remarks, interval=interval, shared={group: _shared(table, columns[group]) for group, table in tables.items()},
        links={row.run: _link(folder, row.run) for row in result.rows if row.run},
        plots={group: drawn for group in tables if (drawn := plot(result, group))},
        target="concept" if result.kind == "diffusion" else "forget",
        broken=[row for row in result.rows if row.recipe == ORIGINAL and row.broken],
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
    shared: dict[str, int | None] = {}
    for name in names:
        counts = {spread.n for line in table if (spread := line.figures[name])}
        shared[name] = counts.pop() if len(counts) == 1 else None
    return shared


def plot(result: ComparisonResult, group: str) -> Any:
    """Every recipe by what it costs the rest and how well the concept is gone, as inline SVG; None without the figures."""
    if result.kind == "classifier":
        return retraining_plot(_from_retraining(grouped(result.rows)[group]))
    points: list[tuple[str, float, float]] = []
    for line in result.table:
        rate, *rest = (spread.mean if (spread := line.figures.get(name)) else None for name in ("asr", *RETAINED))
        if rate is not None and None not in rest:
            points.append((_label(line), rate, fmean(filter(known, rest))))
    return tradeoff_plot(points)


def _from_retraining(rows: Sequence[ComparisonRow]) -> dict[str, list[tuple[float, float]]]:
    """Name -> (how far its accuracy on what is forgotten is from the retrained model's, its test accuracy) by run, in %."""
    retrained = {(row.target, row.seed): row.value("forget_accuracy") for row in rows if row.recipe == RETRAIN}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        aim, own, test = retrained.get((row.target, row.seed)), row.value("forget_accuracy"), row.value("test_accuracy")
        if known(aim) and known(own) and known(test):
            points.setdefault(_label(row), []).append((100 * abs(own - aim), 100 * test))
    return points


def _label(line: ComparisonRow | RecipeLine) -> str:
    return f"{line.recipe} (baseline)" if line.baseline else line.recipe


# ---------------------------------------------------------------- rows by recipe


def summarise(rows: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows by recipe, in their order; those of classes, of random shares and of lists each by themselves."""
    typed = [ComparisonRow.from_json(row) for row in rows]
    order = list(grouped(typed))
    keys = dict.fromkeys((row.group or "", row.recipe) for row in typed)
    return [_line(typed, *key, kind).to_json() for key in sorted(keys, key=lambda key: order.index(key[0]))]


def _line(rows: Sequence[ComparisonRow], group: str, recipe: str, kind: str) -> RecipeLine:
    own = [row for row in rows if row.recipe == recipe and (row.group or "") == group]
    names = dict.fromkeys(name for row in rows for name in [*row.figures, *row.costs])
    return RecipeLine(
        group, recipe, own[0].baseline, len(own), sum(bool(row.failed) for row in own), sum(bool(row.collapsed) for row in own),
        {name: spread(own, name, kind) for name in names},
    )  # fmt: skip


def spread(rows: Sequence[ComparisonRow], name: str, kind: str) -> Spread | None:
    """A figure over several runs; None where no run has it.

    The interval is what other pictures could have shown, `least` and `most` are what other runs could have. Under another
    seed a denoiser is asked for other pictures: Wilson's interval of all of them together. A classifier sees the same
    pictures again, so there they count once, not once per seed: the mean of the seeds' intervals, and over several targets,
    which are independent, the mean's.
    """
    own = [(row, value) for row in rows if known(value := row.value(name))]
    if not own:
        return None
    values = [value for _, value in own]
    found = Spread(round(fmean(values), 4), min(values), max(values), len(values))
    if not all(known(row.n.get(name)) for row, _ in own):
        return found
    whole = all(row.intervals.get(name) for row, _ in own)
    if kind == "diffusion":
        n = sum(row.n[name] for row, _ in own)
        hits = round(sum(value * row.n[name] for row, value in own))
        return replace(found, n=n, interval=wilson(hits, n) if whole else None)
    targets = dict.fromkeys(row.target for row, _ in own)
    each = [[one for one in own if one[0].target == target] for target in targets]
    n = round(sum(fmean(row.n[name] for row, _ in some) for some in each))
    return replace(found, n=n, interval=_joined(each, name) if whole else None)


def _joined(targets: Sequence[Sequence[tuple[ComparisonRow, float]]], name: str) -> list[float]:
    """The interval of a mean over independent targets, each with the mean of its rows' (Newcombe 1998)."""
    means = [fmean(value for _, value in rows) for rows in targets]
    ends = [[fmean((row.intervals[name] or ())[end] for row, _ in rows) for rows in targets] for end in (0, 1)]
    below, above = (sum((mean - end) ** 2 for mean, end in zip(means, side, strict=True)) ** 0.5 for side in ends)
    middle = fmean(means)
    return [round(middle - below / len(targets), 4), round(middle + above / len(targets), 4)]
