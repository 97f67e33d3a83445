"""The page of a comparison: rows in, means with their spread and what chance leaves open, one HTML file out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from ..settings import UserError
from .page import template, write_page
from .phrases import brief, known, number, percent
from .plots import COLOURS, MARKERS, draw, tradeoff_plot
from .table import MEANING

ROWS = "rows.json"  # what a comparison came to
ORIGINAL, RETRAIN = "original", "retrain"  # in the place of a recipe: the model as it was, and trained without D_f
PLAIN = {ORIGINAL: "the model as it was", RETRAIN: "trained anew without what is to be forgotten"}


@dataclass(frozen=True)
class Figure:
    """What a column shows."""

    header: str
    meaning: str = ""
    unit: str = "share"  # share | number | bytes


FIGURES: dict[str, dict[str, Figure]] = {
    "diffusion": {
        "UA": Figure("UA", MEANING["UA"]),
        "UA_synonyms": Figure("UA synonyms", MEANING["UA_synonyms"]),
        "UA_generic": Figure("UA generic", MEANING["UA_generic"]),
        "IRA": Figure("IRA", MEANING["IRA"]),
        "CRA": Figure("CRA", MEANING["CRA"]),
        "CRA_forget": Figure("CRA, forget prompts", MEANING["CRA_forget"]),
        "asr": Figure(
            "ASR",
            "attack success rate: attacked pictures in which the judge sees the concept again; lower is better. "
            "It proves something only where the same attack succeeds on the original.",
        ),
        "trimmed": Figure("trimmed weights", "weights that the edit changed before the repair.", "number"),
        "seconds": Figure("seconds", "of the erasure.", "number"),
    },
    "classifier": {
        "forget_accuracy": Figure(
            "accuracy, forgotten",
            "on the training pictures that are to be forgotten; nearest to the retrained model's is best.",
        ),
        "test_forget_accuracy": Figure(
            "forgotten, test", "on the test pictures of the forgotten class, of which none was trained on."
        ),
        "retain_accuracy": Figure("accuracy, kept", "on the other training pictures; higher is better."),
        "test_accuracy": Figure(
            "accuracy, test", "on test pictures, without those of a forgotten class; higher is better."
        ),
        "mia": Figure(
            "MIA", "membership inference from the loss, by logistic regression: how often it is right; 50% is best."
        ),
        "mia_svc": Figure(
            "MIA, SVC",
            "forgotten pictures that a support vector classifier takes for ones never trained on; nearest to the "
            "retrained model's is best.",
        ),
        "probe": Figure(
            "probe",
            "accuracy on what is forgotten of a fresh linear classifier on the model's features: what they still hold.",
        ),
        "relearn": Figure(
            "relearn steps",
            "steps of fine-tuning until what was forgotten is back; more is better. n counts relearnings, and in "
            "parentheses is their range.",
            "number",
        ),
        "gap": Figure(
            "gap",
            "mean absolute difference to the retrained model in forgotten, kept and test accuracy and MIA; lower is "
            "better, and n counts these figures.",
        ),
        "trimmed": Figure("trimmed weights", "weights that the edit changed before the repair.", "number"),
        "seconds": Figure("seconds", "of the forgetting, without what was measured.", "number"),
        "peak_bytes": Figure("peak memory", "beyond what was in use before the forgetting.", "bytes"),
    },
}


def grouped(lines: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows, or lines of the table, by what they are about."""
    return {
        group: [line for line in lines if line.get("group", "") == group]
        for group in dict.fromkeys(line.get("group", "") for line in lines)
    }


def worded(value: Any, figure: Figure) -> str:
    """A figure's value in its unit, a dash for nothing."""
    if figure.unit == "share":
        return percent(value)
    if figure.unit == "bytes":
        return f"{value / 2**20:,.0f} MiB" if known(value) else "–"
    return number(round(value)) if known(value) and abs(value) >= 100 else brief(value)


def ranged(told: Mapping[str, Any] | None, figure: Figure) -> str:
    """The least and the most over the runs; nothing for a single run."""
    return interval([told["least"], told["most"]], figure) if told and told["runs"] > 1 else ""


def interval(ends: Sequence[float], figure: Figure) -> str:
    """From one value to another, a single one where they are alike."""
    low, high = (worded(end, figure) for end in ends)
    return high if low == high else f"{low.removesuffix('%')}–{high}"


