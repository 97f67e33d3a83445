"""The data of an erasure, gathered once: what the model draws and the user's pictures as latents, prompts as conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..methods.distributed import SINGLE_PROCESS, ProcessGroup
from ..settings import EraseSettings, UserError
from .denoiser import Denoiser

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
AT_ONCE = {"low": 2, "balanced": 8, "fast": 16}  # large pictures that are drawn together


def gather(
    denoiser: Denoiser,
    settings: EraseSettings,
    pairs: Sequence[tuple[str, str]],
    keep: Sequence[str],
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """Everything the task needs, computed once.

    Args:
        pairs: (forget prompt, neutral twin), as many as `settings.forget_count`.
        keep: retain prompts, as many as `settings.retain_count`.
        group: who share the drawing.
        tick: called with the number of pictures made or read.

    Returns:
        forget_latents and anchor_latents (N, c, h, w; the same start noise), forget_condition and anchor_condition (N, tokens, width), retain_latents
        (M, c, h, w), retain_condition (M, tokens, width), empty_condition (tokens, width); of a user's pictures, whose latents are
        the posterior's means, forget_deviation or retain_deviation too, shaped as the latents. float32 on the CPU. Forget latents
        are never decoded.

    Raises:
        UserError: a user's picture cannot be read.
    """
    forget_prompts, anchors = [forget for forget, _ in pairs], [anchor for _, anchor in pairs]

    def drawn(prompts: Sequence[str], side: int) -> dict[str, Tensor]:
        seeds = [(settings.seed * 2 + side) * 1_000_000 + row for row in range(len(prompts))]
        steps = (side and settings.retain_sampling_steps) or settings.sampling_steps
        return {
            "latents": denoiser.generate(
                prompts, seeds, steps=steps, guidance=settings.guidance,
                batch_size=at_once(denoiser, settings.memory), group=group, tick=tick,
            )
        }  # fmt: skip

    def given(folder: str, count: int) -> dict[str, Tensor]:
        mean, deviation = encode_pictures(denoiser, list_pictures(Path(folder)), count, tick)
        return {"latents": mean, "deviation": deviation}

    def named(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{name}_{kind}": tensor for kind, tensor in tensors.items()}

    own, others = settings.forget_images, settings.retain_images
    forget = given(own, len(pairs)) if own else drawn(forget_prompts, 0)
    both = named("forget", forget) | named("anchor", drawn(anchors, 0))
    retain = named("retain", given(others, len(keep)) if others else drawn(keep, 1))
    conditions = {
        "forget_condition": _encode(denoiser, forget_prompts),
        "anchor_condition": _encode(denoiser, anchors),
        "retain_condition": _encode(denoiser, keep),
        "empty_condition": denoiser.unconditional(1)[0],
    }
    return {name: tensor.cpu() for name, tensor in (both | retain | conditions).items()}


def _encode(denoiser: Denoiser, prompts: Sequence[str]) -> Tensor:
    return torch.cat([denoiser.encode(prompts[at : at + 64]) for at in range(0, len(prompts), 64)])


def at_once(denoiser: Denoiser, memory: str) -> int:
    """Pictures that are drawn together."""
    return 32 if denoiser.small else AT_ONCE[memory]


def encode_pictures(denoiser: Denoiser, files: Sequence[Path], count: int, tick) -> tuple[Tensor, Tensor]:
    """Posterior means and deviations of `count` pictures, the files in turn, each encoded once: (N, c, h, w) twice."""
    moments = []
    for file in files[:count]:
        moments.append(denoiser.moments(read_picture(file, denoiser.picture_size)))
        tick(1)
    tick(count - len(moments))
    rows = torch.arange(count) % len(moments)
    mean, deviation = (torch.cat(parts)[rows.to(denoiser.device)] for parts in zip(*moments, strict=True))
    return mean, deviation


def list_pictures(folder: Path) -> list[Path]:
    """Picture files of a directory, sorted.

    Raises:
        UserError: no such directory, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory of pictures")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise UserError(f"{folder} holds no picture ({', '.join(PICTURES)})")
    return files


def read_picture(file: Path, size: int) -> Tensor:
    """A picture, its centre square resized: (1, 3, size, size) float32 in [-1, 1].

    Raises:
        UserError: not a readable picture.
    """
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise UserError(f"{file} is no readable picture: {error}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
