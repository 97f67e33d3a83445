"""Several attacks as one: `sdscissor attack --suite quick`. One table and one plot, the worst case first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..disk import locked, write_json
from ..errors import UserError
from ..files import read_json
from ..machine import Processes
from ..places import measurement_directory
from ..results.attack import AttackResult
from ..results.suite import FOLDER, SuiteResult, SuiteRow, worst_first
from ..run import Progress, silent
from . import ATTACKS
from .attack import about_of, attack, check_files, claim, contents_of
from .suite_settings import Suite

STATE = "suite.json"  # what identifies the suite in a folder


def run_suite(suite: Suite, folder: Path, *, progress: Progress = silent) -> SuiteResult:
    """Attack a model and its original in every way of a suite, and write `folder`/summary.json.

    Each attack has a folder of its own inside. Repeated, a killed suite continues; what is finished is read. IRA and CRA are
    taken from the run's evaluation or left out: no attack measures them anew.

    Raises:
        UserError: bad input, before any work; or a folder that holds another suite.
    """
    processes = Processes.here()
    with locked(folder, processes.main):
        for settings in suite.attacks.values():
            check_files(settings)
        first = dataclasses.replace(suite.first, baseline=about_of(suite.first).baseline)
        each = {name: one.to_json() for name, one in suite.attacks.items()}
        claim(folder / STATE, {"suite": suite.name, "attacks": each} | contents_of(first), processes)
        results = {}
        for place, (name, one) in enumerate(suite.attacks.items(), 1):
            shown = named_stages(f"{place}/{len(suite.attacks)} {name}", progress)
            results[name] = finished(folder / name) or attack(one, folder / name, measure_rest=False, progress=shown)
        result = result_of(suite, results)
        if processes.main:
            write_json(folder / "summary.json", result.to_json())
        return result


def place_of(suite: Suite) -> Path:
    """Where a suite goes by default: beside the run that the model belongs to, else under runs/.

    Raises:
        UserError: see `evaluation.evaluate.about`.
    """
    return measurement_directory("attack", suite.first.model, FOLDER + suite.name, about_of(suite.first).concept.name)


def named_stages(name: str, progress: Progress) -> Progress:
    """The same progress with a name before every stage."""
    return lambda stage, total: progress(f"{name}, {stage}", total)


def finished(folder: Path) -> AttackResult | None:
    """The result of an attack that came to its end in this folder.

    Raises:
        UserError: its summary is damaged.
    """
    file = folder / "summary.json"
    if not file.exists():
        return None
    try:
        return AttackResult.from_json(read_json(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): delete {folder} and repeat the suite") from None


def result_of(suite: Suite, results: Mapping[str, AttackResult]) -> SuiteResult:
    """All attacks as rows, and the worst of them."""
    rows = []
    for name, result in results.items():
        declared = ATTACKS[result.attack]
        rows.append(SuiteRow.of(name, declared.title + suite.notes[name], declared.graded, result))
    graded = [row for row in rows if row.graded]
    rates = [row.asr_after for row in graded if row.proves and row.asr_after is not None]
    any_one, remarks = (
        next(iter(results.values())),
        {remark: None for one in results.values() for remark in one.remarks},
    )
    return SuiteResult(
        suite=suite.name, concept=any_one.concept, model=any_one.model, weights_sha256=any_one.weights_sha256,
        baseline=any_one.baseline, baseline_sha256=any_one.baseline_sha256, asr_after=max(rates, default=None),
        working=round(sum(row.proves for row in graded) / len(graded), 4), attacks=sorted(rows, key=worst_first), seed=any_one.seed,
        seconds=round(sum(one.seconds or 0 for one in results.values()), 2), remarks=tuple(remarks),
    )  # fmt: skip