def remarks(line: Mapping[str, Any]) -> str:
    """What must be known of a recipe beside its figures."""
    parts = [
        PLAIN.get(line["recipe"], ""),
        "baseline" if line["baseline"] else "",
        f"diverged in {line['failed']} of {line['runs']}" if line["failed"] else "",
        f"COLLAPSED in {line['collapsed']} of {line['runs']}" if line["collapsed"] else "",
    ]
    return "; ".join(part for part in parts if part)


# ---------------------------------------------------------------- the page


def write_comparison(folder: Path) -> Path:
    """Write `folder`/report.html from `folder`/rows.json: whole in itself, no scripts, no network.

    Raises:
        UserError: `folder` holds no comparison, or cannot be written to.
    """
    told = _read(folder / ROWS)
    rows = told["rows"]
    tables = grouped(told["table"])
    columns = {group: shown(told, group) for group in tables}
    page = template("comparison.html.j2").render(
        told=told, figures=shown(told), columns=columns, rows=rows, tables=tables, worded=worded, ranged=ranged, remarks=remarks,
        interval=interval, shared={group: _shared(table, columns[group]) for group, table in tables.items()},
        links={row["run"]: _link(folder, row["run"]) for row in rows if row.get("run")},
        plots={group: drawn for group in tables if (drawn := plot(told, group))},
        target="concept" if told["kind"] == "diffusion" else "forget",
        broken=[row for row in rows if row["recipe"] == ORIGINAL and row.get("broken")],
    )  # fmt: skip
    return write_page(folder / "report.html", page)


def shown(told: Mapping[str, Any], group: str | None = None) -> dict[str, Figure]:
    """The figures that any row, or any of a group, has."""
    rows = told["rows"] if group is None else grouped(told["rows"])[group]
    brought = {name: Figure(**column) for name, column in (told.get("columns") or {}).items()}
    figures = FIGURES[told["kind"]] | brought
    return {name: figure for name, figure in figures.items() if any(known(row.get(name)) for row in rows)}


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text())
        return {"kind": told["kind"], "rows": told["rows"], "table": told["table"]} | told
    except FileNotFoundError:
        raise UserError(f"{file.parent} holds no comparison: it has no {file.name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): repeat the comparison") from None


def _link(folder: Path, run: str) -> str:
    """The page of a run, as seen from the comparison's; nothing where it has none."""
    return quote(f"{run}/report.html") if (folder / run / "report.html").exists() else ""


def _shared(table: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]) -> dict[str, int | None]:
    """The n of a figure where all recipes have the same."""
    shared: dict[str, int | None] = {}
    for name in figures:
        counts = {line["figures"][name]["n"] for line in table if line["figures"][name]}
        shared[name] = counts.pop() if len(counts) == 1 else None
    return shared


def plot(told: Mapping[str, Any], group: str = "") -> Any:
    """Every recipe by what it costs the rest and how well the concept is gone, as inline SVG; None without the figures."""
    if told["kind"] == "classifier":
        return forgetting_plot(grouped(told["rows"])[group])
    points: list[tuple[str, float, float]] = []
    for line in told["table"]:
        asr, ira, cra = ((line["figures"][name] or {}).get("mean") for name in ("asr", "IRA", "CRA"))
        if asr is not None and ira is not None and cra is not None:
            points.append((_label(line), asr, (ira + cra) / 2))
    return tradeoff_plot(points)


def _label(line: Mapping[str, Any]) -> str:
    return f"{line['recipe']} (baseline)" if line["baseline"] else line["recipe"]


def forgetting_plot(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Test accuracy against how far the accuracy on what is forgotten is from the retrained model's, as inline SVG.

    None where there is no retrained model.
    """
    aims = {(row["forget"], row["seed"]): row["forget_accuracy"] for row in rows if row["recipe"] == RETRAIN}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        aim, own, test = aims.get((row["forget"], row["seed"])), row["forget_accuracy"], row["test_accuracy"]
        if known(aim) and known(own) and known(test):
            points.setdefault(_label(row), []).append((100 * abs(own - aim), 100 * test))
    if len(points) < 2:
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, (name, own) in enumerate(points.items()):
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            x, y = (fmean(values) for values in zip(*own, strict=True))
            axes.plot([x], [y], marker, color=colour, markersize=7, alpha=0.85, label=name)
        axes.set(xlabel="accuracy on what is forgotten, points from the retrained model's", ylabel="test accuracy, %")
        axes.margins(0.1, 0.15)
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)

    return draw(paint, "What is kept against how far forgetting is from retraining", height=3.4 + 0.1 * len(points))
