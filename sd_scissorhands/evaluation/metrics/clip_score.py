"""How well the pictures for retained prompts fit their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import METRICS
from .base import Number, Recorded

if TYPE_CHECKING:
    from torch import Tensor


def score(pictures: Tensor, texts: Tensor) -> Tensor:
    """CLIP score of each picture against its own text: 100 max(cos, 0).

    Hessel et al. 2021, section 3, with torchmetrics' weight of 100 in place of the paper's 2.5. As in the paper it is cut
    off at zero pair by pair; torchmetrics cuts off the mean.

    Args:
        pictures, texts: embeddings (B, d), unit length.

    Returns:
        (B,) in [0, 100].
    """
    return 100 * (pictures * texts).sum(1).clamp(0, 1)


def clip_score(recorded: Recorded, side: str) -> float | None:
    """The mean over the retained rows; None without CLIP's features."""
    features = recorded.judges.features
    if features is None or features.texts is None:
        return None
    texts = features.texts([row.prompt for row in recorded.retained])
    return round(float(score(recorded.features(side), texts).mean()), 3)


METRICS.add("clip_score", Number(
    "CLIP score", "100 times the cosine of picture and prompt for prompts that have nothing to do with the concept; higher is better.",
    clip_score, under_kept=True,
))  # fmt: skip
