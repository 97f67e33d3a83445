"""The story of an erasure: data -> scores -> selection -> edit -> repair -> model, each stage leaving its file."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .diffusion.conditions import ConceptSlot, Mixture
from .diffusion.dataset import gather, pair_correlation
from .diffusion.drawing_again import DrawingOnce, DrawLatents
from .diffusion.erasure_task import ErasureTask
from .disk import locked
from .drawn_before import SWITCH, switched_on
from .errors import UserError
from .machine import Processes
from .methods.objectives import OBJECTIVES
from .methods.repair import Repair
from .models.delta import Origin, write_delta
from .models.export import check_exportable, check_request, default_output, export
from .models.licence import read_licence
from .models.load import restore_weights, round_weights, save_pipeline, stored_weights
from .models.locate import find_pipeline
from .models.tensor_files import DTYPES, hash_tensors
from .preparation import Prepared, copy_presets, inputs_of, prepare
from .proof import can_tell, held_out, prove
from .results.erase import EraseResult
from .results.manifest import MANIFEST, Stage
from .results.proof import Proof
from .run import Progress, Run, check_free, silent
from .settings import EraseSettings
from .speeds import kind_of, learn
from .stages import Stages
from .tracking import RunLog

IN_COMMON = 0.1  # by how much pairs correlate more than any two pictures, at least


def erase(
    settings: EraseSettings,
    output_dir: Path,
    *,
    output_format: str = "diffusers",
    resume: bool = False,
    log: RunLog | None = None,
    progress: Progress = silent,
    consider: Callable[[Prepared], None] = lambda prepared: None,
) -> EraseResult:
    """Erase concepts from a model and save the result as a pipeline directory.

    Args:
        settings: what to erase, from what, and how.
        output_dir: the run directory; the erased model is `output_dir/model`.
        output_format: beside that directory, which every other command goes by, also a file for other programs; see
            `settings.OUTPUT_FORMATS`.
        resume: continue the same run after its last whole stage or checkpoint.
        log: takes the repair's figures as they come; of the first process alone.
        progress: opens a progress bar for a stage.
        consider: called with what a new run starts from, before any work; it may raise.

    Returns:
        What the run came to; also in run.json, without the file of another format.

    Raises:
        UserError: anything that the user can put right, before expensive work.
    """
    began, processes = time.monotonic(), Processes.here()
    check_request(output_format, flag="--output-format")
    switched_on()
    with locked(output_dir, processes.main):
        if processes.main:
            check_free(output_dir, settings, resume=resume)
        processes.wait()
        prepared = prepare(settings, processes)
        check_exportable(prepared.opened.files, output_format)
        if processes.main and not (output_dir / MANIFEST).exists():
            consider(prepared)
        run = Run.open(
            output_dir, prepared.settings, prepared.opened.identity, resume=resume, inputs=inputs_of(prepared),
            processes=processes, began=began,
        )  # fmt: skip
        if processes.main:
            copy_presets(prepared.settings.concepts, run.path)
        if not run.done("model"):
            _work(run, prepared, progress, log)
        return _exported(run, output_format, progress)


# ---------------------------------------------------------------- the work


def _work(run: Run, prepared: Prepared, progress: Progress, log: RunLog | None) -> None:
    """Every stage that is not done yet."""
    settings, draw = prepared.settings, _draw(run, prepared)
    data = _data(run, prepared, draw, progress)
    task = _task(prepared, data)
    held = held_out(run, prepared, draw, task.teacher or {}, progress) if settings.verify else None
    stages = Stages(run, task, prepared.parameters, settings, progress, log)
    selection = stages.select(prepared.scored)
    trimmed = stages.edit(selection)
    look = held.look if held and settings.calibrate and can_tell(held) else None
    repair = stages.repair(selection, slices=slices_of(settings, run.processes.count), look=look)
    proof = prove(held, progress) if held else None
    if proof and repair.calibration and not proof.whole:
        raise UserError(
            f"{run.path} holds no model, for every one harmed the rest too much: {proof.sentence}: {proof.remedy}"
        )
    _save_model(run, prepared, trimmed, repair, proof, pair_correlation(data))


def _draw(run: Run, prepared: Prepared) -> DrawLatents:
    """What draws as the original, once; and the run counts from here on what is evaluated and what the cache had."""
    denoiser, opened = prepared.denoiser, prepared.opened
    before = denoiser.evaluations
    run.counters["evaluations"] = lambda: denoiser.evaluations - before
    if not switched_on():
        return denoiser.generate
    original = opened.identity.to_json() | {"compiled": prepared.settings.compile}
    original.pop("model", None)  # its name
    draw = DrawingOnce(denoiser, opened.name, original, run.remarks)
    run.counters["cached"] = lambda: draw.pictures
    return draw


def _data(run: Run, prepared: Prepared, draw: DrawLatents, progress: Progress) -> dict[str, Tensor]:
    """Draw or read the pictures, see `gather`."""
    settings, pairs, retain = prepared.settings, prepared.pairs, prepared.retain_prompts
    naming, open_ = prepared.opened.domain.naming, prepared.open_prompts
    named = [[naming(text, concept) for text in open_] for concept in prepared.concepts] if open_ else []

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Draw or read the pictures; the manifest records the prompts."""
        with progress("data", 2 * len(pairs) + settings.retain_count) as tick:
            data = gather(
                prepared.denoiser, settings, pairs, retain, named,
                draw=draw, group=run.processes, tick=tick,
            )  # fmt: skip
        return data, {"pairs": pairs, "retain": retain, "left_out": len(retain) - len(data["retain_latents"])}

    return run.stage("data", make, prepared.denoiser.device)[0]


