"""Prompts in, pictures out: every evaluation draws here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.load import Opened, open_pipeline, resolve_device
from .prompts import Row


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; goes into every result."""

    steps: int
    guidance: float
    size: int  # pixels a side
    scheduler: str

    @classmethod
    def of(cls, opened: Opened, steps: int | None = None, guidance: float | None = None) -> Sampling:
        """I2P's published protocol (50 steps, guidance 7.5), or what the embedded model was measured with."""
        world = (opened.world or {}).get("sampling", {"steps": 50, "guidance": 7.5})
        return cls(
            steps or world["steps"],
            world["guidance"] if guidance is None else guidance,
            opened.pipeline.unet.config.sample_size * opened.pipeline.vae_scale_factor,
            type(opened.pipeline.scheduler).__name__,
        )


def open_for_sampling(model: str, device: str) -> tuple[Opened, Denoiser]:
    """A model ready to draw, in float32 on the CPU and float16 on CUDA."""
    import torch

    device = resolve_device(device)
    opened = open_pipeline(model, device=device, dtype=torch.float16 if device.startswith("cuda") else torch.float32)
    return opened, Denoiser(opened.pipeline)


def draw(
    denoiser: Denoiser, rows: Sequence[Row], sampling: Sampling, *, batch_size: int, tick: Callable[[int], None]
) -> Iterator[tuple[Sequence[Row], Tensor]]:
    """Batches of rows with their pictures, (B, 3, h, w) float32 in [-1, 1].

    Every row has its own CPU generator, seeded with its own seed: its noise depends on neither the batch size nor the
    rows around it.
    """
    for at in range(0, len(rows), batch_size):
        chunk = rows[at : at + batch_size]
        latents = denoiser.generate(
            [row.prompt for row in chunk], [row.seed for row in chunk], steps=sampling.steps, guidance=sampling.guidance,
            size=(sampling.size, sampling.size), batch_size=batch_size,
        )  # fmt: skip
        yield chunk, denoiser.decode(latents)
        tick(len(chunk))


def to_pixels(pictures: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] to (B, h, w, 3) uint8, RGB."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
