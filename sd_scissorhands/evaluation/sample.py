"""Sampling for every evaluation and every attack: a model is opened, prompts go in and pictures come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.layout import channels_last
from ..diffusion.sampler import UNCHANGED, Changes
from ..errors import UserError
from ..lineage import runs_behind, started_from
from ..machine import Processes, resolve_device
from ..models.load import LoadedPipeline, open_pipeline
from ..models.locate import locate
from ..naming import absolute, model_flag
from ..results.manifest import MANIFEST
from ..run import Progress, Run, silent
from .batch_size import decoded, held_by_memory, lanes
from .prompts import Row

Encode = Callable[[Sequence[Row]], Tensor]  # rows -> conditions (B, tokens, width)


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How an evaluation draws."""

    steps: int | None = None  # None: 50, or the embedded model's own
    guidance: float | None = None  # None: the family's own; a protocol's comes first
    batch_size: int | None = None  # pictures drawn, judged and written at a time; None: see `batch_size`
    device: str = "auto"
    keep_images: bool = False  # keep every picture
    progress: Progress = silent
    processes: Processes = field(default_factory=Processes.here)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, where their rows do not say otherwise; goes into every result."""

    steps: int
    guidance: float
    size: int  # pixels a side
    scheduler: str  # the pipeline's own, whatever `changes` has
    changes: Changes = UNCHANGED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; changes only where there are some."""
        changes = self.changes.to_json()
        values = {name: value for name, value in asdict(self).items() if name != "changes"}
        return values | ({"changes": changes} if changes else {})

    @classmethod
    def of(cls, opened: LoadedPipeline, steps: int | None = None, guidance: float | None = None) -> Sampling:
        """50 steps and the family's own guidance (7.5, as is published, for SD 1), or what the embedded model was measured with."""
        return cls(
            steps or opened.sampling["steps"],
            opened.sampling["guidance"] if guidance is None else guidance,
            opened.family.picture_size,
            type(opened.pipeline.scheduler).__name__,
        )


def check_models(model: str, baseline: str | None) -> None:
    """Find both models and check their files, so that a bad baseline is refused before hours of sampling with the model.

    Raises:
        UserError: what is wrong with which.
    """
    locate(model).check()
    if baseline is None:
        return
    with model_flag("--baseline"):
        files = locate(baseline)
        files.check()
    if (runs := runs_behind(model)) and started_from(runs[-1]) == absolute(baseline):
        named = runs[-1].source.files_sha256
        if named and files.sha256 != named:
            raise UserError(
                f"{baseline} is not what it was when {model} was made from it (sha256 {files.sha256[:12]}, {MANIFEST} says "
                f"{named[:12]}): put it back, or name another with --baseline"
            )


def open_for_sampling(model: str, device: str, processes: Processes | None = None) -> tuple[LoadedPipeline, Denoiser]:
    """A model ready to draw, in float32; on CUDA under autocast in the half precision that its family bears.

    Raises:
        UserError: it cannot be loaded as it is on disk, or it is no longer the one in its run's manifest.
    """
    device = resolve_device((processes or Processes()).device(device))
    opened = open_pipeline(model, device=device)
    manifest = opened.directory.parent / MANIFEST
    if opened.directory.name == "model" and manifest.exists():
        erased = Run.read(opened.directory.parent).manifest.erased
        if (made := erased.weights_sha256 if erased else "") not in ("", opened.weights_sha256):
            raise UserError(
                f"{model} is not the model that its run made (weights {opened.weights_sha256[:12]}, {MANIFEST} says {made[:12]})"
            )
    if not device.startswith("cuda"):
        return opened, Denoiser(opened.pipeline)
    for module in (opened.denoiser, opened.pipeline.vae):
        channels_last(module)
    return opened, Denoiser(opened.pipeline, mixed_precision=opened.family.dtype)


def draw(
    denoiser: Denoiser, rows: Sequence[Row], sampling: Sampling, *, batch_size: int | None, encode: Encode | None = None
) -> Iterator[tuple[Sequence[Row], np.ndarray]]:
    """Batches of rows with their pictures, (B, h, w, 3) uint8 RGB.

    Every row has its own CPU generator, seeded with its own seed, and on a CPU as many rows as always are computed
    together (the last are padded): a picture's bytes depend on neither the batch size, nor the rows around it, nor how
    many processes share the work. An accelerator computes `batch_size` rows together, always as many.

    Args:
        batch_size: None: what a GPU's memory holds; 32 small or 4 large pictures elsewhere.
        encode: conditions of rows; the text encoder's when None.
    """
    encode = encode or (lambda some: denoiser.encode([row.prompt for row in some]))
    by_kind: dict[tuple[float, tuple[int, int], float | None], list[Row]] = {}
    for row in rows:
        guidance = sampling.guidance if row.guidance is None else row.guidance
        size, strength = row.size or (sampling.size, sampling.size), row.start.strength if row.start else None
        by_kind.setdefault((guidance, size, strength), []).append(row)
    for (guidance, size, _), own in by_kind.items():
        lane, batch = lanes(denoiser.device.type, max(size), batch_size or held_by_memory(denoiser, size))
        for at in range(0, len(own), batch):
            chunk = own[at : at + batch]
            pictures = []
            for start in range(0, len(chunk), lane):
                some = chunk[start : start + lane]
                padded = [*some, *[some[-1]] * (lane - len(some))]
                drawn = _latents(denoiser, padded, encode(padded), replace(sampling, guidance=guidance), size)
                pictures.append(to_pixels(decoded(denoiser, drawn, max(size))[: len(some)]))
            yield chunk, np.concatenate(pictures)


def _latents(
    denoiser: Denoiser, rows: Sequence[Row], conditions: Tensor, sampling: Sampling, size: tuple[int, int]
) -> Tensor:
    """Latents of rows of one kind, from noise or from what each starts with: (B, c, h, w)."""
    seeds, starts = [row.seed for row in rows], [row.start for row in rows if row.start]
    steps, guidance = sampling.steps, sampling.guidance
    if not starts:
        return denoiser.sample(conditions, seeds, steps=steps, guidance=guidance, size=size, changes=sampling.changes)
    masks = [start.hidden for start in starts if start.hidden is not None]
    return denoiser.complete(
        torch.stack([start.latents for start in starts]), conditions, seeds, strength=starts[0].strength, steps=steps,
        guidance=guidance, hidden=torch.stack(masks) if masks else None,
    )  # fmt: skip


def to_pixels(pictures: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] to (B, h, w, 3) uint8, RGB."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
