"""The story of a forgetting by an image classifier: scores -> selection -> edited -> repair -> model -> figures."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .classifier.data import Parts, Split, split_at_random, split_by_class, split_by_indices
from .classifier.forgetting_task import ClassifierTask
from .classifier.load import RECIPE, Classifier, hash_weights, open_classifier, save_classifier
from .classifier.measure import Figure, gap, measure
from .classifier.reading import digits, read_folder, read_indices, read_npz
from .classifier.train import retrain
from .machine import PeakMemory, resolve_device
from .methods.interface import Parameters
from .methods.objectives import loss_of
from .results.forget import ForgetResult
from .results.manifest import Stage
from .run import Progress, Run, check_free, silent
from .settings import DIGITS, ForgetSettings, UserError
from .stages import Stages

PARTS = 4  # of a measurement, for its progress


@dataclass
class Prepared:
    """A classifier opened for a forgetting, with everything that must hold before work starts."""

    settings: ForgetSettings  # resolved
    opened: Classifier
    split: Split
    task: ClassifierTask
    parameters: Parameters  # the scope
    says: str  # what is forgotten
    remarks: tuple[str, ...]  # on what was skipped of the user's files


def forget(
    settings: ForgetSettings,
    output_dir: Path,
    *,
    own: Classifier | None = None,
    parts: Parts | None = None,
    shared: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> ForgetResult:
    """Make a classifier forget a class or single training pictures, save it in the format it came in, and measure it.

    Args:
        settings: what to forget, from what, and how.
        output_dir: the run directory; the model is `output_dir/model`.
        own: a torch module of one's own, see `classifier.load.wrap`, in the place of `settings.model`; it is left as it is.
        parts: its data, in the place of `settings.data`.
        shared: where the embedded classifier and those retrained without D_f are kept, for many runs to share; None: made
            again by every run.
        resume: continue the same run after its last whole stage or checkpoint.
        progress: opens a progress bar for a stage.

    Raises:
        UserError: anything that the user can put right, before expensive work.
    """
    check_free(output_dir, settings, resume=resume)
    prepared = prepare(settings, shared, own=own, parts=parts)
    opened, task = prepared.opened, prepared.task
    run = Run.open(output_dir, prepared.settings, opened.identity, resume=resume)
    if run.done("model"):
        return ForgetResult.from_json(run.manifest.result)
    before = copy.deepcopy(opened.model)
    began, peak = time.monotonic(), PeakMemory()
    scored = task.scope("full") if prepared.settings.threshold_scope == "global" else prepared.parameters
    stages = Stages(run, task, prepared.parameters, prepared.settings, progress)
    selection = stages.select(scored)
    trimmed = stages.edit(selection)
    repair = stages.repair(selection)
    seconds, peak_bytes = round(time.monotonic() - began, 2), peak.bytes()
    save_classifier(opened, run.path / "model")
    figures, others = _measured(prepared, before, shared, progress)
    result = {
        "run_dir": str(output_dir), "model_dir": str(output_dir / "model"), "recipe": settings.recipe,
        "seed": settings.seed, "forget": prepared.says, "scope_size": sum(p.numel() for p in prepared.parameters.values()),
        "trimmed": trimmed, "conflict_rate": repair.conflict_rate, "mean_correction": repair.mean_correction,
        "steps": repair.step, "seconds": seconds, "peak_bytes": peak_bytes, "weights_sha256": hash_weights(opened.model),
        "figures": _values(figures), "n": {name: figure.n for name, figure in figures.items()},
        "intervals": _intervals(figures), "notes": {name: one.note for name, one in figures.items() if one.note},
        **{name: other and _values(other) for name, other in others.items()},
        "intervals_beside": {name: _intervals(other) for name, other in others.items() if other},
        **({"remarks": list(prepared.remarks)} if prepared.remarks else {}),
    }  # fmt: skip
    run.finish("model", Stage("model"), result)
    return ForgetResult.from_json(result)


def prepare(
    settings: ForgetSettings, shared: Path | None = None, *, own: Classifier | None = None, parts: Parts | None = None
) -> Prepared:
    """Make every check that needs no work, then open classifier and data and find the scope.

    Raises:
        UserError: the first thing that is wrong.
    """
    wanted = [
        name for name in ("forget_class", "forget_indices", "forget_random") if getattr(settings, name) is not None
    ]
    if len(wanted) != 1:
        raise UserError("say what to forget with one of --forget-class, --forget-indices and --forget-random")
    settings = settings.resolved("classifier")
    loss_of(settings.repair, "classifier")
    if settings.relearn_every:
        raise UserError("--relearn-every is for diffusion models: leave it out")
    if own is not None:
        settings = dataclasses.replace(settings, model=own.name)
    if settings.model != DIGITS and settings.data is None and parts is None:
        raise UserError(f"--data is missing: {settings.model} needs an image folder or an .npz file")
    indices = read_indices(Path(settings.forget_indices)) if settings.forget_indices else None
    device = resolve_device(settings.device)
    if own is not None:
        opened = dataclasses.replace(own, model=copy.deepcopy(own.model).to(device))
    else:
        opened = open_classifier(
            settings.model, device, revision=settings.revision, cache_dir=shared, seed=settings.seed
        )
    parts = parts or _read(settings, opened)
    if settings.forget_class is not None:
        split, says = split_by_class(parts, settings.forget_class), f"class {settings.forget_class}"
    elif indices is not None:
        split, says = split_by_indices(parts, indices, f"--forget-indices {settings.forget_indices}"), ""
    else:
        split, says = (
            split_at_random(parts, settings.forget_random or 0, settings.seed),
            f"random {settings.forget_random:.3g}",
        )
    task = ClassifierTask(
        opened.model, split, batch_size=settings.batch_size, seed=settings.seed, repair=settings.repair
    )
    says = says or f"{len(split.forget)} samples"
    return Prepared(settings, opened, split, task, task.scope(settings.scope), says, parts.remarks)


def _read(settings: ForgetSettings, opened: Classifier) -> Parts:
    if settings.data is None:
        return digits()
    path = Path(settings.data)
    if path.suffix == ".npz":
        prepare = opened.preprocess if opened.preprocessing is not None else None
        return read_npz(path, opened.names, prepare, seed=settings.seed)
    return read_folder(path, opened.names, opened.preprocess, seed=settings.seed)


# ---------------------------------------------------------------- figures


def _measured(
    prepared: Prepared, before: nn.Module, shared: Path | None, progress: Progress
) -> tuple[dict[str, Figure], dict[str, dict[str, Figure] | None]]:
    """Figures of the model, and by name those of the original and of the retrained."""
    split, seed = prepared.split, prepared.settings.seed
    other = _retrained(prepared, before, shared, progress)
    models = {"model": prepared.opened.model, "original": before} | ({"retrained": other} if other is not None else {})
    with progress("figures", PARTS * len(models)) as tick:
        look: Callable[..., dict[str, Figure]] = lambda model, at: measure(  # noqa: E731
            model, split, seed=seed, original=at, tick=lambda: tick(1)
        )
        original = look(before, 1.0)
        at = original["forget_accuracy"].value or 0.0
        found = {"original": original} | {name: look(model, at) for name, model in models.items() if name != "original"}
    figures, retrained = found["model"], found.get("retrained")
    if retrained is not None:
        for one in found.values():
            one["gap"] = gap(one, retrained)
    return figures, {"original": original, "retrained": retrained}


def _retrained(prepared: Prepared, before: nn.Module, shared: Path | None, progress: Progress) -> nn.Module | None:
    """The model trained without D_f: the one that the user names, or the embedded one trained again; else None."""
    settings, split, opened = prepared.settings, prepared.split, prepared.opened
    if settings.retrained:
        return open_classifier(settings.retrained, resolve_device(settings.device)).model
    if settings.model != DIGITS or settings.data is not None:
        return None
    kept = shared / f"retrained-{prepared.says}-{settings.seed}".replace(" ", "-") if shared else None
    if kept is not None and (kept / "config.json").exists():
        return open_classifier(str(kept), resolve_device(settings.device)).model
    with progress("retraining, to compare with", RECIPE["epochs"]) as tick:
        model = retrain(before, split.retain, seed=settings.seed, tick=lambda: tick(1), **RECIPE)
    if kept is not None:
        save_classifier(Classifier(model, str(kept), opened.names, opened.preprocessing, hash_weights(model)), kept)
    return model


def _values(figures: Mapping[str, Figure]) -> dict[str, float | None]:
    return {name: figure.value for name, figure in figures.items()}


def _intervals(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    return {name: [figure.low, figure.high] for name, figure in figures.items()}
