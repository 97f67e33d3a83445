"""What an erasure and a forgetting share: scores -> selection -> edited -> repair, each stage leaving its file in the run."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from .disk import read_tensors, write_json
from .machine import PeakMemory
from .methods import method as methods
from .methods.distributed import SINGLE_PROCESS, ProcessGroup
from .methods.edits import EDITS
from .methods.interface import Parameters, Task
from .methods.project import RULES
from .methods.repair import OPTIMISERS, Repair
from .methods.scorers import SCORERS
from .methods.selection import Selection, select
from .results.manifest import Stage
from .run import Progress, Run
from .settings import MethodSettings, UserError


def unlearn(
    run: Run,
    task: Task,
    parameters: Parameters,
    settings: MethodSettings,
    *,
    scored: Parameters,
    progress: Progress,
    parts: int = 1,
) -> dict[str, Any]:
    """Score, select, edit and repair; what is done already in `run` is read from there.

    Args:
        task: the model, with the parameters in it, and its data.
        parameters: what may change.
        settings: resolved.
        scored: what the share `top_k` is taken of; only what is in `parameters` too is changed.
        parts: that a process takes its batch of the repair in.

    Returns:
        trimmed (weights that the edit changed), conflict_rate and mean_correction (None without a projection) and steps.

    Raises:
        UserError: the model overflows, or the scorer finds nothing to go by.
    """
    selection, trimmed = Selection({}), 0
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        if settings.edit != "none" or settings.train == "selection":
            selection = _select(run, task, parameters, scored, settings, progress)
        if settings.edit != "none":
            trimmed = len(selection)
            _edit(run, task, parameters, selection, settings)
        repair = _repair(run, task, parameters, selection, settings, progress, parts)
    except (FloatingPointError, ValueError) as error:
        raise UserError(str(error)) from None
    conflicts = [record["conflict"] for record in repair.history]
    corrections = [record["correction"] for record in repair.history if record["conflict"]]
    projected = bool(conflicts) and settings.projection != "none"
    return {
        "trimmed": trimmed,
        "conflict_rate": sum(conflicts) / len(conflicts) if projected else None,
        "mean_correction": sum(corrections) / len(corrections) if corrections else None,
        "steps": repair.step,
    }


def options_of(
    method: methods.Scorer | methods.Edit,
    settings: MethodSettings,
    group: ProcessGroup = SINGLE_PROCESS,
    tick=lambda: None,
) -> methods.Options:
    """What of the settings concerns a scorer or an edit."""
    shared = methods.Options(settings.score_draws, settings.seed, settings.granularity, group, tick)
    return methods.options_for(method, shared, settings.options)


def _select(
    run: Run, task: Task, parameters: Parameters, scored: Parameters, settings: MethodSettings, progress: Progress
) -> Selection:
    device = next(iter(scored.values())).device
    for parameter in scored.values():
        parameter.requires_grad_(True)

    def make_scores() -> tuple[dict[str, Tensor], dict[str, Any]]:
        scorer = SCORERS[settings.scorer]
        with progress("scores", settings.score_draws * scorer.passes) as tick:
            options = options_of(scorer, settings, run.processes, lambda: tick(1))
            return methods.score(task, scored, settings.scorer, options), {}

    def make_selection() -> tuple[dict[str, Tensor], dict[str, Any]]:
        by_layer = settings.threshold_scope == "layer"
        selection = select(scores, settings.top_k, granularity=settings.granularity, by_layer=by_layer)
        selection = selection.within(set(parameters))
        layers = {name: [selection.count(name), p.numel()] for name, p in parameters.items()}
        return selection.indices, {"trimmed": len(selection), "layers": layers}

    scores = {} if run.done("selection") else run.stage("scores", make_scores, device)[0]
    indices, _ = run.stage("selection", make_selection, device)
    for name in set(scored) - set(parameters):
        scored[name].requires_grad_(False)
    return Selection(indices)


def _edit(run: Run, task: Task, parameters: Parameters, selection: Selection, settings: MethodSettings) -> None:
    """Edit; the file holds the new values of the selected weights, in the order of the selection's indices."""

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        methods.edit(task, parameters, selection, settings.edit, options_of(EDITS[settings.edit], settings))
        return {
            name: parameters[name].detach().view(-1)[rows.to(parameters[name].device)].cpu()
            for name, rows in selection.indices.items()
        }, {}

    fresh, _ = run.stage("edited", make)
    with torch.no_grad():
        for name, rows in selection.indices.items():
            parameters[name].view(-1)[rows.to(parameters[name].device)] = fresh[name].to(parameters[name])


def _repair(
    run: Run,
    task: Task,
    parameters: Parameters,
    selection: Selection,
    settings: MethodSettings,
    progress: Progress,
    parts: int,
) -> Repair:
    if settings.train == "selection" and not len(selection):
        raise ValueError(f"--train selection has nothing to train: --scorer {settings.scorer} found no weight")
    device = next(iter(parameters.values())).device
    peak = PeakMemory(device)
    repair = Repair(
        task, parameters, settings.steps, settings.lr, settings.forget_weight, RULES[settings.projection],
        settings.memory_every, settings.relearn_every,
        OPTIMISERS[settings.optimiser],
        selection if settings.train == "selection" else None, parts, run.processes,
    )  # fmt: skip
    if not settings.steps:
        return repair
    entry = run.manifest.stages.get("repair")
    if entry and (run.path / entry["file"]).exists():
        tensors, metadata = read_tensors(run.path / entry["file"], device)
        repair.restore(tensors, entry["step"], json.loads(metadata["history"]))
    with progress("repair", settings.steps) as tick:
        tick(repair.step)

        def after_step(repair: Repair) -> None:
            tick(1)
            _checkpoint(run, repair)

        repair.run(after_step)
    run.manifest.stages["repair"]["peak_bytes"] = peak.total()
    if run.processes.main:
        write_json(run.path / "repair" / "history.json", repair.history)
    return repair


def _checkpoint(run: Run, repair: Repair) -> None:
    """Save at the end of every epoch, where the memories are taken afresh anyway; only the newest is kept."""
    if repair.step % repair.memory_every and repair.step < repair.steps:
        return
    before = run.manifest.stages.get("repair")
    file = f"repair/step-{repair.step}.safetensors"
    run.write(file, repair.state(), {"history": json.dumps(repair.history)})
    run.finish("repair", Stage(file, step=repair.step))
    if before and before["file"] != file and run.processes.main:
        (run.path / before["file"]).unlink(missing_ok=True)
