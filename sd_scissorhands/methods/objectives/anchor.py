"""The concept's words come to mean the anchor."""

from __future__ import annotations

from ..losses import Loss, Questions
from ..samples import ConceptSamples
from . import OBJECTIVES, Objective


class Anchor(Loss[ConceptSamples]):
    """|eps(x_t, c) - eps_0(x_t, c_anchor)|^2 with eps_0 the frozen original (Kumari et al., ICCV 2023, arXiv 2303.13516).

    Scissorhands' code takes the trimmed model's own output on a fresh sample instead, which is unbounded drift. A share of
    the x_t comes from the anchor's own latents (`anchor_share`): once the concept's words lead to the anchor, that is where
    sampling passes through.
    """

    def questions(self, x: ConceptSamples) -> Questions:
        return [(x.noisy, x.anchor_words)]


OBJECTIVES.add("anchor", Objective("what the original predicts under the anchor's words", diffusion=Anchor()))
