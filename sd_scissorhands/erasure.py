"""The story of an erasure: data -> scores -> selection -> edit -> repair -> model, each stage leaving its file."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .concepts import Concept, read_prompts, shuffled, without_conflicts
from .diffusion.conditions import ConceptSlot, Mixture
from .diffusion.dataset import check_pictures, gather
from .diffusion.denoiser import Denoiser
from .diffusion.erasure_task import ErasureTask
from .disk import hash_files, hash_text, locked
from .domains.base import Domain
from .lineage import erased_from
from .machine import Processes, resolve_device
from .methods.interface import Parameters
from .methods.objectives import OBJECTIVES
from .methods.repair import Repair
from .methods.scorers import SCORERS
from .methods.selection import count_for
from .models.delta import Origin, write_delta
from .models.export import check_exportable, check_request, default_output, export
from .models.licence import read_licence
from .models.load import LoadedPipeline, open_pipeline, restore_weights, round_weights, save_pipeline, stored_weights
from .models.locate import domain_of_model, find_pipeline
from .models.tensor_files import DTYPES, hash_tensors
from .picture_folders import list_pictures
from .recipes import ON_CPU
from .results.erase import EraseResult
from .results.manifest import Stage
from .run import Progress, Run, check_free, silent
from .settings import EraseSettings, UserError, flag
from .stages import Stages

PARTS = {"unet": "UNet", "transformer": "transformer"}  # of a pipeline, what denoises -> in words


@dataclass
class Prepared:
    """A model opened for an erasure, with everything that must hold before work starts."""

    settings: EraseSettings  # resolved
    opened: LoadedPipeline
    denoiser: Denoiser
    concepts: list[Concept]
    parameters: Parameters  # the scope
    retain_prompts: list[str]  # those that leave a concept open come last
    open_prompts: list[str]
    remarks: tuple[str, ...] = ()  # what was left out of the user's files

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(forget prompt, the same with the anchor) of every pair of pictures, each concept's after the other's."""
        count, seed = self.settings.forget_count, self.settings.seed
        return [pair for concept in self.concepts for pair in shuffled(concept.pairs, count, seed)]

    @property
    def scope_size(self) -> int:
        """Weights in scope."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def scored(self) -> Parameters:
        """What is scored: the scope, or all weights where the threshold is taken over them."""
        everywhere = self.settings.threshold_scope == "global"
        return self.denoiser.scope("full") | self.parameters if everywhere else self.parameters

    @property
    def casts_frozen(self) -> bool:
        """Whether frozen weights and the teacher are held in bf16; autocast makes that of them anyway."""
        return self.settings.memory == "low" and self.settings.mixed_precision == "bf16"

    @property
    def trimmed(self) -> int:
        """Weights that the edit will change, at most."""
        return count_for(self.settings.top_k, self.scope_size) if self.settings.edit != "none" else 0


def erase(
    settings: EraseSettings,
    output_dir: Path,
    *,
    output_format: str = "diffusers",
    resume: bool = False,
    progress: Progress = silent,
) -> EraseResult:
    """Erase concepts from a model and save the result as a pipeline directory.

    Args:
        settings: what to erase, from what, and how.
        output_dir: the run directory; the erased model is `output_dir/model`.
        output_format: beside that directory, which every other command goes by, also a file for other programs; see
            `settings.OUTPUT_FORMATS`.
        resume: continue the same run after its last whole stage or checkpoint.
        progress: opens a progress bar for a stage.

    Returns:
        What the run came to; also in run.json, without the file of another format.

    Raises:
        UserError: anything that the user can put right, before expensive work.
    """
    began, processes = time.monotonic(), Processes.here()
    check_request(output_format, flag="--output-format")
    with locked(output_dir, processes.main):
        if processes.main:
            check_free(output_dir, settings, resume=resume)
        processes.wait()
        prepared = prepare(settings, processes)
        check_exportable(prepared.opened.files, output_format)
        run = Run.open(
            output_dir, prepared.settings, prepared.opened.identity, resume=resume, inputs=_inputs(prepared),
            processes=processes, began=began,
        )  # fmt: skip
        if not run.done("model"):
            _work(run, prepared, progress)
        return _exported(run, output_format, progress)


# ---------------------------------------------------------------- before the work


def prepare(settings: EraseSettings, processes: Processes | None = None) -> Prepared:
    """Make every check that needs no work, then open the model and find the scope.

    Args:
        processes: that share the work.

    Raises:
        UserError: the first thing that is wrong.
    """
    if not settings.concepts:
        raise UserError("nothing to erase: name a preset, a word or a text with --concept")
    # without the download of a hub id, which comes after every other check
    domain = domain_of_model(settings.model, settings.model_config)
    names = dict.fromkeys(domain.spell(text) for text in settings.concepts)
    before = [name for name in erased_from(settings.model) if name not in names]
    others = frozenset([*names, *before])
    found = without_conflicts([domain.resolve(text, settings.anchor, others) for text in names], before)
    erased = [*before, *(concept.name for concept in found)]
    own = own_captions(settings.retain_prompts, erased, domain)
    remarks = _check_folders(settings, len(found), domain.profile)
    processes = processes or Processes()
    device = resolve_device(processes.device(settings.device))
    opened = open_pipeline(settings.model, config=settings.model_config, device=device)
    settings = _fitted(settings, opened, device).resolved(opened.profile)
    _check_fit(settings, opened.family.part, processes.count)
    denoiser = Denoiser(
        opened.pipeline, mixed_precision=settings.mixed_precision, checkpointing=settings.checkpointing,
        compiled=settings.compile,
    )  # fmt: skip
    count = 0 if settings.retain_images else int(settings.open_share * settings.retain_count)
    open_ = open_set(found, erased, count, settings.seed, domain)
    retain = retain_set(
        found, erased, dataclasses.replace(settings, retain_count=settings.retain_count - count), own, domain
    )
    retain += open_
    prepared = Prepared(settings, opened, denoiser, found, denoiser.scope(settings.scope), retain, open_)
    prompts = [*(text for pair in prepared.pairs for text in pair), *retain]
    return dataclasses.replace(prepared, remarks=(*remarks, *opened.family.remarks_on(prompts)))


def _check_folders(settings: EraseSettings, concepts: int, profile: str) -> list[str]:
    """Read the user's pictures, see `check_pictures`."""
    folders = {name: getattr(settings, name) for name in ("forget_images", "retain_images")}
    given = {name: folder for name, folder in folders.items() if folder}
    if settings.recursive and not given:
        raise UserError("--recursive has no effect without --forget-images or --retain-images: leave it out")
    remarks = list[str]()
    for name, folder in given.items():
        filled = settings.resolved(profile)
        count = filled.forget_count * concepts if name == "forget_images" else filled.retain_count
        remarks += check_pictures(flag(name), folder, count, recursive=settings.recursive)
    return remarks