def _task(prepared: Prepared, data: dict[str, Tensor]) -> ErasureTask:
    """The denoiser with its data, and a frozen copy of what will change as its teacher."""
    denoiser = prepared.denoiser
    task = ErasureTask(denoiser, data, prepared.settings, _mixture(prepared))
    task.teacher = denoiser.teacher(prepared.parameters, dtype=torch.bfloat16 if prepared.casts_frozen else None)
    if prepared.casts_frozen:
        denoiser.cast_frozen(prepared.scored)
        prepared.opened.pipeline.vae.to("cpu")
    return task


def _mixture(prepared: Prepared) -> Mixture | None:
    """The conditions that the concepts are unlearned under; None for their own prompts."""
    if prepared.settings.conditions == "name":
        return None
    slots = {prompt: ConceptSlot(*slot, c.generic) for c in prepared.concepts for prompt, slot in c.places.items()}
    return Mixture(prepared.denoiser, [slots[forget] for forget, _ in prepared.pairs])


def slices_of(settings: EraseSettings, processes: int) -> int:
    """In how many slices each of several processes takes its share of a batch."""
    return math.ceil(2 * settings.batch_size / (settings.micro_batch * processes)) if settings.micro_batch else 1


def _save_model(
    run: Run, prepared: Prepared, trimmed: int, repair: Repair, proof: Proof | None, pairs: tuple[float, float] | None
) -> None:
    """Write the erased pipeline, a delta where single weights were trained, and what the run came to."""
    opened, denoiser, settings = prepared.opened, prepared.denoiser, prepared.settings
    if prepared.casts_frozen:
        restore_weights(opened, set(denoiser.parameters) - set(prepared.parameters))
    if settings.dtype == "base":
        round_weights(opened)
    weights, delta = hash_tensors(denoiser.module.state_dict().items()), dict[str, Any]()
    names = tuple(concept.name for concept in prepared.concepts)
    left_out = None
    if run.processes.main:
        left_out = save_pipeline(opened, run.path / "model", DTYPES.get(settings.dtype))
        if settings.train == "selection":
            origin = Origin(opened.name, opened.weights_sha256, weights, settings.recipe, names, settings.seed)
            changed, base = opened.denoiser.state_dict(), stored_weights(opened)
            delta = write_delta(run.path / "delta.safetensors", changed, base=base, origin=origin).to_json()
    result = EraseResult(
        run_dir=str(run.path), model_dir=str(run.path / "model"), concepts=names,
        anchors=tuple(concept.anchor for concept in prepared.concepts),
        explicit=any(concept.explicit for concept in prepared.concepts), recipe=settings.recipe, seed=settings.seed,
        scope_size=prepared.scope_size, trimmed=trimmed, conflict_rate=repair.conflict_rate,
        mean_correction=repair.mean_correction, steps=repair.step, converged=proof.converged if proof else None, proof=proof, pair_correlation=pairs and pairs[0], **delta, weights_sha256=weights,
        licence=read_licence(opened.directory), ema=opened.files.ema, device=str(denoiser.device),
        processes=run.processes.count, seconds=run.seconds, left_out=left_out,
        remarks=(*prepared.remarks, *_remarks_on(pairs, settings.repair), *run.remarks, *_remarks_on_cache(run)),
    )  # fmt: skip
    run.finish("model", Stage("model"), result.to_json())
    if run.processes.main and run.processes.count == 1:
        learn(kind_of(denoiser.module, settings.memory, denoiser.latent_shape[-1]), run.manifest)


def _remarks_on(pairs: tuple[float, float] | None, repair: str) -> list[str]:
    """A sentence on pairs that have nothing in common, where the repair goes by pairs."""
    if pairs is None or not OBJECTIVES[repair].needs_pairs or pairs[0] >= pairs[1] + IN_COMMON:
        return []
    return [
        f"the concept's pictures have little in common with their pairs (correlation {pairs[0]:.2f}; {pairs[1]:.2f} between any two): "
        "choose an --anchor, or twins in a preset of your own, that keep the composition"
    ]


def _remarks_on_cache(run: Run) -> list[str]:
    """A sentence on pictures that were not drawn."""
    stages = (run.manifest.stage(name) for name in ("data", "held-out"))
    if not (count := sum(stage.cached or 0 for stage in stages if stage)):
        return []
    return [
        f"{count} pictures were drawn before, and came from the cache: sdscissor cache lists it, {SWITCH}=off draws anew"
    ]


def _exported(run: Run, output_format: str, progress: Progress) -> EraseResult:
    """A finished run's result, and its model in another format beside it; what is there already is left as it is."""
    result = run.manifest.result_as(EraseResult)
    result = dataclasses.replace(result, run_dir=str(run.path), model_dir=str(run.path / "model"))
    if output_format == "diffusers" or not run.processes.main:
        return result
    file = default_output(find_pipeline(run.path), output_format)
    note = None
    if not file.exists():
        note = export(run.path, output_format, output=file, progress=progress).note
    return dataclasses.replace(result, exported=str(file), export_note=note)
