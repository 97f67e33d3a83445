"""I2P counts in the layout of the papers' tables: a row each method, a column each part of the body, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ..disk import spreadsheet_cell
from ..errors import UserError, printable
from ..evaluation.metrics.nudenet import EXPOSED
from ..evaluation.nude_counts import PUBLISHED_THRESHOLD
from ..naming import without_folder
from ..results.evaluation import NudityCounts, NudityEvaluation
from .phrases import known, markdown
from .reading import RunRecord

# The papers' columns in their order (e.g. MACE, CVPR 2024, table 2); none of them has ANUS_EXPOSED.
COLUMNS = {
    "Armpits": "ARMPITS_EXPOSED", "Belly": "BELLY_EXPOSED", "Buttocks": "BUTTOCKS_EXPOSED", "Feet": "FEET_EXPOSED",
    "Female Breast": "FEMALE_BREAST_EXPOSED", "Female Genitalia": "FEMALE_GENITALIA_EXPOSED",
    "Male Breast": "MALE_BREAST_EXPOSED", "Male Genitalia": "MALE_GENITALIA_EXPOSED",
}  # fmt: skip
HEADER = ("Method", *COLUMNS, "Total", "Pictures")
NOTE = f"NudeNet boxes with a score of at least {PUBLISHED_THRESHOLD}. Total is the sum of the columns; anus is not among them, as in the papers"
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", **{one: f"\\{one}" for one in "{}$&#_%"},
}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """A row of the table: boxes by part of the body, in the order of `COLUMNS`, in so many pictures."""

    name: str
    boxes: tuple[int, ...]
    pictures: int
    anus: int = 0  # boxes that no column has

    @property
    def cells(self) -> tuple[str | int, ...]:
        """As under `HEADER`."""
        return (self.name, *self.boxes, sum(self.boxes), self.pictures)


def rows(runs: Sequence[RunRecord]) -> list[Counted]:
    """The originals, each once, then the runs in their order.

    Raises:
        UserError: a run has no I2P evaluation, one with another threshold than the papers', or a damaged one.
    """
    found = [(run, _i2p(run)) for run in runs]
    originals = [
        _counted(f"original ({without_folder(one.baseline.model or '')})" if one.baseline.model else "original", one.baseline, run)
        for run, one in found if one.baseline
    ]  # fmt: skip
    methods = [str(run.settings.get("recipe") or without_folder(one.model or run.path.name)) for run, one in found]
    named = [
        name if methods.count(name) == 1 else f"{name}, {run.path.name}"
        for name, (run, _) in zip(methods, found, strict=True)
    ]
    return [
        *dict.fromkeys(originals),
        *(_counted(name, one, run) for name, (run, one) in zip(named, found, strict=True)),
    ]


def _i2p(run: RunRecord) -> NudityEvaluation:
    one = next((one for one in run.counted.values() if one.kind == "i2p"), None)
    if one is None:
        raise UserError(f"{run.path} holds no I2P counts: sdscissor eval --model {run.path}/model --i2p makes them")
    if one.threshold != PUBLISHED_THRESHOLD:
        raise UserError(
            f"{one.folder} counts from a score of {one.threshold}, the papers' tables from {PUBLISHED_THRESHOLD}: "
            f"repeat the evaluation with --threshold {PUBLISHED_THRESHOLD}"
        )
    return one


def _counted(name: str, counts: NudityCounts | NudityEvaluation, run: RunRecord) -> Counted:
    boxes = {label: counts.boxes.get(label, 0) for label in EXPOSED}
    every = counts.exposed.get("all")
    if every is None or every.boxes != sum(boxes.values()) or not known(counts.images):
        raise UserError(f"{run.path}: the I2P counts of {name} are damaged: repeat the evaluation")
    return Counted(name, tuple(boxes[label] for label in COLUMNS.values()), int(counts.images), boxes["ANUS_EXPOSED"])


# ---------------------------------------------------------------- formats


def as_markdown(counted: Sequence[Counted]) -> str:
    """The table and a sentence under it, names as text that means nothing to Markdown or HTML."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    lines += [(markdown(one.name), *map(str, one.cells[1:])) for one in counted]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{markdown(note(counted))}\n"


def as_csv(counted: Sequence[Counted]) -> str:
    """The table with its threshold as CSV (RFC 4180, lines end in CR LF); no name can run as a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow((*HEADER, "Threshold"))
    writer.writerows((*map(spreadsheet_cell, one.cells), PUBLISHED_THRESHOLD) for one in counted)
    return text.getvalue()


def as_latex(counted: Sequence[Counted]) -> str:
    """A tabular that needs no package, with a comment under it; names as text that means nothing to LaTeX."""
    lines = [" & ".join(map(latex, one.cells)) + r" \\" for one in counted]
    top = [rf"\begin{{tabular}}{{l{'r' * (len(HEADER) - 1)}}}", r"\hline", " & ".join(HEADER) + r" \\", r"\hline"]
    return "\n".join([*top, *lines, r"\hline", r"\end{tabular}", f"% {note(counted)}", ""])


def latex(value: str | int) -> str:
    """A value that LaTeX prints as it is, on one line."""
    return "".join(LATEX.get(letter, letter) for letter in printable(" ".join(str(value).split())))


def note(counted: Sequence[Counted]) -> str:
    """What is counted, and how many boxes no column has."""
    left = sum(one.anus for one in counted)
    return f"{NOTE}{f' ({left} boxes in all rows)' if left else ''}."


TABLES = {"i2p-markdown": as_markdown, "i2p-csv": as_csv, "i2p-latex": as_latex}
