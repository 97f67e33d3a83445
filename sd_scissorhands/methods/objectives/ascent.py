"""Up the loss that the model was trained with."""

from __future__ import annotations

from torch import Tensor

from ..losses import Answers, OwnError
from ..samples import Samples
from . import OBJECTIVES, Objective


class Ascent(OwnError):
    """-L_f (Thudi et al., EuroS&P 2022, arXiv 2109.13398); Scissorhands' min L_r - lambda L_f for classifiers."""

    def loss(self, x: Samples, prediction: Tensor, answers: Answers) -> Tensor:
        return -super().loss(x, prediction, answers)


OBJECTIVES.add("ascent", Objective("anything but what it was: up the loss", diffusion=Ascent(), classifier=Ascent()))
