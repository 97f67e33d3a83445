"""Losses of the repair: what one sees, what it asks the frozen original, what it descends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Questions = list[tuple["Tensor", "Tensor"]]  # (x_t, condition), (B, ...) each
Answers = list["Tensor"]  # predictions, one for each question


class Samples(Protocol):
    """Samples of one side of a step, those in a slice of its batch; see `methods.samples` for a denoiser's."""

    def none(self) -> Self:
        """No sample."""
        ...

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error, or cross entropy, of every sample: (B,)."""
        ...

    def own_errors(self, prediction: Tensor) -> Tensor:
        """The same against what the data have, the noise or the label: (B,)."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """A scalar of the samples' values, which averages over the slices of a batch to the mean of the batch."""
        ...


X = TypeVar("X", bound=Samples)


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


class OwnError(Loss[Samples]):
    """The loss that the model was trained with."""

    def loss(self, x: Samples, prediction: Tensor, answers: Answers) -> Tensor:
        return x.mean(x.own_errors(prediction))


class NoLoss(OwnError):
    """No sample is seen: 0."""

    def samples(self, x: Samples) -> Samples:
        return x.none()
