"""Losses of the repair: what one sees, what it asks the frozen original, what it descends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from .samples import Samples

Questions = list[tuple["Tensor", "Tensor"]]  # (x_t, condition), (B, ...) each
Answers = list["Tensor"]  # predictions, one for each question


X = TypeVar("X", bound="Samples")


class Loss(Generic[X]):
    """A loss of the repair on one side's samples; as it stands, the error against what the frozen original answers.

    A step calls `samples`, then `questions` of all losses, which the original answers in one pass, then, with the student's
    prediction, `loss`. Most losses define `questions` and perhaps `target`.
    """

    def samples(self, x: X) -> X:
        """The samples that the student sees."""
        return x

    def questions(self, x: X) -> Questions:
        """What the original predicts for, at the samples' own timesteps."""
        return []

    def target(self, x: X, answers: Answers) -> Tensor:
        """What the student should predict: (B, ...)."""
        return answers[0]

    def loss(self, x: X, prediction: Tensor, answers: Answers) -> Tensor:
        """The scalar that is descended."""
        return x.mean(x.errors(prediction, self.target(x, answers)))


class OwnError(Loss["Samples"]):
    """The loss that the model was trained with."""

    def loss(self, x: Samples, prediction: Tensor, answers: Answers) -> Tensor:
        return x.mean(x.own_errors(prediction))


class NoLoss(OwnError):
    """No sample is seen: 0."""

    def samples(self, x: Samples) -> Samples:
        return x.none()
