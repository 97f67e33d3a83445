"""What comes before an erasure: every check that needs no work, the model opened, and the prompts that it learns from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .concepts import Concept, check_distinct, findings, read_prompts, shuffled, without_conflicts
from .diffusion.dataset import check_pictures
from .diffusion.denoiser import Denoiser
from .diffusion.families import Family
from .diffusion.layout import channels_last
from .diffusion.sampler import FEW_STEP
from .disk import atomic, hash_files, hash_text
from .domains.base import Domain
from .errors import UserError
from .lineage import erased_from
from .machine import Processes, resolve_device
from .methods.interface import Parameters
from .methods.objectives import OBJECTIVES
from .methods.project import PROTECTING_RETAINED
from .methods.scorers import SCORERS
from .methods.selection import count_for
from .models.load import LoadedPipeline, open_pipeline
from .models.locate import domain_of_model, profile_of_model
from .picture_folders import list_pictures
from .preset_check import PRESET_FILE, name_of, names_file
from .recipes import ON_CPU
from .settings import EraseSettings, flag

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
    erased: list[str]  # names, or files of a user's own presets, of what is or was erased
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


def prepare(settings: EraseSettings, processes: Processes | None = None) -> Prepared:
    """Make every check that needs no work, then open the model and find the scope.

    Args:
        processes: that share the work.

    Raises:
        UserError: the first thing that is wrong.
    """
    settings.check_named()
    # without the download of a hub id, which comes after every other check
    domain = domain_of_model(settings.model, settings.model_config)
    names = dict.fromkeys(domain.spell(text) for text in settings.concepts)
    before = [name for name in erased_from(settings.model) if name_of(name) not in map(name_of, names)]
    others = frozenset([*names, *before])
    found = [domain.resolve(text, settings.anchor, others) for text in names]
    check_distinct(found)
    found = without_conflicts(found, before)
    erased = [*before, *(text if names_file(text) else one.name for text, one in zip(names, found, strict=True))]
    own = own_captions(settings.retain_prompts, erased, domain)
    remarks = _check_folders(settings, len(found)) + _warnings(names)
    processes = processes or Processes()
    device = resolve_device(processes.device(settings.device))
    opened = open_pipeline(settings.model, config=settings.model_config, device=device)
    settings = _fitted(settings, opened, device).resolved(opened.profile)
    _check_fit(settings, opened.family, processes.count)
    denoiser = Denoiser(
        opened.pipeline, mixed_precision=settings.mixed_precision, checkpointing=settings.checkpointing,
        compiled=settings.compile,
    )  # fmt: skip
    count = 0 if settings.retain_images else int(settings.open_share * settings.retain_count)
    open_ = open_set(found, erased, count, settings.seed, domain)
    rest = dataclasses.replace(settings, retain_count=settings.retain_count - count)
    retain = retain_set(found, erased, rest, own, domain) + open_
    scope = denoiser.scope(settings.scope)
    settings = dataclasses.replace(settings, lr=settings.lr or relative_rate(settings.relative_lr, scope))
    prepared = Prepared(settings, opened, denoiser, found, scope, retain, open_, erased)
    if denoiser.device.type == "cuda":
        channels_last(denoiser.module, prepared.scored)
    prompts = [*(text for pair in prepared.pairs for text in pair), *retain]
    return dataclasses.replace(prepared, remarks=(*remarks, *opened.family.remarks_on(prompts)))


@torch.no_grad()
def relative_rate(share: float, scope: Parameters) -> float:
    """A learning rate as a share of the root mean square of weights, to two digits.

    A step of Adam moves every weight by about the rate, whatever the gradient: the same share moves models of other widths
    equally far in proportion (as LAMB has it by layer, You et al., ICLR 2020, arXiv 1904.00962).
    """
    squares = sum(float(weight.float().square().sum()) for weight in scope.values())
    rms = math.sqrt(squares / sum(weight.numel() for weight in scope.values()))
    return float(f"{share * rms:.1e}")


def _warnings(names: Iterable[str]) -> list[str]:
    """That a preset of the user's own could be better."""
    files = [text for text in names if names_file(text) and findings(text)]
    return [f"{text} can be used, with warnings: see sdscissor concepts --check {text}" for text in files]


def copy_presets(concepts: Iterable[str], folder: Path) -> None:
    """Put copies of a user's own presets into a run's directory, by which the run's model is measured later."""
    for text in filter(names_file, map(str.strip, concepts)):
        with atomic(folder / f"{name_of(text)}{PRESET_FILE}") as new:
            new.write_bytes(Path(text).read_bytes())


def _check_folders(settings: EraseSettings, concepts: int) -> list[str]:
    """Read the user's pictures, see `check_pictures`."""
    folders = {name: getattr(settings, name) for name in ("forget_images", "retain_images")}
    given = {name: folder for name, folder in folders.items() if folder}
    if settings.recursive and not given:
        raise UserError("--recursive has no effect without --forget-images or --retain-images: leave it out")
    remarks = list[str]()
    for name, folder in given.items():
        filled = settings.resolved(profile_of_model(settings.model, settings.model_config))
        count = filled.forget_count * concepts if name == "forget_images" else filled.retain_count
        remarks += check_pictures(flag(name), folder, count, recursive=settings.recursive)
    return remarks


def _fitted(settings: EraseSettings, opened: LoadedPipeline, device: str) -> EraseSettings:
    """With --memory and --guidance, where they are left open, as fits model and device, and Adam in 8 bits where that can be had."""
    memory = settings.memory or ("balanced" if opened.profile == "large" else "fast")
    values: dict[str, Any] = dict(ON_CPU[memory]) if device == "cpu" else {}
    if memory == "low" and find_spec("bitsandbytes"):
        values["optimiser"] = "adam-8bit"
    values["guidance"] = opened.sampling["guidance"]
    open_ = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, memory=memory, **open_)


def _check_fit(settings: EraseSettings, family: Family, processes: int) -> None:
    """Refuse settings that fit neither the data, nor the model, nor the processes.

    Raises:
        UserError: the first that does not.
    """
    scorer, repair, part = SCORERS[settings.scorer], settings.repair, family.part
    if settings.solver == FEW_STEP and not family.few_steps:
        raise UserError(f"solver {FEW_STEP} is for UNets, and {settings.model} has a {PARTS[part]}: take own")
    if settings.optimiser == "adam-8bit" and not find_spec("bitsandbytes"):
        raise UserError("optimiser adam-8bit needs bitsandbytes: pip install bitsandbytes, or take adam")
    if settings.compile and settings.projection in PROTECTING_RETAINED:
        raise UserError(
            f"--compile allows one backward pass, and --projection {settings.projection} makes two: leave out --compile"
        )
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
        raise UserError(
            f"--retain-prompts {file} holds no caption that spares {', '.join(map(name_of, erased))}: add some to keep"
        )
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


def inputs_of(prepared: Prepared) -> dict[str, str]:
    """What the data depend on beside model and settings: setting -> sha256 of what it means now."""
    prompts = json.dumps([*map(dataclasses.asdict, prepared.concepts), prepared.retain_prompts])
    return hash_named_files(prepared.settings) | {"concept": hash_text(prompts)}
