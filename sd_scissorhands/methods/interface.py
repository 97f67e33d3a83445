"""What the methods know of a model and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from .distributed import FULL_BATCH, BatchSlice

Weights = Mapping[str, Tensor]
Parameters = dict[str, nn.Parameter]  # the parameters in scope, by their name in the module


class Task(Protocol):
    """A model with something to forget and something to retain.

    Everything that sees data takes the number of a draw: the same number gives the same batch, timesteps and noise,
    whatever was computed before it. So a resumed run repeats an uninterrupted one, and no generator state needs saving.
    """

    module: nn.Module

    def forget(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """L_f, a scalar: how badly the model does what it is to forget, under the data's own targets.

        Args:
            part: of the batch; the losses of all slices average to that of the batch.
        """
        ...

    def retain(self, draw: int) -> Tensor:
        """L_r, a scalar: how badly the model does the rest, under the data's own targets."""
        ...

    def retain_each(self, draw: int) -> Tensor:
        """The same loss of every sample of the batch: (B,)."""
        ...

    def replacement(self, draw: int) -> Tensor:
        """L_f on what takes the place of `forget`'s batch, under the same timesteps and noise."""
        ...

    def explain(self, side: str, draw: int) -> Tensor:
        """A scalar of every sample whose relevance is computed: (B,), B may be 0. On data that nothing was trained on.

        Args:
            side: `forget` or `retain`.
        """
        ...

    def respond(self, draw: int) -> Tensor:
        """How perturbed copies of what is to be forgotten come out: (B,), from one forward pass of the module."""
        ...

    def repair(self, draw: int, part: BatchSlice = FULL_BATCH, adversary: bool | None = None) -> tuple[Tensor, Tensor]:
        """The repair's forget and retain loss, both scalars to minimise.

        Args:
            part: of the batch; the losses of all slices average to those of the batch.
            adversary: a batch can be taken in two, whose losses add up to the whole's. True: the first half of the forget
                samples, which are taken at an adversary's weights, and as it sees them; False: all the rest.
        """
        ...

    def relearn(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """What an adversary minimises to bring the concept back: L_f under its own name."""
        ...

    def retained(self) -> float:
        """How well the rest is still done, on data held out for this: a share, 1 at best."""
        ...

    def forgotten(self) -> bool:
        """Whether what is to be forgotten is."""
        ...

    def share(self) -> float:
        """m / (n - m), samples to forget over samples to retain; 1 where nobody knows how many there were."""
        ...
