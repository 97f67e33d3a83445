"""The story of a forgetting by an image classifier: scores -> selection -> edited -> repair -> model -> figures."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .classifier.data import Parts, Split, split_at_random, split_by_class, split_by_indices
from .classifier.forgetting_task import ClassifierTask
from .classifier.load import Classifier, hash_weights, open_classifier, profile_of, save_classifier
from .classifier.measure import Estimate, gap, measure
from .classifier.reading import digits, read_folder, read_indices, read_npz
from .classifier.train import Training, retrain
from .disk import hash_files, hash_text, locked, write_json
from .errors import UserError
from .files import read_object
from .machine import PeakMemory, resolve_device
from .methods.interface import Parameters
from .methods.objectives import loss_of
from .results.forget import ForgetResult
from .results.manifest import Stage
from .run import Progress, Run, check_free, silent
from .settings import DIGITS, ForgetSettings
from .stages import Stages

MEASURED_PARTS = 4  # of a measurement, for its progress


@dataclass
class PreparedForgetting:
    """A classifier opened for a forgetting, with everything that must hold before work starts."""

    settings: ForgetSettings  # resolved
    opened: Classifier
    split: Split
    task: ClassifierTask
    parameters: Parameters  # the scope
    target: str  # what is forgotten, in words
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
        shared: where the embedded classifier and those retrained without D_f are stored, for many runs to share; None: made
            again by every run.
        resume: continue the same run after its last whole stage or checkpoint.
        progress: opens a progress bar for a stage.

    Raises:
        UserError: anything that the user can put right, before expensive work.
    """
    with locked(output_dir):
        check_free(output_dir, settings, resume=resume)
        prepared = prepare(settings, shared, own=own, parts=parts)
        inputs = _inputs(prepared)
        run = Run.open(output_dir, prepared.settings, prepared.opened.identity, resume=resume, inputs=inputs)
        if not run.done("model"):
            _work(run, prepared, inputs["data"], shared, progress)
        result = run.manifest.result_as(ForgetResult)
        return dataclasses.replace(result, run_dir=str(run.path), model_dir=str(run.path / "model"))


def _inputs(prepared: PreparedForgetting) -> dict[str, str]:
    """What the work depends on beside model and settings: setting -> sha256 of what it names now."""
    split, digest, found = prepared.split, hashlib.sha256("\n".join(prepared.split.names).encode()), dict[str, str]()
    if prepared.settings.forget_indices:
        found["forget_indices"] = hash_files([Path(prepared.settings.forget_indices)])
    for data in (split.forget, split.retain, split.unseen, split.test):
        for tensor in (data.pictures, data.labels):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    found["data"] = digest.hexdigest()
    if (retrained := prepared.settings.retrained) and Path(retrained).is_dir():
        found["retrained"] = hash_files(sorted(Path(retrained).glob("*.safetensors")))
    return found


def _work(run: Run, prepared: PreparedForgetting, data: str, shared: Path | None, progress: Progress) -> None:
    """Every stage that is not done yet, and the figures; `data`: see `_measured`."""
    settings, opened, task = prepared.settings, prepared.opened, prepared.task
    before = copy.deepcopy(opened.model)
    peak = PeakMemory()
    scored = task.scope("full") if prepared.settings.threshold_scope == "global" else prepared.parameters
    stages = Stages(run, task, prepared.parameters, prepared.settings, progress)
    selection = stages.select(scored)
    trimmed = stages.edit(selection)
    repair = stages.repair(selection)
    seconds, peak_bytes = run.seconds, peak.bytes()
    save_classifier(opened, run.path / "model")
    found = _measured(prepared, before, data, shared, progress)
    figures, beside = found["model"], {name: found[name] for name in ("original", "retrained") if name in found}
    result = ForgetResult(
        run_dir=str(run.path), model_dir=str(run.path / "model"), recipe=settings.recipe, seed=settings.seed,
        forget=prepared.target, scope_size=sum(p.numel() for p in prepared.parameters.values()), trimmed=trimmed,
        conflict_rate=repair.conflict_rate, mean_correction=repair.mean_correction, steps=repair.step, seconds=seconds,
        peak_bytes=peak_bytes, weights_sha256=hash_weights(opened.model), figures=_values(figures),
        n={name: figure.n for name, figure in figures.items()}, intervals=_intervals(figures),
        notes={name: figure.note for name, figure in figures.items() if figure.note}, original=_values(found["original"]),
        retrained=_values(found["retrained"]) if "retrained" in found else None,
        intervals_beside={name: _intervals(other) for name, other in beside.items()}, remarks=prepared.remarks,
    )  # fmt: skip
    run.finish("model", Stage("model"), result.to_json())


