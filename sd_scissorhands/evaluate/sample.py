"""Prompts in, pictures out: every evaluation draws here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.load import Opened, open_pipeline, resolve_device
from ..run import MANIFEST, Run
from ..settings import UserError
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
    """A model ready to draw, in float32; on CUDA under float16 autocast.

    Raises:
        UserError: it cannot be loaded as it is on disk, or it is no longer what its run's manifest says.
    """
    device = resolve_device(device)
    opened = open_pipeline(model, device=device)
    manifest = opened.directory.parent / MANIFEST
    if opened.directory.name == "model" and manifest.exists():
        made = Run.read(opened.directory.parent).manifest.get("result", {}).get("weights_sha256", opened.weights)
        if made != opened.weights:
            raise UserError(
                f"{model} is not the model that its run made (weights {opened.weights[:12]}, {MANIFEST} says {made[:12]})"
            )
    return opened, Denoiser(opened.pipeline, mixed_precision="fp16" if device.startswith("cuda") else "no")


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
