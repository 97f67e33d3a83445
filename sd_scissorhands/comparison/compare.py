"""The story of a comparison: job after job a row, then one table, one page."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..disk import atomic, write_json
from ..lineage import MANIFEST
from ..recipes import RECIPES
from ..report import write_comparison
from ..report.comparison_page import ORIGINAL, RETRAIN, ROWS, summarise
from ..run import Progress, check_free, silent
from ..settings import ADDED, EraseSettings, UserError, spelled
from .erasures import Erasures
from .forgettings import Forgettings
from .jobs import Comparison, Job, Row, Subject

ROW = "row.json"  # of a run that is complete: its row, the original's beside it, and what they were made by


def compare(
    asked: Comparison, root: Path, *, command: Sequence[str] = (), progress: Progress = silent
) -> dict[str, Any]:
    """Make every row that is not there yet, one after the other, and write `root`/rows.json, rows.csv and report.html.

    Every run is a run directory, `root`/TARGET/RECIPE-seedN; repeated, a comparison that was killed continues. What the
    original drew is kept in `root`/TARGET/original-seedN and handed to all of them. A recipe that diverges has a row
    without figures.

    Args:
        command: as it was typed, for the page.

    Returns:
        kind, model, targets, seeds, recipes, rows (the original's first, see `FIGURES` in report/comparison.py), table
        (the rows by recipe), report and more.

    Raises:
        UserError: bad input, before any work; rows that were made by other settings.
    """
    subject: Subject = (Erasures if isinstance(asked.settings, EraseSettings) else Forgettings)(asked)
    began, jobs = time.monotonic(), subject.jobs(root)
    check_root(root, jobs)
    found = {job.folder: held(job) for job in jobs}
    if None in found.values():
        subject.check()
    for number, job in enumerate(jobs, 1):
        if found[job.folder] is None:
            found[job.folder] = make(job, subject, partial(_prefixed, progress, f"{number}/{len(jobs)} {job.name}"))
    rows = in_order(jobs, [found[job.folder] or {} for job in jobs])
    told = {
        "kind": subject.kind, "model": asked.settings.model, "targets": list(dict.fromkeys(job.target for job in jobs)),
        "seeds": list(range(asked.seeds)), "recipes": _described(jobs), "measures": _measured_by(asked, subject),
        "command": list(command), "seconds": round(time.monotonic() - began, 2), "rows": rows,
        "table": summarise(rows, subject.kind),
    }  # fmt: skip
    write_json(root / ROWS, told)
    _write_csv(root / "rows.csv", rows)
    return told | {"output_dir": str(root), "report": str(write_comparison(root))}


def check_root(root: Path, jobs: Sequence[Job]) -> None:
    """Refuse a directory that something else lies in.

    Raises:
        UserError: it is a file, a run or a measurement; or two targets would share a directory.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"--output-dir {root} is a file: choose another")
    if any((root / name).exists() for name in (MANIFEST, "summary.json")):
        raise UserError(f"--output-dir {root} holds a run or a measurement: choose a new directory for the comparison")
    owners: dict[Path, str] = {}
    for job in jobs:
        if owners.setdefault(job.folder.parent, job.target) != job.target:
            raise UserError(
                f"{job.target!r} and {owners[job.folder.parent]!r} are too alike to be kept apart in {root}"
            )


def held(job: Job) -> dict[str, Row] | None:
    """The rows of a run that is complete; None if there is still something to do.

    Raises:
        UserError: the directory holds something else, or a row that was made by other settings.
    """
    file = job.folder / ROW
    if not file.exists():
        check_free(job.folder, job.settings, resume=True)
        return None
    try:
        told = json.loads(file.read_text())
        theirs, rows = ADDED | told["made_by"], told["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: delete it and repeat the command") from None
    for name, value in job.made_by.items():
        if theirs.get(name) != value:
            raise UserError(
                f"--output-dir {job.root} holds {job.name} made with other settings "
                f"({spelled(name)} {theirs.get(name)} there, {value} here): choose another --output-dir"
            )
    return rows


def make(job: Job, subject: Subject, progress: Progress) -> dict[str, Row]:
    """The rows of a run, which are then kept in its directory.

    Raises:
        UserError: whatever the run says; that it diverged is a result.
    """
    try:
        rows = subject.rows(job, progress)
    except UserError as error:
        if not isinstance(error.__context__, FloatingPointError):
            raise UserError(f"{job.name}: {error}") from None
        rows = {"model": subject.nothing(job) | {"failed": str(error)}}
    rows = _finite(rows)
    write_json(job.folder / ROW, {"made_by": job.made_by, "rows": rows})
    return rows


def in_order(jobs: Sequence[Job], found: Sequence[dict[str, Row]]) -> list[Row]:
    """The rows of the originals, of the retrained, and then of recipe by recipe.

    Those that belong to a target and a seed are the same in every run; the first run that has them says them.
    """
    beside: dict[tuple[str, str, int], Row] = {}
    for job, rows in zip(jobs, found, strict=True):
        for name in (ORIGINAL, RETRAIN):
            if rows.get(name):
                beside.setdefault((name, job.target, job.settings.seed), rows[name])
    first = [row for name in (ORIGINAL, RETRAIN) for (whose, _, _), row in beside.items() if whose == name]
    recipes = dict.fromkeys(job.settings.recipe for job in jobs)
    own = [rows["model"] for rows in found]
    return first + [row for recipe in recipes for row in own if row["recipe"] == recipe]


def _prefixed(progress: Progress, prefix: str, stage: str, total: int) -> Any:
    return progress(f"{prefix}: {stage}", total)


def _described(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(job.settings.recipe for job in jobs)
    return {
        name: {"summary": RECIPES[name].summary, "source": RECIPES[name].source, "baseline": RECIPES[name].baseline}
        for name in names
    }


def _measured_by(asked: Comparison, subject: Subject) -> dict[str, Any]:
    return dataclasses.asdict(asked.measures) if subject.kind == "diffusion" else {}


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become None."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The rows as a table: n_FIGURE, FIGURE_low and FIGURE_high behind the rest."""
    flat = []
    for row in rows:
        line = {name: value for name, value in row.items() if name not in ("n", "intervals")}
        for name, count in row["n"].items():
            low, high = row["intervals"].get(name) or (None, None)
            line |= {f"n_{name}": count, f"{name}_low": low, f"{name}_high": high}
        flat.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in flat for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    with atomic(path) as new:
        new.write_text(text.getvalue(), encoding="utf-8")
