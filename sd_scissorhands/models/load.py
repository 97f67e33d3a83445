"""Loading a pipeline, with every check made before the expensive ones, and saving it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.families import Family, StableDiffusion, family_of
from ..disk import atomic, share
from ..domains import domain_of
from ..domains.base import Domain
from ..errors import UserError, reason
from ..files import read_object
from ..naming import absolute
from ..results.manifest import BaseModel
from .check_loaded import check_loaded, misfit
from .locate import locate
from .pipeline_copy import copy_pipeline, without_origin, write_component
from .pipeline_directory import SAFETY, UNUSED, PipelineDirectory
from .tensor_files import cast, hash_tensors

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
        return self.files.profile

    @property
    def identity(self) -> BaseModel:
        """As a run's manifest names its base model."""
        return BaseModel(absolute(self.name), self.weights_sha256, self.files.sha256, self.files.ema)


def open_pipeline(
    model: str, *, config: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPipeline:
    """Load a pipeline of one of the `FAMILIES` from the embedded model, a directory, a single file, or the hub.

    Everything that was loaded is compared with the files, see `check_loaded`: a model that diffusers or transformers would
    fill up with random weights and a warning is refused.

    Raises:
        UserError: no such model, not a supported pipeline, pickled or damaged weights, NaN, or weights that are not
            those of the files.
    """
    files = locate(model, config)
    files.check()
    pipeline = _load(files, dtype)
    check_loaded(pipeline, files)
    weights_sha256 = hash_tensors(getattr(pipeline, files.family.part).state_dict().items())
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
        found = None
        with suppress(Exception):  # whatever else is wrong with it
            found = misfit(files)
        if found:
            raise UserError(f"{found}: they do not belong together, get both again") from error
        raise UserError(f"{files.directory} cannot be loaded by diffusers: {reason(error)}") from error


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


@torch.no_grad()
def round_weights(loaded: LoadedPipeline) -> None:
    """Round the denoiser's weights to the precision that each has in its files, to hold what `save_pipeline` writes.

    Raises:
        UserError: one that the precision cannot hold.
    """
    files, weights = loaded.files.denoiser, loaded.denoiser.state_dict()
    for name in files.keys:
        weights[name].copy_(cast(f"{files.name}.{name}", weights[name], files.dtype(name)))


def save_pipeline(loaded: LoadedPipeline, directory: Path, dtype: torch.dtype | None = None) -> str | None:
    """The pipeline in `directory`, written under a temporary name and renamed: all but the denoiser is copied from its files.

    Args:
        dtype: of the denoiser's file; None: as it is in its files, see `write_component`.

    Returns:
        What was not carried over, in a sentence, see `copy_pipeline`.
    """
    denoiser = loaded.files.denoiser
    with atomic(directory) as folder:
        left_out = copy_pipeline(loaded.files, folder, without=(denoiser.name,))
        write_component(denoiser, folder / denoiser.name, loaded.denoiser.state_dict(), dtype=dtype)
        without_origin(folder / denoiser.name / "config.json")
        share(folder)
    return left_out
