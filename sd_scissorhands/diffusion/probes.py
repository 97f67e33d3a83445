"""Whether a concept is forgotten and the rest retained, by what student and original predict: a Newton step needs both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..methods.interface import Weights
from .batches import Batches
from .denoiser import Denoiser

DRAWS = 8  # batches
LEFT = 0.1  # share of the way to the anchor that a forgotten concept may have left
SHOWN_TOGETHER = 32  # pictures that are looked at together
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
        for rows in torch.arange(len(latents)).split(SHOWN_TOGETHER):
            x = latents[rows], noise[rows], t[rows]
            by_name, by_own = (denoiser.loss(x[0], words[rows], *x[1:]) for words in (named, own))
            ratio[rows] += (by_name / by_own).cpu() / len(SHOWN_AT)
    return ratio < NEARLY


@torch.no_grad()
def retained(batches: Batches, teacher: Weights | None) -> float:
    """Share of the teacher's output on the retain set, under noise of its own, that the student gives too (R^2)."""
    wrong = whole = 0.0
    for predict, rows in _noised(batches, "retain"):
        words = batches.data["retain_condition"][rows]
        target = predict(words, teacher)
        wrong += float((predict(words) - target).square().sum())
        whole += float((target - target.mean()).square().sum())
    return 1 - wrong / whole


@torch.no_grad()
def forgotten(batches: Batches, teacher: Weights | None) -> bool:
    """Whether the output under the concept's words is at the anchor's, up to `LEFT` of the way between the two."""
    left = way = 0.0
    for predict, rows in _noised(batches, "forget"):
        words = batches.data["forget_condition"][rows]
        target = predict(batches.data["anchor_condition"][rows], teacher)
        left += float((predict(words) - target).square().sum())
        way += float((predict(words, teacher) - target).square().sum())
    return left <= LEFT * way


def _noised(batches: Batches, side: str) -> Iterator[tuple[Callable[..., Tensor], Tensor]]:
    """(the prediction on noised latents of a side, by condition and weights; their rows), batch by batch."""
    denoiser = batches.denoiser
    for number in range(DRAWS):
        rows, clean, t, noise, *_ = batches.draw(side, "probe", number)
        yield partial(denoiser.predict, denoiser.noised(clean, noise, t), t), rows