def _fitted(settings: EraseSettings, opened: LoadedPipeline, device: str) -> EraseSettings:
    """With --memory and --guidance, where they are left open, as fits model and device, and Adam in 8 bits where that can be had."""
    memory = settings.memory or ("balanced" if opened.profile == "sd" else "fast")
    values: dict[str, Any] = dict(ON_CPU[memory]) if device == "cpu" else {}
    if memory == "low" and find_spec("bitsandbytes"):
        values["optimiser"] = "adam-8bit"
    values["guidance"] = opened.sampling["guidance"]
    open_ = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, memory=memory, **open_)


def _check_fit(settings: EraseSettings, part: str, processes: int) -> None:
    """Refuse settings that fit neither the data, nor the model, nor the processes.

    Args:
        part: of the pipeline, what denoises; of `PARTS`.

    Raises:
        UserError: the first that does not.
    """
    scorer, repair = SCORERS[settings.scorer], settings.repair
    if settings.batch_size < processes:
        raise UserError(
            f"--batch-size {settings.batch_size} is less than the {processes} processes: each needs a sample"
        )
    if settings.forget_images and OBJECTIVES[repair].needs_pairs:
        others = ", ".join(name for name, one in OBJECTIVES if one.diffusion and not one.needs_pairs)
        raise UserError(
            f"--forget-images are pictures without pairs, which --repair {repair} needs: add --repair {others}"
        )
    if scorer.zero_shot and (settings.forget_images or settings.retain_images):
        raise UserError(
            f"--scorer {settings.scorer} is zero-shot, it sees nothing but what the model draws: "
            "leave out --forget-images and --retain-images"
        )
    if scorer.families and part not in scorer.families:
        known = " and ".join(f"{PARTS[one]}s" for one in scorer.families)
        raise UserError(
            f"--scorer {settings.scorer} has rules for {known} alone, and {settings.model} has a {PARTS[part]}: "
            "choose another scorer or recipe"
        )


