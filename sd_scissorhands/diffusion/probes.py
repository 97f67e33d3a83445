"""Whether a concept is forgotten and the rest retained, by what student and original predict: a Newton step asks this."""

from __future__ import annotations

import torch

from ..methods.interface import Weights
from .batches import Batches

DRAWS, LEFT = (
    8,
    0.1,
)  # batches that are looked at; share of the way to the anchor that a forgotten concept may have left


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
