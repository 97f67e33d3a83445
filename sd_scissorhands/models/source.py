"""What is exported, compared or verified: a run's model or any pipeline directory, its parts tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.families import Family
from ..lineage import MANIFEST, run_of
from ..run import Run
from ..settings import UserError
from .files import check_configs, check_directory, parts_of, weight_files
from .keys import canonical
from .load import hash_tensors, locate
from .tensor_files import TORCH, Stored, cast


@dataclass(frozen=True)
class Part:
    """One network of a pipeline, as it lies on disk."""

    name: str  # unet or transformer, vae, text_encoder, ...
    file: Stored
    keys: dict[str, str]  # the file's name of every tensor, by its canonical one

    def tensor(self, name: str) -> Tensor:
        """One tensor, by its canonical name."""
        return self.file.tensor(self.keys[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self.file.shape(self.keys[name])

    def dtype(self, name: str) -> torch.dtype:
        """As it lies in its file."""
        return TORCH[self.file.entries[self.keys[name]]["dtype"]]

    def cast(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, in another precision."""
        return cast(f"{self.name}.{name}", self.tensor(name), dtype)

    def sha256(self) -> str:
        """See `hash_tensors`; of a denoiser the hash that run.json names."""
        return hash_tensors((name, self.tensor(name)) for name in self.keys)


@dataclass(frozen=True)
class Source:
    """A pipeline directory and the run that made it, if one did."""

    directory: Path
    manifest: Mapping[str, Any] | None
    variant: str | None = None  # which of the weights there

    @classmethod
    def find(cls, path: Path) -> Source:
        """From a run directory, or whatever else names a model, see `naming`.

        Raises:
            UserError: no such thing, not finished, or not whole.
        """
        if (path / MANIFEST).exists():
            run, path = Run.read(path), path / "model"
            if "concepts" not in run.manifest["settings"]:
                raise UserError(f"{path.parent} is no run of sdscissor erase: this is for diffusion models")
            if not run.done("model"):
                raise UserError(f"{path.parent} is a run that has not ended: continue it with erase --resume")
        return cls.of(str(path))

    @classmethod
    def of(cls, name: str) -> Source:
        """From the string that names a pipeline.

        Raises:
            UserError: no such thing, or not whole.
        """
        try:
            directory, variant = locate(name)
        except UserError as error:
            raise UserError(str(error).replace("--model ", "", 1)) from None
        check_directory(directory, variant)
        return cls(directory, run_of(directory), variant)

    @property
    def home(self) -> Path | None:
        """The run directory."""
        return self.directory.parent if self.manifest else None

    def config(self, part: str) -> dict[str, Any]:
        """The config of one part.

        Raises:
            UserError: it is missing or damaged.
        """
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        file = self.directory / part / name
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None

    def part(self, name: str) -> Part:
        """One network.

        Raises:
            UserError: its weights are damaged, or lie in several files.
        """
        first, *others = weight_files(self.directory, name, self.variant)
        if others:
            raise UserError(f"{self.directory / name} lies in {1 + len(others)} files: save it in one (max_shard_size)")
        file = Stored.open(first)
        keys = {own: key for key in file.entries if (own := canonical(name, key))}
        return Part(name, file, keys)

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Every network of the pipeline, the denoiser first."""
        return {name: self.part(name) for name in parts_of(self.directory, self.family)}

    @cached_property
    def family(self) -> type[Family]:
        """What kind of pipeline it is."""
        return check_configs(self.directory)

    @property
    def denoiser(self) -> Part:
        """The network that is edited: UNet or transformer."""
        return self.parts[self.family.part]

    def check_weights(self) -> str:
        """The denoiser's hash, which must be the one that the run's manifest names.

        Raises:
            UserError: it is another: what would be said of recipe and concepts would be untrue.
        """
        found = self.denoiser.sha256()
        told = ((self.manifest or {}).get("result") or {}).get("weights_sha256", found)
        if found != told:
            raise UserError(
                f"{self.directory} has other weights (sha256 {found[:12]}) than its run.json names ({told[:12]}): "
                "they were changed after the erasure; name the model alone, in a directory without run.json"
            )
        return found
