"""The student predicts what the original predicts."""

from __future__ import annotations

from ..losses import Loss, Questions
from ..samples import NoisedSamples
from . import RETAIN_LOSSES, RetainLoss


class Distil(Loss[NoisedSamples]):
    """|eps(x_t, c) - eps_0(x_t, c)|^2 with eps_0 the frozen original.

    It answers for any words on any x_t; where noise hides the picture, the words are all there is.
    """

    def questions(self, x: NoisedSamples) -> Questions:
        return [(x.noisy, x.words)]


RETAIN_LOSSES.add("distil", RetainLoss("match the original", Distil(), any_words=True))
