"""A comparison from beginning to end: a row for every job, then one table, one page."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..disk import atomic, locked, refuse_file_in_place, spreadsheet_cell, write_json
from ..lineage import MANIFEST
from ..parsing import read_json
from ..recipes import RECIPES
from ..report import write_comparison
from ..report.comparison_page import ORIGINAL, RETRAIN, ROWS
from ..results.comparison import ComparisonResult, ComparisonRow, RecipeNote
from ..run import Progress, check_free, silent
from ..settings import ADDED, EraseSettings, UserError, spelled
from .erasures import Erasures
from .forgettings import Forgettings
from .jobs import Comparison, Job
from .table import summarise

Subject = Erasures | Forgettings
ROW_FILE = "row.json"  # of a run that is complete: its row, the original's beside it, and what they were made by


def compare(
    comparison: Comparison, root: Path, *, command: Sequence[str] = (), progress: Progress = silent
) -> ComparisonResult:
    """Make every row that is not there yet, one after the other, and write `root`/rows.json, rows.csv and report.html.

    Every run is a run directory, `root`/TARGET/RECIPE-seedN; repeated, a comparison that was killed continues. What the
    original drew is stored in `root`/TARGET/original-seedN and handed to all of them. A recipe that diverges has a row
    without figures.

    Args:
        command: as it was typed, for the page.

    Raises:
        UserError: bad input, before any work; rows that were made by other settings.
    """
    subject: Subject = (Erasures if isinstance(comparison.settings, EraseSettings) else Forgettings)(comparison)
    jobs = subject.jobs(root)
    check_root(root, jobs)
    with locked(root):
        return _compare(subject, jobs, root, command, progress)


def _compare(
    subject: Subject, jobs: Sequence[Job], root: Path, command: Sequence[str], progress: Progress
) -> ComparisonResult:
    began, comparison = time.monotonic(), subject.comparison
    for job in jobs:
        rows_of(job)  # that their settings differ is said before their models are read
    jobs = [dataclasses.replace(job, made_by=job.made_by | subject.contents(job)) for job in jobs]
    found = {job.folder: rows_of(job) for job in jobs}
    for number, job in enumerate(jobs, 1):
        if found[job.folder] is None:
            prefix = f"{number}/{len(jobs)} {job.name}"
            found[job.folder] = make(job, subject, partial(_prefixed, progress, prefix))
    rows = in_order(jobs, [found[job.folder] or {} for job in jobs])
    recipes = {job.settings.recipe: RECIPES[job.settings.recipe] for job in jobs}
    result = ComparisonResult(
        kind=subject.kind, model=comparison.settings.model, targets=list(dict.fromkeys(job.target for job in jobs)),
        seeds=list(range(comparison.seeds)), command=list(command), rows=rows, table=summarise(rows), columns=subject.columns,
        recipes={name: RecipeNote(one.summary, one.source, one.baseline) for name, one in recipes.items()},
        measures=dataclasses.asdict(comparison.measures) if subject.kind == "diffusion" else {},
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    write_json(root / ROWS, result.to_json())
    _write_csv(root / "rows.csv", result.rows)
    write_comparison(root)
    return result


def check_root(root: Path, jobs: Sequence[Job]) -> None:
    """Refuse a directory that something else lies in.

    Raises:
        UserError: it is a file, a run or a measurement; or two targets would share a directory.
    """
    refuse_file_in_place(root)
    if any((root / name).exists() for name in (MANIFEST, "summary.json")):
        raise UserError(f"--output-dir {root} holds a run or a measurement: choose a new directory for the comparison")
    owners: dict[Path, str] = {}
    for job in jobs:
        if owners.setdefault(job.folder.parent, job.target) != job.target:
            raise UserError(
                f"{job.target!r} and {owners[job.folder.parent]!r} are too alike to have folders of their own in {root}"
            )


def rows_of(job: Job) -> dict[str, ComparisonRow] | None:
    """The rows of a run that is complete; None if there is still something to do.

    Raises:
        UserError: the directory holds something else, or a row that was made by other settings.
    """
    file = job.folder / ROW_FILE
    if not file.exists():
        check_free(job.folder, job.settings, resume=True)
        return None
    try:
        found = read_json(file)
        theirs = ADDED | found["made_by"]
        rows = {name: ComparisonRow.from_json(row) for name, row in found["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged: delete it and repeat the command") from None
    for name, value in job.made_by.items():
        if theirs.get(name) != value:
            raise UserError(
                f"--output-dir {job.root} holds {job.name} made with other settings "
                f"({spelled(name)} {theirs.get(name)} there, {value} here): choose another --output-dir"
            )
    return rows


def make(job: Job, subject: Subject, progress: Progress) -> dict[str, ComparisonRow]:
    """The rows of a run, which are written into its directory.

    Raises:
        UserError: whatever stopped the run; that it diverged is a result.
    """
    try:
        rows = subject.rows(job, progress)
    except UserError as error:
        if not isinstance(error.__context__, FloatingPointError):
            raise UserError(f"{job.name}: {error}") from None
        rows = {"model": subject.nothing(job, str(error))}
    text = json.dumps({name: row.to_json() for name, row in rows.items()})
    made = json.loads(text, parse_constant=lambda constant: None)  # JSON knows neither NaN nor infinity
    write_json(job.folder / ROW_FILE, {"made_by": job.made_by, "rows": made})
    return {name: ComparisonRow.from_json(row) for name, row in made.items()}


def in_order(jobs: Sequence[Job], found: Sequence[Mapping[str, ComparisonRow]]) -> list[ComparisonRow]:
    """The rows of the originals, of the retrained, and then of recipe by recipe.

    The first two belong to a target and a seed, and are the same in every run: they come from the first that has them.
    """
    beside: dict[tuple[str, str, int], ComparisonRow] = {}
    for job, rows in zip(jobs, found, strict=True):
        for name in (ORIGINAL, RETRAIN):
            if name in rows:
                beside.setdefault((name, job.target, job.settings.seed), rows[name])
    recipes = list(dict.fromkeys(job.settings.recipe for job in jobs))
    first = sorted(beside.values(), key=lambda row: row.recipe == RETRAIN)
    return first + sorted((rows["model"] for rows in found), key=lambda row: recipes.index(row.recipe))


def _prefixed(progress: Progress, prefix: str, stage: str, total: int) -> Any:
    return progress(f"{prefix}: {stage}", total)


def _write_csv(path: Path, rows: Sequence[ComparisonRow]) -> None:
    """The rows as a table: n_FIGURE, FIGURE_low and FIGURE_high behind the rest."""
    flat = []
    for row in rows:
        line = {name: value for name, value in row.to_json().items() if name not in ("n", "intervals")}
        for name, count in row.n.items():
            low, high = row.intervals.get(name) or (None, None)
            line |= {f"n_{name}": count, f"{name}_low": low, f"{name}_high": high}
        flat.append({name: spreadsheet_cell(value) for name, value in line.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in flat for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    with atomic(path) as new:
        new.write_text(text.getvalue(), encoding="utf-8")
