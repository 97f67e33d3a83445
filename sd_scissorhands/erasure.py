"""The story of an erasure: data -> scores -> selection -> edited -> repair -> model, each stage leaving its file."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .concepts import Concept, read_prompts, shuffled, without_conflicts
from .diffusion.conditions import ConceptSlot, Mixture
from .diffusion.dataset import gather, list_pictures
from .diffusion.denoiser import Denoiser
from .diffusion.erasure_task import ErasureTask
from .domains.base import Domain
from .lineage import erased_from
from .machine import Processes, resolve_device
from .methods.selection import count_for
from .models.delta import Origin, write_delta
from .models.export import check_exportable, check_request, default_output, export
from .models.licence import read_licence
from .models.load import LoadedPipeline, open_pipeline, restore_weights, save_pipeline, stored_weights
from .models.locate import domain_of_model, find_pipeline
from .models.tensor_files import hash_tensors
from .recipes import ON_CPU
from .results.manifest import Stage
from .run import Progress, Run, check_free, silent
from .settings import EraseSettings, UserError
from .stages import unlearn


@dataclass
class Prepared:
    """A model opened for an erasure, with everything that must hold before work starts."""

    settings: EraseSettings  # resolved
    opened: LoadedPipeline
    denoiser: Denoiser
    concepts: list[Concept]
    parameters: dict[str, nn.Parameter]  # the scope
    retain_prompts: list[str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(forget prompt, neutral twin) of every pair of pictures, each concept's after the other's."""
        count, seed = self.settings.forget_count, self.settings.seed
        return [pair for concept in self.concepts for pair in shuffled(concept.pairs, count, seed)]

    @property
    def scope_size(self) -> int:
        """Weights in scope."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def thin(self) -> bool:
        """Whether what stays frozen, and the teacher, are kept in bf16; autocast makes that of them anyway."""
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
) -> dict[str, Any]:
    """Erase concepts from a model and save the result as a pipeline directory.

    Args:
        settings: what to erase, from what, and how.
        output_dir: the run directory; the erased model is `output_dir/model`.
        output_format: beside that directory, which every other command goes by, also a file for other programs; see
            `settings.OUTPUT_FORMATS`.
        resume: continue the same run after its last whole stage or checkpoint.
        progress: opens a progress bar for a stage.

    Returns:
        run_dir, model_dir, concepts, seed, scope_size, trimmed, conflict_rate, seconds and more; also in run.json. With an
        output format `exported`, the file's path.

    Raises:
        UserError: anything that the user can put right, before expensive work.
    """
    began, processes = time.monotonic(), Processes.here()
    check_request(output_format, flag="--output-format")
    if processes.main:
        check_free(output_dir, settings, resume=resume)
    processes.wait()
    prepared = prepare(settings, processes)
    check_exportable(prepared.opened.directory, output_format)
    source = prepared.opened.identity
    run = Run.open(output_dir, prepared.settings, source, resume=resume, processes=processes, began=began)
    if run.done("model"):
        return _exported(run, output_format, progress)
    try:
        facts = _unlearn(run, prepared, progress)
    except FloatingPointError as error:
        raise UserError(str(error)) from None
    weights = hash_tensors(prepared.denoiser.module.state_dict().items())
    if processes.main:
        save_pipeline(prepared.opened, output_dir / "model")
        if prepared.settings.train == "selection":
            facts |= _write_delta(prepared, output_dir / "delta.safetensors", weights)
    result = {
        "run_dir": str(output_dir), "model_dir": str(output_dir / "model"),
        "concepts": [c.name for c in prepared.concepts], "anchors": [c.anchor for c in prepared.concepts], "explicit": any(c.explicit for c in prepared.concepts),
        "recipe": settings.recipe, "seed": settings.seed, "scope_size": prepared.scope_size, **facts,
        "weights_sha256": weights, "licence": read_licence(prepared.opened.directory), "ema": prepared.opened.ema,
        "device": str(prepared.denoiser.device), "processes": processes.count, "seconds": run.seconds,
    }  # fmt: skip
    run.finish("model", Stage("model"), result)
    return _exported(run, output_format, progress)


def prepare(settings: EraseSettings, processes: Processes | None = None) -> Prepared:
    """Make every check that needs no work, then open the model and find the scope.

    Args:
        processes: that share the work.

    Raises:
        UserError: the first thing that is wrong.
    """
    if not settings.concepts:
        raise UserError("nothing to erase: name a preset, a word or a text with --concept")
    for folder in (settings.forget_images, settings.retain_images):
        if folder:
            list_pictures(Path(folder))
    # without the download of a hub id, which comes after every other check
    domain = domain_of_model(settings.model, settings.model_config)
    asked = dict.fromkeys(domain.spell(text) for text in settings.concepts)
    gone = [name for name in erased_from(settings.model) if name not in asked]
    beside = frozenset([*asked, *gone])
    found = without_conflicts([domain.resolve(text, settings.anchor, beside) for text in asked], gone)
    own = own_captions(settings.retain_prompts, [*gone, *(concept.name for concept in found)], domain)
    processes = processes or Processes()
    device = resolve_device(processes.device(settings.device))
    opened = open_pipeline(settings.model, config=settings.model_config, device=device)
    settings = _fitted(settings, opened, device).resolved(opened.profile)
    if settings.batch_size < processes.count:
        raise UserError(
            f"--batch-size {settings.batch_size} is less than the {processes.count} processes: each needs a sample"
        )
    if settings.forget_images and settings.repair == "paired":
        raise UserError("--forget-images are pictures without pairs, which --repair paired needs: add --repair anchor")
    if settings.scorer == "relevance" and (settings.forget_images or settings.retain_images):
        raise UserError(
            "--scorer relevance is zero-shot, it looks at nothing but what the model draws: "
            "leave out --forget-images and --retain-images"
        )
    if settings.scorer == "relevance" and opened.family.part != "unet":
        raise UserError(
            f"--scorer relevance has rules for UNets alone, and {settings.model} has a transformer: choose another scorer or recipe"
        )
    denoiser = Denoiser(
        opened.pipeline, mixed_precision=settings.mixed_precision, checkpointing=settings.checkpointing,
        compiled=settings.compile,
    )  # fmt: skip
    parameters = denoiser.scope(settings.scope)
    keep = retain_set(found, gone, settings, own, domain)
    return Prepared(settings, opened, denoiser, found, parameters, keep)


def own_captions(file: str | None, erased: Sequence[str], domain: Domain) -> list[str] | None:
    """The user's captions to keep, without those that ask for what is erased; None where no file is named.

    Raises:
        UserError: it cannot be read, or holds no other caption.
    """
    if file is None:
        return None
    own = read_prompts(Path(file), "--retain-prompts")
    if not (kept := [text for text in own if domain.spares(text, erased)]):
        raise UserError(f"--retain-prompts {file} holds no caption that spares {', '.join(erased)}: add some to keep")
    return kept


def retain_set(
    found: Sequence[Concept], gone: Sequence[str], settings: EraseSettings, own: list[str] | None, domain: Domain
) -> list[str]:
    """The diverse prompts to keep: an eighth neutral twins, an eighth near neighbours, the rest general captions or the user's.

    None asks for what is erased, now or by the runs behind the model (`gone`).
    """
    erased = [*gone, *(concept.name for concept in found)]

    def kept(texts: Iterable[str]) -> list[str]:
        return [text for text in texts if domain.spares(text, erased)]

    few = settings.retain_count // 8
    chosen = []
    for near in (kept(twin for c in found for _, twin in c.pairs), kept(text for c in found for text in c.neighbours)):
        chosen += shuffled(near, few, settings.seed) if near else []
    rest = settings.retain_count - len(chosen)
    general = own or kept(domain.captions(10 * settings.retain_count, settings.seed + 2))
    return chosen + shuffled(general, rest, settings.seed + 3)


# ---------------------------------------------------------------- stages


def _unlearn(run: Run, prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """From the data to the repaired weights in `prepared.denoiser.module`."""
    denoiser, settings, parameters = prepared.denoiser, prepared.settings, prepared.parameters
    thin = prepared.thin
    data, _ = run.stage("data", lambda: _gather(prepared, run.processes, progress), denoiser.device)
    task = ErasureTask(denoiser, data, settings, _mixture(prepared))
    task.teacher = denoiser.teacher(parameters, thin=thin)
    scored = parameters
    if settings.threshold_scope == "global":
        scored = denoiser.scope("full") | scored
    if thin:
        denoiser.thin(scored)
        prepared.opened.pipeline.vae.to("cpu")
    parts = parts_of(settings, run.processes.count)
    facts = unlearn(run, task, parameters, settings, scored=scored, progress=progress, parts=parts)
    if thin:
        restore_weights(prepared.opened, set(denoiser.parameters) - set(parameters))
    return facts


def _write_delta(prepared: Prepared, path: Path, weights: str) -> dict[str, Any]:
    """What `sdscissor apply` makes the model of again from its base: little, where single weights were trained."""
    opened, s = prepared.opened, prepared.settings
    origin = Origin(
        opened.name, opened.weights_sha256, weights, s.recipe, tuple(c.name for c in prepared.concepts), s.seed
    )
    return write_delta(path, opened.denoiser.state_dict(), base=stored_weights(opened), origin=origin).to_json()


def _exported(run: Run, output_format: str, progress: Progress) -> dict[str, Any]:
    """A finished run's result, and its model in another format beside it; what is there already is left as it is."""
    result = run.manifest.result or {}
    if output_format == "diffusers" or not run.processes.main:
        return result
    file = default_output(find_pipeline(run.path), output_format)
    if not file.exists():
        export(run.path, output_format, output=file, progress=progress)
    return result | {"exported": str(file)}


