"""A simulated attacker who fine-tunes the weights on the concept, so that the repair can stay ahead of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .distributed import FULL_BATCH, SINGLE_PROCESS, BatchSlice, ProcessGroup, swapped_weights
from .interface import Parameters, Task

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's


class Adversary:
    """Where some steps of fine-tuning on the concept take the weights: theta + d, with d held apart from theta.

    The forget term taken at theta + d, with d fixed, has the first-order gradient of what fine-tuning would undo (first-order
    MAML, Finn et al. 2017, section 5.2; as tamper resistance for language models, Tamirisa et al. 2024, arXiv 2408.00761,
    who take the retain term there too). d grows by Adam while theta goes its own way.
    """

    def __init__(self, parameters: Parameters, lr: float):
        self.parameters, self.lr, self.step = parameters, lr, 0
        self.displacement, self.mean, self.square = (
            [torch.zeros_like(p, requires_grad=False) for p in parameters.values()] for _ in range(3)
        )

    def advance(
        self, task: Task, draw: int, shares: Sequence[BatchSlice] = (FULL_BATCH,), group: ProcessGroup = SINGLE_PROCESS
    ) -> dict[str, Tensor]:
        """One Adam step of d down the task's `relearn` loss, the same on the whole group; the weights then, see `weights`.

        Args:
            shares: what this process takes of the batch, one after the other.
        """
        with swapped_weights(self.parameters, self.weights()):
            for part in shares:
                loss = task.relearn(draw, part) / len(shares)
                if loss.requires_grad:
                    torch.autograd.backward(loss, inputs=list(self.parameters.values()))
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        for parameter in self.parameters.values():
            parameter.grad = None
        group.average(gradients)
        self.step += 1
        corrected = [1 - beta**self.step for beta in BETAS]
        for place, gradient in enumerate(gradients):
            mean, square = self.mean[place], self.square[place]
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square_(), 1 - BETAS[1])
            self.displacement[place].addcdiv_(
                mean, (square / corrected[1]).sqrt_().add_(EPS), value=-self.lr / corrected[0]
            )
        return self.weights()

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """theta + d by name."""
        return {name: p + d for (name, p), d in zip(self.parameters.items(), self.displacement, strict=True)}
