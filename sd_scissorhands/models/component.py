"""One network of a pipeline on disk: its files, and its tensors by their canonical names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .tensor_files import FLOATS, TensorFile, cast, hash_tensors


@dataclass(frozen=True)
class Component:
    """One network of a pipeline."""

    name: str  # unet or transformer, vae, text_encoder, ...
    files: tuple[TensorFile, ...]  # one, or the shards
    keys: dict[str, str]  # the files' name of every tensor, by its canonical one
    index: Path | None = None  # of the shards

    @cached_property
    def _holders(self) -> dict[str, TensorFile]:
        return {key: file for file in self.files for key in file.entries}

    def file(self, name: str) -> TensorFile:
        """The file that holds a tensor, by its canonical name."""
        return self._holders[self.keys[name]]

    def tensor(self, name: str) -> Tensor:
        """One tensor, by its canonical name."""
        return self.file(name).tensor(self.keys[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self.file(name).shape(self.keys[name])

    def dtype(self, name: str) -> torch.dtype:
        """Its precision in the file; float32 for one that weights are not trained in, such as 8 bits."""
        return FLOATS.get(self.file(name).entries[self.keys[name]]["dtype"], torch.float32)

    def cast(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, in another precision."""
        return cast(f"{self.name}.{name}", self.tensor(name), dtype)

    def float_tensors(self) -> dict[str, Tensor]:
        """All tensors in float32, by canonical name."""
        return {name: self.tensor(name).float() for name in self.keys}

    def sha256(self) -> str:
        """See `hash_tensors`; of a denoiser the hash that run.json names."""
        return hash_tensors((name, self.tensor(name)) for name in self.keys)
