"""The rows of a comparison by recipe: means, with what other runs and what other pictures may give."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..evaluation.chance import wilson
from ..results.comparison import ComparisonRow, RecipeLine, Spread


def summarise(rows: Sequence[ComparisonRow]) -> list[RecipeLine]:
    """The rows by recipe, in their order; those of classes, of random shares and of lists each by themselves."""
    groups = list(dict.fromkeys(row.group or "" for row in rows))
    recipes = dict.fromkeys((row.group or "", row.recipe) for row in rows)
    names = dict.fromkeys(name for part in ("figures", "costs") for row in rows for name in getattr(row, part))
    return [_line(rows, *key, list(names)) for key in sorted(recipes, key=lambda key: groups.index(key[0]))]


def _line(rows: Sequence[ComparisonRow], group: str, recipe: str, names: Sequence[str]) -> RecipeLine:
    own = [row for row in rows if row.recipe == recipe and (row.group or "") == group]
    return RecipeLine(
        group, recipe, own[0].baseline, len(own), sum(row.failed is not None for row in own),
        sum(row.collapsed is True for row in own), {name: spread(own, name) for name in names},
    )  # fmt: skip


def spread(rows: Sequence[ComparisonRow], name: str) -> Spread | None:
    """A figure over several runs; None where no run has it.

    The interval is for other pictures, `least` to `most` for other runs. Under another seed a denoiser draws other
    pictures: Wilson's interval of all of them together. A classifier sees the same pictures again, so there they count
    once, not once per seed: the mean of the seeds' intervals, and over several targets, which are independent, the mean's.
    """
    own = [row for row in rows if row.value(name) is not None]
    values = [value for row in own if (value := row.value(name)) is not None]
    if not own:
        return None
    n, interval = None, None
    if all(row.n.get(name) is not None for row in own):
        targets = [[row for row in own if row.target == target] for target in dict.fromkeys(row.target for row in own)]
        denoiser, counts = own[0].group is None, [row.n[name] for row in own]
        n = sum(counts) if denoiser else round(sum(fmean(row.n[name] for row in some) for some in targets))
        if all(row.intervals.get(name) for row in own):
            hits = round(sum(value * count for value, count in zip(values, counts, strict=True)))
            interval = wilson(hits, n) if denoiser else _joined(targets, name)
    return Spread(round(fmean(values), 4), min(values), max(values), len(values), n, interval)


def _joined(targets: Sequence[Sequence[ComparisonRow]], name: str) -> list[float]:
    """The interval of a mean over independent targets, each with the mean of its rows' (Newcombe 1998)."""
    below, above, means = 0.0, 0.0, [fmean(row.value(name) or 0 for row in rows) for rows in targets]
    for mean, rows in zip(means, targets, strict=True):
        low, high = (fmean((row.intervals[name] or [])[end] for row in rows) for end in (0, 1))
        below, above = below + (mean - low) ** 2, above + (high - mean) ** 2
    middle, count = fmean(means), len(targets)
    return [round(middle - below**0.5 / count, 4), round(middle + above**0.5 / count, 4)]
