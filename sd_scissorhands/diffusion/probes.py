"""Whether a concept is forgotten and the rest retained, by what student and original predict: a Newton step asks this."""

from __future__ import annotations

import torch
from torch import Tensor

from ..methods.interface import Weights
from .batches import Batches
from .denoiser import Denoiser

DRAWS, LEFT = (
    8,
    0.1,
)  # batches that are looked at; share of the way to the anchor that a forgotten concept may have left
BATCH = 32  # pictures that are looked at together
SHOWN_AT = (0.2, 0.4, 0.6, 0.8)  # timesteps at which a picture's words are compared, as shares of all
NEARLY = 1.1  # error under the concept's name over that under the picture's own words, up to which it shows the concept


@torch.no_grad()
def shows(denoiser: Denoiser, latents: Tensor, own: Tensor, named: Tensor, *, seed: int) -> Tensor:
    """Whether pictures show a concept: whether the denoiser explains them by its name about as well as by their own words: (N,) bool.

    The diffusion classifier (Li et al., ICCV 2023, arXiv 2303.16203, eq. 7) with two classes and a margin: missing a concept
    costs more than losing a picture.

    Args:
        own, named: conditions (N, tokens, width) of the prompts that the latents (N, c, h, w) were drawn for, and of the same with
            the concept's name.
    """
    generator, ratio = torch.Generator().manual_seed(seed), torch.zeros(len(latents))
    for share in SHOWN_AT:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        t = torch.full((len(latents),), int(share * denoiser.timesteps), device=latents.device)
        errors = [
            torch.cat(
                [
                    denoiser.loss(*some)
                    for some in zip(*(one.split(BATCH) for one in (latents, words, noise, t)), strict=False)
                ]
            )
            for words in (named, own)
        ]
        ratio += (errors[0] / errors[1]).cpu() / len(SHOWN_AT)
    return ratio < NEARLY


@torch.no_grad()
def retained(batches: Batches, teacher: Weights | None) -> float:
    """Share of the teacher's output on the retain set, under noise of its own, that the student gives too (R^2)."""
    wrong, whole, denoiser = 0.0, 0.0, batches.denoiser
    for number in range(DRAWS):
        rows, clean, t, noise, _ = batches.draw("retain", "probe", number)
        noisy, words = denoiser.noised(clean, noise, t), batches.data["retain_condition"][rows]
        target = denoiser.predict(noisy, t, words, teacher)
        wrong += float((denoiser.predict(noisy, t, words) - target).square().sum())
        whole += float((target - target.mean()).square().sum())
    return 1 - wrong / whole


@torch.no_grad()
def forgotten(batches: Batches, teacher: Weights | None) -> bool:
    """Whether the output under the concept's words is at the anchor's, up to `LEFT` of the way between the two."""
    left, way, denoiser = 0.0, 0.0, batches.denoiser
    for number in range(DRAWS):
        rows, clean, t, noise, _ = batches.draw("forget", "probe", number)
        noisy, words = denoiser.noised(clean, noise, t), batches.data["forget_condition"][rows]
        target = denoiser.predict(noisy, t, batches.data["anchor_condition"][rows], teacher)
        left += float((denoiser.predict(noisy, t, words) - target).square().sum())
        way += float((denoiser.predict(noisy, t, words, teacher) - target).square().sum())
    return left <= LEFT * way