def prepare(
    settings: ForgetSettings, shared: Path | None = None, *, own: Classifier | None = None, parts: Parts | None = None
) -> PreparedForgetting:
    """Make every check that needs no work, then open classifier and data and find the scope.

    Raises:
        UserError: the first thing that is wrong.
    """
    targets = (settings.forget_class, settings.forget_indices, settings.forget_random)
    if sum(target is not None for target in targets) != 1:
        raise UserError("say what to forget with one of --forget-class, --forget-indices and --forget-random")
    asked = settings if own is None else dataclasses.replace(settings, model=own.name)
    settings = asked.resolved("classifier")
    loss_of(settings.repair, "classifier")
    if settings.relearn_every:
        raise UserError("--relearn-every is for diffusion models: leave it out")
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
    settings = asked.resolved(profile_of(opened.model.state_dict()))
    parts = parts or _read(settings, opened)
    if settings.forget_class is not None:
        split, target = split_by_class(parts, settings.forget_class), f"class {settings.forget_class}"
    elif indices is not None:
        split, target = split_by_indices(parts, indices, f"--forget-indices {settings.forget_indices}"), ""
    else:
        share = settings.forget_random or 0
        split, target = split_at_random(parts, share, settings.seed), f"random {share:.3g}"
    task = ClassifierTask(
        opened.model, split, batch_size=settings.batch_size, seed=settings.seed, repair=settings.repair
    )
    target = target or f"{len(split.forget)} samples"
    return PreparedForgetting(settings, opened, split, task, task.scope(settings.scope), target, parts.remarks)


def _read(settings: ForgetSettings, opened: Classifier) -> Parts:
    if settings.data is None:
        return digits()
    path = Path(settings.data)
    if path.suffix.lower() == ".npz":
        prepare = opened.preprocess if opened.preprocessing is not None else None
        return read_npz(path, opened.names, prepare, seed=settings.seed)
    return read_folder(path, opened.names, opened.preprocess, seed=settings.seed)


# ---------------------------------------------------------------- figures


def _measured(
    prepared: PreparedForgetting, before: nn.Module, data: str, shared: Path | None, progress: Progress
) -> dict[str, dict[str, Estimate]]:
    """Figures of the "model", of the "original" and, where there is one, of the "retrained".

    Args:
        data: sha256 of the pictures and of what is forgotten of them.
    """
    models = {"original": before, "model": prepared.opened.model}
    if (retrained := _retrained(prepared, before, shared, progress)) is not None:
        models["retrained"] = retrained
    found, accuracy = dict[str, dict[str, Estimate]](), 1.0
    with progress("figures", MEASURED_PARTS * len(models)) as tick:
        for name, model in models.items():
            file = None
            if shared and name != "model":  # the same for every recipe
                parts = hash_weights(model), data, prepared.settings.seed, accuracy
                file = shared / f"figures-{hash_text(str(parts))[:16]}.json"
            found[name] = _figures(model, prepared, accuracy, file, tick)
            accuracy = found["original"]["forget_accuracy"].value or 0.0
    if "retrained" in found:
        for one in found.values():
            one["gap"] = gap(one, found["retrained"])
    return found


def _figures(
    model: nn.Module, prepared: PreparedForgetting, original: float, file: Path | None, tick: Callable[[int], None]
) -> dict[str, Estimate]:
    """What `measure` finds; read from `file` where another run of the comparison left it there."""
    if file and file.exists():
        tick(MEASURED_PARTS)
        return {name: Estimate(**figure) for name, figure in read_object(file, "delete it").items()}
    found = measure(model, prepared.split, seed=prepared.settings.seed, original=original, tick=lambda: tick(1))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {name: dataclasses.asdict(figure) for name, figure in found.items()})
    return found


def _retrained(
    prepared: PreparedForgetting, before: nn.Module, shared: Path | None, progress: Progress
) -> nn.Module | None:
    """The model trained without D_f: the one that the user names, or the embedded one trained again; else None."""
    settings, split, opened = prepared.settings, prepared.split, prepared.opened
    if settings.retrained:
        return open_classifier(settings.retrained, resolve_device(settings.device)).model
    if settings.model != DIGITS or settings.data is not None:
        return None
    forgotten = hashlib.sha256(split.forgotten.numpy().data).hexdigest()[:12]
    stored = shared / f"retrained-{forgotten}-{settings.seed}" if shared else None
    if stored is not None and (stored / "config.json").exists():
        return open_classifier(str(stored), resolve_device(settings.device)).model
    with progress("retraining, to compare with", Training.epochs) as tick:
        model = retrain(before, split.retain, Training(), seed=settings.seed, tick=lambda: tick(1))
    if stored is not None:
        save_classifier(Classifier(model, str(stored), opened.names, opened.preprocessing, hash_weights(model)), stored)
    return model


def _values(figures: Mapping[str, Estimate]) -> dict[str, float | None]:
    return {name: figure.value for name, figure in figures.items()}


def _intervals(figures: Mapping[str, Estimate]) -> dict[str, tuple[float, float]]:
    return {name: (figure.low, figure.high) for name, figure in figures.items()}