def parts_of(settings: EraseSettings, processes: int) -> int:
    """In how many parts each of several processes takes its share of a batch."""
    return math.ceil(2 * settings.batch_size / (settings.micro_batch * processes)) if settings.micro_batch else 1


def _gather(prepared: Prepared, processes: Processes, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    settings, pairs, keep = prepared.settings, prepared.pairs, prepared.retain_prompts
    with progress("data", 2 * len(pairs) + settings.retain_count) as tick:
        data = gather(prepared.denoiser, settings, pairs, keep, group=processes, tick=tick)
    return data, {"pairs": pairs, "retain": keep}


def _fitted(settings: EraseSettings, opened: LoadedPipeline, device: str) -> EraseSettings:
    """With --memory and --guidance, where they are left open, as fits model and device, and Adam in 8 bits where that can be had."""
    memory = settings.memory or ("balanced" if opened.profile == "sd" else "fast")
    values: dict[str, Any] = dict(ON_CPU[memory]) if device == "cpu" else {}
    if memory == "low" and find_spec("bitsandbytes"):
        values["optimiser"] = "adam-8bit"
    values["guidance"] = opened.sampling["guidance"]
    open_ = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, memory=memory, **open_)


def _mixture(prepared: Prepared) -> Mixture | None:
    if prepared.settings.conditions == "name":
        return None
    slots = {prompt: ConceptSlot(*slot, c.generic) for c in prepared.concepts for prompt, slot in c.places.items()}
    return Mixture(prepared.denoiser, [slots[forget] for forget, _ in prepared.pairs])