def own_captions(file: str | None, erased: Sequence[str], domain: Domain) -> list[str] | None:
    """The user's captions to retain, without those that ask for what is erased; None where no file is named.

    Raises:
        UserError: it cannot be read, or holds no other caption.
    """
    if file is None:
        return None
    own = [text for text in read_prompts(Path(file), "--retain-prompts") if domain.spares(text, erased)]
    if not own:
        raise UserError(f"--retain-prompts {file} holds no caption that spares {', '.join(erased)}: add some to keep")
    return own


def retain_set(
    found: Sequence[Concept], erased: Sequence[str], settings: EraseSettings, own: list[str] | None, domain: Domain
) -> list[str]:
    """The diverse prompts to retain: an eighth with the anchor, an eighth near neighbours, the rest general captions or the user's.

    None asks for what is erased, now or by the runs behind the model.
    """

    def sparing(texts: Iterable[str]) -> list[str]:
        return [text for text in texts if domain.spares(text, erased)]

    few, chosen = settings.retain_count // 8, list[str]()
    anchors, neighbours = (text for c in found for _, text in c.pairs), (text for c in found for text in c.neighbours)
    for near in (sparing(anchors), sparing(neighbours)):
        chosen += shuffled(near, few, settings.seed) if near else []
    general = own or sparing(domain.captions(10 * settings.retain_count, settings.seed + 2))
    return chosen + shuffled(general, settings.retain_count - len(chosen), settings.seed + 3)


def open_set(found: Sequence[Concept], erased: Sequence[str], count: int, seed: int, domain: Domain) -> list[str]:
    """Prompts that leave the concepts open, as many for each."""
    each = [domain.open_prompts(c, seed=seed, count=math.ceil(count / len(found)), erased=erased) for c in found]
    return [text for texts in zip(*each, strict=False) for text in texts][:count]


def hash_named_files(s: EraseSettings) -> dict[str, str]:
    """What is in the folders and files that settings name: setting -> sha256."""
    found = {}
    for name in ("forget_images", "retain_images"):
        if folder := getattr(s, name):
            found[name] = hash_files(list_pictures(Path(folder), s.recursive).files)
    if s.retain_prompts:
        found["retain_prompts"] = hash_files([Path(s.retain_prompts)])
    return found


def _inputs(prepared: Prepared) -> dict[str, str]:
    """What the data depend on beside model and settings: setting -> sha256 of what it means now."""
    prompts = json.dumps([*map(dataclasses.asdict, prepared.concepts), prepared.retain_prompts])
    return hash_named_files(prepared.settings) | {"concept": hash_text(prompts)}


# ---------------------------------------------------------------- the work


def _work(run: Run, prepared: Prepared, progress: Progress) -> None:
    """Every stage that is not done yet."""
    task = _task(prepared, _data(run, prepared, progress))
    stages = Stages(run, task, prepared.parameters, prepared.settings, progress)
    selection = stages.select(prepared.scored)
    trimmed = stages.edit(selection)
    repair = stages.repair(selection, slices=slices_of(prepared.settings, run.processes.count))
    _save_model(run, prepared, trimmed, repair)


def _data(run: Run, prepared: Prepared, progress: Progress) -> dict[str, Tensor]:
    """Draw or read the pictures, see `gather`."""
    settings, pairs, retain = prepared.settings, prepared.pairs, prepared.retain_prompts
    named = [[prepared.opened.domain.naming(text, c) for text in prepared.open_prompts] for c in prepared.concepts]

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Draw or read the pictures; the manifest records the prompts."""
        with progress("data", 2 * len(pairs) + settings.retain_count) as tick:
            data = gather(
                prepared.denoiser, settings, pairs, retain, named if prepared.open_prompts else (),
                group=run.processes, tick=tick,
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


def _save_model(run: Run, prepared: Prepared, trimmed: int, repair: Repair) -> None:
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
        mean_correction=repair.mean_correction, steps=repair.step, **delta, weights_sha256=weights,
        licence=read_licence(opened.directory), ema=opened.files.ema, device=str(denoiser.device),
        processes=run.processes.count, seconds=run.seconds, left_out=left_out, remarks=prepared.remarks,
    )  # fmt: skip
    run.finish("model", Stage("model"), result.to_json())


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
