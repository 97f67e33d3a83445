"""The student predicts what the original predicts, alone and under guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import Answers
from ..samples import NoisedSamples
from . import RETAIN_LOSSES, RetainLoss
from .distil import Distil

TWICE = 0.5  # of the samples, those shown without words too


class Guided(Distil):
    """Distillation, and for half of the samples also of what sampling makes of two predictions (ours).

    That is w eps(x_t, c) - (w - 1) eps(x_t, empty) with w the guidance, over w. There an error in the prediction without
    words counts almost as much as one in the other, and a step of the sampling follows neither, but both.
    """

    def samples(self, x: NoisedSamples) -> NoisedSamples:
        return x.with_bare(int(TWICE * x.batch_size))

    def loss(self, x: NoisedSamples, prediction: Tensor, answers: Answers) -> Tensor:
        """Mean squared error alone, plus that of the guided prediction for the samples shown twice."""
        off, bare = (prediction - answers[0]).split([len(x) - x.bare, x.bare])
        both = off[: x.bare] - (1 - 1 / max(x.guidance, 1.0)) * bare
        weight = self.weight(x)[: len(off)]
        off, both = weight * off.square().mean((1, 2, 3)), weight[: x.bare] * both.square().mean((1, 2, 3))
        return x.mean(off) + x.mean(both, int(TWICE * x.batch_size))

    def weight(self, x: NoisedSamples) -> Tensor:
        """Of every sample's errors: (B,)."""
        return torch.ones_like(x.t, dtype=torch.float32)


RETAIN_LOSSES.add(
    "guided",
    RetainLoss("match the original also under guidance", Guided(), any_words=True, empty_share=0.0, shown_twice=TWICE),
)
