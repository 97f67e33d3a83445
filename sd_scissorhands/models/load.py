"""Loading a pipeline, with every check made before the expensive ones, and saving it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.families import Family, StableDiffusion, family_of
from ..disk import atomic, share
from ..domains import domain_of
from ..domains.base import Domain
from ..files import fault, read_object
from ..results.manifest import BaseModel
from ..settings import UserError
from .locate import locate
from .pipeline_directory import ONE_FILE, SAFETY, UNUSED, PipelineDirectory
from .tensor_files import hash_tensors

STEPS = 50  # of sampling, as is published for SD 1


@dataclass(frozen=True)
class LoadedPipeline:
    """A loaded pipeline, where it came from and what it draws."""

    pipeline: Any
    name: str  # as the user wrote it
    files: PipelineDirectory
    weights_sha256: str  # of the denoiser's loaded tensors, see `hash_tensors`
    domain: Domain  # what it draws
    sampling: dict[str, Any]  # steps and guidance that its pictures are judged with

    @property
    def directory(self) -> Path:
        """Where its files lie."""
        return self.files.directory

    @property
    def family(self) -> Family:
        """Its kind: Stable Diffusion, SDXL, ..."""
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
    def identity(self) -> BaseModel:
        """As a run's manifest names its base model."""
        return BaseModel(self.name, self.weights_sha256, self.files.ema)


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
    files = locate(model, config)
    files.check()
    pipeline = _load(files, dtype)
    weights_sha256 = _check_weights(getattr(pipeline, files.family.part), files, dtype)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    domain = domain_of(files.directory)
    facts = read_object(files.directory / domain.marker) if domain.marker else {}
    sampling = facts.get("sampling", {"steps": STEPS, "guidance": family_of(pipeline).guidance})
    return LoadedPipeline(pipeline, model, files, weights_sha256, domain, sampling)


def _load(files: PipelineDirectory, dtype: torch.dtype) -> Any:
    import diffusers

    absent = set(files.family.optional) - set(files.component_names)  # diffusers needs them passed as None
    others = {text.replace("text_encoder", kind): None for text in absent for kind in ("text_encoder", "tokenizer")}
    others |= UNUSED | (SAFETY if issubclass(files.family, StableDiffusion) else {})
    how: dict[str, Any] = dict(torch_dtype=dtype, use_safetensors=True, local_files_only=True, variant=files.variant)
    try:
        return getattr(diffusers, files.index["_class_name"]).from_pretrained(files.directory, **how, **others)
    except Exception as error:
        raise UserError(f"{files.directory} cannot be loaded by diffusers: {fault(error)}") from error


def _check_weights(module: nn.Module, files: PipelineDirectory, dtype: torch.dtype) -> str:
    """The hash of a loaded denoiser's tensors, which must be finite and those of its files."""
    stored, loaded = files.denoiser_tensors(), module.state_dict()
    if stored.keys() == loaded.keys():
        for name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(
                    f"{files.directory}: {files.family.called}'s {name} holds NaN or infinite values: "
                    "this checkpoint is broken, use another"
                )
        found = hash_tensors(loaded.items())
        if found == hash_tensors((name, tensor.to(dtype)) for name, tensor in stored.items()):
            return found
    where = files.directory / files.family.part
    raise UserError(f"{where} was not loaded as it is on disk: its config.json does not fit its weights")


def stored_weights(loaded: LoadedPipeline) -> dict[str, Tensor]:
    """The denoiser's weights as they are in its files, float32 on the CPU."""
    return {name: tensor.float() for name, tensor in loaded.files.denoiser_tensors().items()}


@torch.no_grad()
def restore_weights(loaded: LoadedPipeline, names: set[str]) -> None:
    """Put the denoiser's weights of these names back to what they are in its files, as after a cast to bf16."""
    stored = stored_weights(loaded)
    for name, parameter in loaded.denoiser.named_parameters():
        if name in names:
            parameter.data = stored[name].to(parameter.device)


def save_pipeline(loaded: LoadedPipeline, directory: Path) -> None:
    """The whole pipeline as safetensors in `directory`, written under a temporary name and renamed."""
    with atomic(directory) as folder:
        loaded.pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=ONE_FILE)
        if marker := loaded.domain.marker:
            shutil.copyfile(loaded.directory / marker, folder / marker)
        share(folder)
