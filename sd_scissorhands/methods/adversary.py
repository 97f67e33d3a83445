"""An adversary: simulated fine-tuning on the concept, against which the repair trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .distributed import FULL_BATCH, SINGLE_PROCESS, BatchSlice, ProcessGroup, backward, swapped_weights
from .interface import Parameters, Task

EPISODE = 5  # steps of fine-tuning, after which it starts again from the weights as they are then
PACE = 0.75  # its learning rate, as a share of the repair's


class Adversary:
    """Where some steps of fine-tuning on the concept take the weights: theta + d, with d held apart from theta.

    The forget term taken at theta + d, with d fixed, has the first-order gradient of what fine-tuning would undo (first-order
    MAML, Finn et al. 2017, section 5.2; as tamper resistance for language models, Tamirisa et al. 2024, arXiv 2408.00761,
    who take the retain term there too). Adam optimises d while theta goes its own way.
    """

    def __init__(self, parameters: Parameters, lr: float):
        self.parameters, self.step = parameters, 0
        self.displacement = [torch.zeros_like(p, requires_grad=False) for p in parameters.values()]
        self.adam = torch.optim.Adam(self.displacement, lr=lr, fused=True)

    def advance(
        self,
        task: Task,
        draw: int,
        slices: Sequence[BatchSlice] = (FULL_BATCH,),
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> dict[str, Tensor]:
        """One Adam step of d down the task's `relearn` loss, the same on the whole group; the weights then, see `weights`.

        Args:
            slices: this process's of the batch, one after the other.
        """
        with swapped_weights(self.parameters, self.weights()):
            for part in slices:
                backward(task.relearn(draw, part) / len(slices), self.parameters)
        for parameter, d in zip(self.parameters.values(), self.displacement, strict=True):
            d.grad = torch.zeros_like(d) if parameter.grad is None else parameter.grad
            parameter.grad = None
        group.average([d.grad for d in self.displacement if d.grad is not None])
        self.adam.step()
        self.adam.zero_grad()
        self.step += 1
        return self.weights()

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """theta + d by name."""
        return {name: p + d for (name, p), d in zip(self.parameters.items(), self.displacement, strict=True)}
