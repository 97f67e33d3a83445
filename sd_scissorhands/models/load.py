"""Opening a pipeline with every check made before the expensive ones, and knowing afterwards what was opened."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.families import Family, StableDiffusion, family_of
from ..disk import atomic, share
from ..domains import domain_of
from ..domains.base import Domain
from ..settings import UserError
from .files import check_configs, check_directory, ema_of, parts_of, read_index, read_weights
from .locate import domain_of_model, locate

__all__ = [
    "LoadedPipeline",
    "check_directory",
    "domain_of_model",
    "hash_tensors",
    "locate",
    "open_pipeline",
    "originals",
    "restore",
    "save_pipeline",
]  # fmt: skip


STEPS = 50  # of sampling, as is published for SD 1


@dataclass(frozen=True)
class LoadedPipeline:
    """A loaded pipeline and what it is."""

    pipeline: Any
    name: str  # as the user wrote it
    directory: Path  # where its files lie
    weights: str  # sha256 of the denoiser's loaded tensors, see `hash_tensors`
    domain: Domain  # what it draws
    sampling: dict[str, Any]  # steps and guidance that its pictures are judged with
    variant: str | None = None  # which of the weights there

    @property
    def family(self) -> Family:
        """What its family has to say."""
        return family_of(self.pipeline)

    @property
    def denoiser(self) -> nn.Module:
        """The module that is edited: UNet or transformer."""
        return self.family.module

    @property
    def profile(self) -> str:
        """Which of `recipes.PROFILES` fits."""
        return self.domain.profile

    @property
    def identity(self) -> dict[str, str]:
        """What a run's manifest says of its base model."""
        return {"model": self.name, "weights_sha256": self.weights, "ema": self.ema}

    @property
    def ema(self) -> str:
        """Whether its weights are a moving average, see `ema_of`."""
        return ema_of(self.directory, self.family.part, self.variant)


def open_pipeline(
    model: str, *, config: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPipeline:
    """Load a pipeline of one of the `FAMILIES` from the embedded model, a directory, a single file, or the hub.

    The weights that were loaded are compared with those in the files, tensor by tensor, by hash: a model that diffusers
    would fill up with random weights and a warning is refused.

    Raises:
        UserError: no such model, not a supported pipeline, pickled or damaged weights, NaN, or weights that are not
            those of the files.
    """
    directory, variant = locate(model, config)
    check_directory(directory, variant)
    kind = check_configs(directory)
    pipeline = _load(directory, kind, dtype, variant)
    module, file = getattr(pipeline, kind.part), read_weights(directory, kind.part, variant)
    same = file.keys() == module.state_dict().keys()
    if same:
        check_finite(module, directory, called=kind.called)
        weights = hash_tensors(module.state_dict().items())
        same = weights == hash_tensors((name, tensor.to(dtype)) for name, tensor in file.items())
    if not same:
        raise UserError(
            f"{directory / kind.part} was not loaded as it is on disk: its config.json does not fit its weights"
        )
    del file
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    domain = domain_of(directory)
    facts = json.loads((directory / domain.marker).read_text()) if domain.marker else {}
    sampling = facts.get("sampling", {"steps": STEPS, "guidance": family_of(pipeline).guidance})
    return LoadedPipeline(pipeline, model, directory, weights, domain, sampling, variant)


def originals(opened: LoadedPipeline) -> dict[str, Tensor]:
    """The denoiser's weights as they are in the file, float32 on the CPU."""
    file = read_weights(opened.directory, opened.family.part, opened.variant)
    return {name: tensor.float() for name, tensor in file.items()}


@torch.no_grad()
def restore(opened: LoadedPipeline, frozen: set[str]) -> None:
    """Put back the denoiser's weights of these names as they are in the file: whoever thinned them has rounded them."""
    file = originals(opened)
    for name, parameter in opened.denoiser.named_parameters():
        if name in frozen:
            parameter.data = file[name].to(parameter.device)


def save_pipeline(opened: LoadedPipeline, directory: Path) -> None:
    """The whole pipeline as safetensors in `directory`, written under a temporary name and renamed."""
    with atomic(directory) as folder:
        opened.pipeline.save_pretrained(folder, safe_serialization=True)
        if marker := opened.domain.marker:
            shutil.copyfile(opened.directory / marker, folder / marker)
        share(folder)


# What a pipeline may have and ours never use; a safety checker have Stable Diffusion 1 and 2 alone.
UNUSED: dict[str, Any] = dict(feature_extractor=None, image_encoder=None)
SAFETY: dict[str, Any] = dict(safety_checker=None, requires_safety_checker=False)


def _load(directory: Path, family: type[Family], dtype: torch.dtype, variant: str | None) -> Any:
    import diffusers

    name = read_index(directory)["_class_name"]
    absent = set(family.optional) - set(parts_of(directory, family))  # diffusers wants these to be said to be None
    others = {part.replace("text_encoder", kind): None for part in absent for kind in ("text_encoder", "tokenizer")}
    others |= UNUSED | (SAFETY if issubclass(family, StableDiffusion) else {})
    try:
        return getattr(diffusers, name).from_pretrained(
            directory, torch_dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant, **others
        )
    except Exception as error:
        raise UserError(f"{directory} cannot be loaded by diffusers: {str(error).strip().splitlines()[0]}") from error


def check_finite(module: nn.Module, where: Path, *, called: str) -> None:
    """Raises UserError naming the first parameter that holds a NaN or an infinity."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"{where}: {called}'s {name} holds NaN or infinite values: this checkpoint is broken, use another"
            )


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, shapes and float32 values, in the order of the names.

    Half precision is exact in float32, so a model has the same hash as stored in fp16 and as loaded in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
