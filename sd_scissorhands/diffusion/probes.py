"""Whether a concept is forgotten and the rest retained, by what student and original predict: a Newton step needs both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..methods.interface import Weights
from .batches import Batches

DRAWS = 8  # batches
LEFT = 0.1  # share of the way to the anchor that a forgotten concept may have left


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
        rows, clean, t, noise, _ = batches.draw(side, "probe", number)
        yield partial(denoiser.predict, denoiser.noised(clean, noise, t), t), rows
