"""Every picture of the concept is denoised towards its pair."""

from __future__ import annotations

from torch import Tensor

from ..losses import Answers, Loss, Questions
from ..samples import ConceptSamples
from . import OBJECTIVES, Objective


class Paired(Loss[ConceptSamples]):
    """w(t) |eps(x_t, c) - e*|^2, where e* leads from the concept's x_t to the original's estimate of its pair (ours).

    The pair is what the anchor's words gave from the same start noise. Its estimate x_0* is taken from its own x_t, under
    the same noise and the anchor's words: e* = (x_t - sqrt(abar) x_0*) / sqrt(1 - abar). w(t) = min(1, 1 / SNR).
    """

    def questions(self, x: ConceptSamples) -> Questions:
        return [(x.pair, x.anchor_words)]

    def target(self, x: ConceptSamples, answers: Answers) -> Tensor:
        return x.leading_to(x.pair, answers[0])

    def loss(self, x: ConceptSamples, prediction: Tensor, answers: Answers) -> Tensor:
        return x.mean(x.pair_weight * x.errors(prediction, self.target(x, answers)))


OBJECTIVES.add(
    "paired",
    Objective(
        "the way to the pair, the picture that the anchor's words gave from the same noise",
        diffusion=Paired(),
        needs_pairs=True,
    ),
)
