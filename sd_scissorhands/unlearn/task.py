"""What this room needs to know of a model and its data."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A model with something to forget and something to keep.

    Every loss takes the number of a draw: the same number gives the same batch, timesteps and noise, whatever was
    computed before it. So a resumed run repeats an uninterrupted one, and no generator state needs saving.
    """

    module: nn.Module

    def forget(self, draw: int) -> Tensor:
        """L_f, a scalar: how badly the model does what it is to forget, under the data's own targets."""
        ...

    def retain(self, draw: int) -> Tensor:
        """L_r, a scalar: how badly the model does what it is to keep, under the data's own targets."""
        ...

    def replacement(self, draw: int) -> Tensor:
        """The same loss on what takes the place of `forget`'s batch, under the same timesteps and noise."""
        ...

    def repair(self, draw: int) -> tuple[Tensor, Tensor]:
        """The repair's two terms, both scalars to minimise: (towards forgetting, towards keeping)."""
        ...


Parameters = dict[str, nn.Parameter]  # the parameters in scope, by their name in the module
