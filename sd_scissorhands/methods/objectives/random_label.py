"""Other words, or another class, for what is to be forgotten: SalUn's target."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..losses import Answers, Loss, Questions
from ..samples import ConceptSamples
from . import OBJECTIVES, Objective


class OtherWords(Loss[ConceptSamples]):
    """|eps(x_t, c) - eps_0(x_t, c_other)|^2 with the words of a random retain sample (Fan et al., ICLR 2024, arXiv 2310.12508)."""

    def questions(self, x: ConceptSamples) -> Questions:
        return [(x.noisy, x.other_words)]


class OtherLabels(Loss[Any]):
    """Cross entropy under another class, the same for a sample all along."""

    def target(self, x: Any, answers: Answers) -> Tensor:
        return x.other_labels


OBJECTIVES.add(
    "random-label",
    Objective(
        "what the original predicts under other words, or another class",
        diffusion=OtherWords(),
        classifier=OtherLabels(),
    ),
)
