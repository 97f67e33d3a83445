"""The end of `sdscissor erase`: what --then adds, what is shown, and the exit code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..evaluation.metrics import gates_of
from ..then import Part
from .measure import ATTACK_GATES, SUITE_GATES, attack_columns, check_attack, check_evaluation, check_suite
from .options import Gate, GateMissed, NotConverged, parse_gates

if TYPE_CHECKING:
    from ..models.hub import Repo
    from ..results.base import Measurement
    from ..results.erase import EraseResult
    from ..run import Progress
    from ..settings import EraseSettings


def gates_after(
    parts: Sequence[Part], above: Sequence[str] | None, below: Sequence[str] | None
) -> list[tuple[Part, list[Gate]]]:
    """The gates of each part: a figure that several of them have is held against the bound in each.

    Raises:
        UsageError: gates without a part.
        typer.BadParameter: see `parse_gates`.
    """
    if (above or below) and not parts:
        raise UsageError("--fail-above and --fail-below are for what --then measures: add --then eval, say")
    known = [_figures(part) for part in parts]
    gates = parse_gates(tuple(dict.fromkeys(name for names in known for name in names)), above, below)
    return [(part, [gate for gate in gates if gate[0] in own]) for part, own in zip(parts, known, strict=True)]


def _figures(part: Part) -> tuple[str, ...]:
    """What a part can be held against."""
    if part.command == "eval":
        return gates_of("concept")
    return SUITE_GATES if part.by == "suite" else (*ATTACK_GATES, *attack_columns(part.name))


def measured(
    erased: EraseResult,
    gates: Sequence[tuple[Part, list[Gate]]],
    settings: EraseSettings,
    progress: Progress,
    *,
    tables: bool,
) -> tuple[list[Measurement], list[str]]:
    """Every part's result, and what missed a gate.

    Args:
        tables: show each as soon as it is there.
    """  # fmt: skip
    from .. import show
    from ..then import run_part

    results: list[Measurement] = []
    missed: list[str] = []
    for part, own in gates:
        for result in run_part(part, erased, settings, progress):
            if tables:
                show.result(result, False)
            results.append(result)
            try:
                _check(part, own, result)
            except GateMissed as error:
                missed.append(str(error))
    return results, missed


def _check(part: Part, gates: list[Gate], result: Measurement) -> None:
    """Hold a part's result against its gates, as its own command does."""
    check = {"eval": check_evaluation, "attack": check_attack, "suite": check_suite}[part.by or part.command]
    check(gates, result)


def finish(
    erased: EraseResult, gates: Sequence[tuple[Part, list[Gate]]], settings: EraseSettings, *,
    repo: Repo | None, progress: Progress, as_json: bool,
) -> None:  # fmt: skip
    """Measure, upload, show, and end with the worst exit code: a missed gate's before that of what is not proven gone.

    Raises:
        GateMissed: and nothing is uploaded.
        NotConverged: the proof says so.
        UserError: see `run_part` and `publish`.
    """
    from .. import show
    from ..machine import Processes

    main, tables = Processes.here().main, not as_json
    if gates and main and tables:
        show.result(dataclasses.replace(erased, folder=None), False)  # without what to do next
    results, missed = measured(erased, gates, settings, progress, tables=main and tables)
    if not main:
        return
    if repo and missed:
        missed.append(f"nothing was uploaded to {repo.name}")
    elif repo:
        from ..publishing import publish

        source = Path(erased.exported or erased.run_dir)
        erased = dataclasses.replace(erased, hub=publish(source, repo, progress=progress, on_skipped=show.note))
    if not gates:
        show.result(erased, as_json)
    elif as_json:
        print(json.dumps(show.plain(erased) | {"then": [show.plain(one) for one in results]}))
    elif repo:
        show.values({"hub": erased.hub}, False)
    _end(erased, missed)


def _end(erased: EraseResult, missed: Sequence[str]) -> None:
    """Raise the worst of what is wrong."""
    unproven = list[str]()
    if (proof := erased.proof) and not proof.converged:
        unproven = [f"{erased.model_dir} is saved and not converged: {proof.sentence}; {proof.remedy}"]
    if missed:
        raise GateMissed("; ".join([*missed, *unproven]))
    if unproven:
        raise NotConverged(unproven[0])
