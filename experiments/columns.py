"""Columns of tables of erasures: each makes a cell out of the rows of a line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]  # variant, concept, seed, run, model, seconds, and the summary of every measure by its name
Rows = Sequence[Row]
Cell = Callable[[Rows], str]


def mean(values: Iterable[float | None], digits: int = 3, *, spread: bool = False) -> str:
    """The mean of what is known, with its range behind it if `spread`; empty where nothing is known."""
    found = [value for value in values if value is not None]
    if not found:
        return ""
    low, high = f"{min(found):.{digits}f}", f"{max(found):.{digits}f}"
    return f"{statistics.fmean(found):.{digits}f}" + (f" ({low} to {high})" if spread and low != high else "")


def share(measure: str, figure: str, side: str = "figures") -> Cell:
    """Mean of a figure of an evaluation; `side` is "figures" or "original"."""
    return lambda rows: mean(row[measure][side][figure] for row in rows if measure in row)


def beside(measure: str, figure: str) -> Cell:
    """The same, with the original's behind the stroke."""
    return joined(share(measure, figure), share(measure, figure, "original"))


def success(measure: str, *, original: bool = True) -> Cell:
    """Mean success of an attack over all its restarts and the worst of them; the strongest on the original behind the stroke."""

    def cell(rows: Rows) -> str:
        own = [row[measure] for row in rows if measure in row]
        rates = [restart["asr_after"] for attacked in own for restart in attacked["restarts"]]
        if not rates:
            return ""
        theirs = statistics.fmean(attacked["original"]["asr_after"] for attacked in own)
        return f"{statistics.fmean(rates):.2f} ({max(rates):.2f})" + (f" / {theirs:.2f}" if original else "")

    return cell


def steps_back(measure: str, subject: str = "concept") -> Cell:
    """Steps of fine-tuning until the concept is back, from the fewest to the most; `subject`: pictures of what, concept | benign."""

    def cell(rows: Rows) -> str:
        found = [row[measure]["steps_back"] for row in rows if measure in row]
        back = sorted(one[subject] for one in found if one[subject] is not None)
        text = [f"{back[0]}" if back[0] == back[-1] else f"{back[0]} to {back[-1]}"] if back else []
        return ", ".join(text + [f"never within {one['most']}" for one in found[:1] if len(back) < len(found)])

    return cell


def seconds(rows: Rows) -> str:
    """Mean seconds of the erasures."""
    return mean((row["seconds"] for row in rows), 0)


def joined(*cells: Cell) -> Cell:
    """Several cells in one, parted by strokes."""
    return lambda rows: " / ".join(cell(rows) for cell in cells)


def only(cell: Cell, **same: Any) -> Cell:
    """A cell of the rows that agree with `same`."""
    return lambda rows: cell([row for row in rows if all(row[name] == value for name, value in same.items())])


def judged(measure: str) -> dict[str, Cell]:
    """Columns on the concept and on everything else, the original behind the stroke."""
    return {
        "UA": share(measure, "UA"),
        "UA synonyms": share(measure, "UA_synonyms"),
        "open prompts without it / original": beside(measure, "UA_generic"),
        "IRA / original": beside(measure, "IRA"),
        "CRA / original": beside(measure, "CRA"),
        "CRA forget / original": beside(measure, "CRA_forget"),
    }


def another_seed(measure: str, figure: str) -> Cell:
    """A figure with that of another seed, drawn by the original, behind the stroke."""
    return joined(share(measure, figure), lambda rows: mean(row[measure]["another_seed"][figure] for row in rows))


def whole(measure: str) -> dict[str, Cell]:
    """Columns on what names nothing: how much of it is as it was, another seed behind the stroke."""
    return {
        "open unchanged / another seed": another_seed(measure, "open_unchanged"),
        "unlisted unchanged / another seed": another_seed(measure, "unlisted_unchanged"),
        "open variation / another seed": another_seed(measure, "open_variation"),
        "unlisted variation / another seed": another_seed(measure, "unlisted_variation"),
        "anchor in open prompts / original": beside(measure, "open_anchor"),
    }


def share_under(measure: str) -> Cell:
    """Mean success of an attack without restarts."""
    return lambda rows: mean(row[measure]["asr_after"] for row in rows if measure in row)
