"""Repair after the edit: descend the retain and forget terms, with gradients projected against the memories."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .project import Projection, Rule, project
from .relearner import Relearner
from .task import Parameters, Task

EPISODE = 5  # steps of the simulated attacker, who then starts again from the weights as they stand
PACE = 0.75  # the simulated attacker's learning rate, as a share of the repair's
MEMORY_DRAWS = 1 << 20  # draws of the memory gradients lie apart from those of the steps


@dataclass
class Repair:
    """The state of a repair; `run` takes it from wherever it stands to the last step.

    Minimises retain + forget_weight * forget with Adam (the authors' optimiser for diffusion). Every `memory_every`
    steps the memories f_i = grad of -L_f are taken afresh at the current weights, as the authors do every epoch. Momentum
    acts after the projection, so the constraint holds for the gradient, not for the step (as in the authors' code).

    Every `relearn_every` steps the task takes the forget term also where a `Relearner` has taken the weights (ours). It starts again
    after `EPISODE` of them, and with every epoch, so that a checkpoint needs nothing of it.
    """

    task: Task
    parameters: Parameters
    steps: int
    lr: float
    forget_weight: float
    rule: Rule | None
    memories: int = 1
    memory_every: int = 50
    relearn_every: int = 0  # steps between looks ahead at what fine-tuning would bring back; 0 for none
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.lr)

    def run(self, callback: Callable[[Repair], None] = lambda repair: None) -> None:
        """Do the remaining steps; `callback(self)` after each.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        memories: list[list[Tensor]] = []
        relearner = Relearner(self.parameters, self.lr * PACE)
        while self.step < self.steps:
            if self.rule is not None and (not memories or self.step % self.memory_every == 0):
                memories = [self._memory(number) for number in range(self.memories)]
            if self.step % self.memory_every == 0 or relearner.step == EPISODE:
                relearner = Relearner(self.parameters, self.lr * PACE)
            ahead = None
            if self.relearn_every and self.step % self.relearn_every == 0:
                ahead = relearner.advance(self.task, self.step)
            self._descend(memories, ahead)
            self.step += 1
            callback(self)

    def _memory(self, number: int) -> list[Tensor]:
        """f = grad of -L_f at the current weights, on a draw of its own."""
        epoch = self.step // self.memory_every
        loss = -self.task.forget(MEMORY_DRAWS + epoch * self.memories + number)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters.values(), gradients, strict=True)
        ]

    def _descend(self, memories: list[list[Tensor]], ahead: dict[str, Tensor] | None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        forget, retain = self.task.repair(self.step, ahead)
        loss = retain + self.forget_weight * forget
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the repair loss is not finite at step {self.step}: lower --lr or use --mixed-precision no"
            )
        loss.backward()
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        done = Projection(False, 0.0)
        if self.rule is not None:
            done = project([p.grad for p in self.parameters.values() if p.grad is not None], memories, self.rule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate(self.step, self.steps)
        self.optimizer.step()
        self.history.append(
            {
                "step": self.step,
                "forget": forget.item(),
                "retain": retain.item(),
                "conflict": done.conflict,
                "correction": done.correction,
            }
        )

    def state(self) -> dict[str, Tensor]:
        """Everything that a continued repair needs, see `state_of`."""
        return state_of(self.parameters, self.optimizer)

    def restore(self, tensors: dict[str, Tensor], step: int, history: list[dict[str, Any]]) -> None:
        """Continue from a `state` taken after `step` steps."""
        restore_into(self.parameters, self.optimizer, tensors, step)
        self.step, self.history = step, list(history)


def state_of(parameters: Parameters, adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Weights and both Adam moments as named tensors."""
    tensors = {}
    for name, parameter in parameters.items():
        moments = adam.state[parameter]
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"mean/{name}"], tensors[f"square/{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
    return tensors


@torch.no_grad()
def restore_into(parameters: Parameters, adam: torch.optim.Adam, tensors: dict[str, Tensor], step: int) -> None:
    """Put back what `state_of` gave after `step` steps."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight/{name}"])
        adam.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"mean/{name}"].to(parameter),
            "exp_avg_sq": tensors[f"square/{name}"].to(parameter),
        }


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: whole for the first half, then linear to a tenth.

    The authors keep it constant; the decay lets the retain term settle after the forgetting is done.
    """
    return min(1.0, 0.1 + 1.8 * (1 - step / steps))
