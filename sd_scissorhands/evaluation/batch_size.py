"""How many pictures are computed together: always as many on a CPU, as many as memory holds on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..machine import PeakMemory

BATCHED_SIDE = 64  # pixels: up to here the CPU is faster with several pictures at a time
LANE = 16  # small pictures that the CPU computes together, always as many
FIRST = (32, 4)  # small and large pictures at a time where memory is not measured,
MOST = (256, 32)  # and at most where it is
SHARE = 0.7  # of the free memory that a batch may take


def lanes(device: str, side: int, batch_size: int | None) -> tuple[int, int]:
    """Pictures that are computed together, and pictures that are handed on together."""
    batch = batch_size or FIRST[side > BATCHED_SIDE]
    if device != "cpu":
        return batch, batch
    lane = LANE if side <= BATCHED_SIDE else 1
    return lane, max(1, batch // lane) * lane


def held_by_memory(denoiser: Denoiser, size: tuple[int, int]) -> int | None:
    """Pictures that a GPU's memory holds together, measured once for a model and a size; None on other devices.

    Args:
        size: (height, width) in pixels.
    """
    if denoiser.device.type != "cuda":
        return None
    if size not in denoiser.together:
        denoiser.together[size] = fitting(*measured(denoiser, size), free_bytes(denoiser.device), max(size))
    return denoiser.together[size]


def fitting(each: int, decoding: int, free: int, side: int) -> int:
    """The largest power of two of pictures that fit, from 1 to `MOST`.

    Args:
        each: bytes that the drawing of a picture takes.
        decoding: bytes that decoding takes, of as many as are decoded together.
        free: bytes of the device.
        side: of the pictures, in pixels.
    """
    fits = int(SHARE * free - decoding) // max(each, 1)
    return min(1 << max(fits.bit_length() - 1, 0) if fits > 0 else 1, MOST[side > BATCHED_SIDE])


def measured(denoiser: Denoiser, size: tuple[int, int]) -> tuple[int, int]:
    """Bytes that a step of drawing takes for a picture, and decoding for as many as go together; by doing both once."""
    count = FIRST[max(size) > BATCHED_SIDE]
    conditions, peak = denoiser.unconditional(count), PeakMemory(denoiser.device)
    latents = denoiser.sample(conditions, [0] * count, steps=1, guidance=2.0, size=size)
    drawing, peak = peak.bytes(), PeakMemory(denoiser.device)
    decoded(denoiser, latents, max(size))
    return -(-(drawing or 0) // count), peak.bytes() or 0


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that can still be taken, with what torch holds and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def decoded(denoiser: Denoiser, latents: Tensor, side: int) -> Tensor:
    """Pictures of latents, `FIRST` at a time, since a VAE in float32 takes more memory than the drawing: (B, 3, h, w)."""
    return torch.cat([denoiser.decode(some) for some in latents.split(FIRST[side > BATCHED_SIDE])])
