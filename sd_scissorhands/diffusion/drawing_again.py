"""What the original draws, from the cache where it drew the same before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import drawn_before
from ..errors import UserError
from ..machine import machine_facts
from ..methods.distributed import SINGLE_PROCESS, ProcessGroup
from .denoiser import Denoiser

DRAWING = 1  # counts the changes here and in `Denoiser` after which the same facts give other latents
DRAWN_BY = ("torch", "diffusers", "transformers")  # that latents depend on


class DrawLatents(Protocol):
    """Latents of prompts, as `Denoiser.generate` draws them."""

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, batch_size: int = 32,
        scheduler: str = "", group: ProcessGroup = SINGLE_PROCESS, tick: Callable[[int], None] = lambda count: None,
    ) -> Tensor:  # fmt: skip
        """See `Denoiser.generate`."""
        ...


@dataclass
class DrawingOnce:
    """A `DrawLatents` that draws nothing that is in the cache, and puts there what it draws.

    A set of pictures is taken whole or drawn whole: a picture's rounding may depend on those that it is computed with.
    """

    denoiser: Denoiser
    model: str  # as the user named it
    facts: Mapping[str, Any]  # what its pictures depend on beside the denoiser's state, prompts, seeds and sampling
    remarks: dict[str, None] = field(default_factory=dict)  # takes one on the cache where it fails, each once
    pictures: int = 0  # from the cache, so far

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, batch_size: int = 32,
        scheduler: str = "", group: ProcessGroup = SINGLE_PROCESS, tick: Callable[[int], None] = lambda count: None,
    ) -> Tensor:  # fmt: skip
        """See `DrawLatents`; the first process reads and writes the cache for all."""
        how: Any = dict(steps=steps, guidance=guidance, batch_size=batch_size, scheduler=scheduler)
        facts = {"prompts": list(prompts), "seeds": list(seeds), **how, **self._facts()}
        device = self.denoiser.device
        latents = self._read(facts, len(prompts)) if group.index == 0 else None
        found = torch.tensor([float(latents is not None)], device=device)
        group.broadcast([found], 0)
        if not found.item():
            made = self.denoiser.generate(prompts, seeds, **how, group=group, tick=tick)
            if group.index == 0:
                self._try(lambda: drawn_before.write(facts, made.cpu(), self.model))
            return made
        shape = (len(prompts), *self.denoiser.latent_shape)
        latents = torch.empty(shape, device=device) if latents is None else latents.to(device)
        group.broadcast([latents], 0)
        self.pictures += len(prompts)
        tick(len(prompts))
        return latents

    def _facts(self) -> dict[str, Any]:
        """What latents depend on beside prompts, seeds and sampling: the state of denoiser and machine."""
        d = self.denoiser
        return {
            **self.facts, "drawing": DRAWING, "machine": machine_facts(d.device), "precision": str(d.precision),
            "dtypes": sorted({str(p.dtype) for p in d.parameters.values()}), "versions": {name: version(name) for name in DRAWN_BY},
        }  # fmt: skip

    def _read(self, facts: Mapping[str, Any], count: int) -> Tensor | None:
        return self._try(lambda: drawn_before.read(facts, (count, *self.denoiser.latent_shape)))

    def _try(self, action: Callable[[], Tensor | None]) -> Tensor | None:
        """What an action on the cache gives; where it fails, nothing, and a remark: an erasure needs no cache."""
        try:
            return action()
        except UserError as error:
            self.remarks[f"the cache was not used: {error}"] = None
            return None
