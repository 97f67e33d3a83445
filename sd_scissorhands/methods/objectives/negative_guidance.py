"""Away from the concept by negative guidance: ESD's target."""

from __future__ import annotations

from torch import Tensor

from ..losses import Answers, Loss, Questions
from ..samples import ConceptSamples
from . import OBJECTIVES, Objective


class NegativeGuidance(Loss[ConceptSamples]):
    """|eps(x_t, c) - (2 eps_0(x_t, empty) - eps_0(x_t, c))|^2 on pictures that the student left half finished.

    Away from the concept by as much as guidance leads towards it (Gandikota et al., ICCV 2023, eq. 7 with eta = 1).
    """

    def samples(self, x: ConceptSamples) -> ConceptSamples:
        return x.half_finished()

    def questions(self, x: ConceptSamples) -> Questions:
        return [(x.noisy, x.no_words), (x.noisy, x.own_words)]

    def target(self, x: ConceptSamples, answers: Answers) -> Tensor:
        without, own = answers
        return 2 * without - own


OBJECTIVES.add(
    "negative-guidance",
    Objective("what leads away from the concept, on half-finished pictures", diffusion=NegativeGuidance()),
)
