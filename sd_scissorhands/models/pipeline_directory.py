"""A pipeline directory on disk: its components tensor by tensor, and the run that made it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.families import Family
from ..lineage import run_of
from ..results.manifest import Manifest
from ..settings import UserError
from .files import check_configs, components_of, weight_files
from .keys import canonical
from .tensor_files import FLOATS, TensorFile, cast, hash_tensors


@dataclass(frozen=True)
class Component:
    """One network of a pipeline, as it lies on disk."""

    name: str  # unet or transformer, vae, text_encoder, ...
    file: TensorFile
    keys: dict[str, str]  # the file's name of every tensor, by its canonical one

    def tensor(self, name: str) -> Tensor:
        """One tensor, by its canonical name."""
        return self.file.tensor(self.keys[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self.file.shape(self.keys[name])

    def dtype(self, name: str) -> torch.dtype:
        """Its precision in the file."""
        return FLOATS[self.file.entries[self.keys[name]]["dtype"]]

    def cast(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, in another precision."""
        return cast(f"{self.name}.{name}", self.tensor(name), dtype)

    def float_tensors(self) -> dict[str, Tensor]:
        """All tensors in float32, by canonical name."""
        return {name: self.tensor(name).float() for name in self.keys}

    def sha256(self) -> str:
        """See `hash_tensors`; of a denoiser the hash that run.json names."""
        return hash_tensors((name, self.tensor(name)) for name in self.keys)


@dataclass(frozen=True)
class PipelineDirectory:
    """A pipeline directory that `check_directory` let through."""

    directory: Path
    variant: str | None = None  # which of the weights there

    @cached_property
    def manifest(self) -> Manifest | None:
        """Of the run that made it; None if none did."""
        return run_of(self.directory)

    @cached_property
    def family(self) -> type[Family]:
        """What kind of pipeline it is."""
        return check_configs(self.directory)

    def component(self, name: str) -> Component:
        """One network.

        Raises:
            UserError: its weights are damaged, or lie in several files.
        """
        first, *others = weight_files(self.directory, name, self.variant)
        if others:
            raise UserError(f"{self.directory / name} lies in {1 + len(others)} files: save it in one (max_shard_size)")
        file = TensorFile.open(first)
        return Component(name, file, {own: key for key in file.entries if (own := canonical(name, key))})

    @cached_property
    def components(self) -> dict[str, Component]:
        """Every network, the denoiser first."""
        return {name: self.component(name) for name in components_of(self.directory, self.family)}

    @property
    def denoiser(self) -> Component:
        """The network that is edited: UNet or transformer."""
        return self.components[self.family.part]

    def check_weights(self) -> str:
        """The denoiser's hash, which must be the one that the run's manifest names.

        Raises:
            UserError: it is another, so that the manifest's recipe and concepts are not this model's.
        """
        found = self.denoiser.sha256()
        result = (self.manifest and self.manifest.result) or {}
        if (named := result.get("weights_sha256", found)) != found:
            raise UserError(
                f"{self.directory} has other weights (sha256 {found[:12]}) than its run.json names ({named[:12]}): "
                "they were changed after the erasure; name the model alone, in a directory without run.json"
            )
        return found
