"""A simulated attacker who fine-tunes the weights on the concept, so that the repair can stay ahead of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .task import Parameters, Task

BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's


class Relearner:
    """Where some steps of fine-tuning on the concept take the weights: theta + d, with d held apart from theta.

    The forget term taken at theta + d, with d fixed, has the first-order gradient of what fine-tuning would undo (first-order
    MAML, Finn et al. 2017, section 5.2; as tamper resistance for language models, Tamirisa et al. 2024, arXiv 2408.00761,
    who take the retain term there too). d grows by Adam while theta goes its own way.
    """

    def __init__(self, parameters: Parameters, lr: float):
        self.parameters, self.lr, self.step = parameters, lr, 0
        self.displacement, self.mean, self.square = (
            [torch.zeros_like(p) for p in parameters.values()] for _ in range(3)
        )

    def advance(self, task: Task, draw: int) -> dict[str, Tensor]:
        """One Adam step of d down the task's `relearn` loss; the weights then, see `weights`."""
        weights = {name: weight.detach().requires_grad_(True) for name, weight in self.weights().items()}
        gradients = torch.autograd.grad(task.relearn(draw, weights), list(weights.values()), allow_unused=True)
        self.step += 1
        corrected = [1 - beta**self.step for beta in BETAS]
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                mean, square = self.mean[place], self.square[place]
                mean.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square(), 1 - BETAS[1])
                self.displacement[place] -= self.lr * (mean / corrected[0]) / ((square / corrected[1]).sqrt() + EPS)
        return self.weights()

    def weights(self) -> dict[str, Tensor]:
        """theta + d by name, differentiable in theta."""
        return {name: p + d for (name, p), d in zip(self.parameters.items(), self.displacement, strict=True)}
