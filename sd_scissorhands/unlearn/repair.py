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
from .selection import Selection
from .task import Parameters, Task

EPISODE = 5  # steps of the simulated attacker, who then starts again from the weights as they stand
PACE = 0.75  # the simulated attacker's learning rate, as a share of the repair's
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD, the authors'
MEMORY_DRAWS = 1 << 20  # draws of the memory gradients lie apart from those of the steps


@dataclass
class Repair:
    """The state of a repair; `run` takes it from wherever it stands to the last step.

    Minimises retain + forget_weight * forget with the authors' optimisers: Adam for diffusion, momentum SGD with weight decay
    for classifiers. Every `memory_every` steps the memories f_i = grad of -L_f are taken afresh at the current weights, as
    the authors do every epoch. Weight decay and momentum act after the projection, so the constraint holds for the
    gradient, not for the step (as in the authors' code).

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
    optimiser: str = "adam"  # adam | sgd
    only: Selection | None = None  # weights that may change; None for all parameters
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer: torch.optim.Optimizer
        if self.optimiser == "sgd":
            self.optimizer = torch.optim.SGD(self.parameters.values(), lr=self.lr, momentum=MOMENTUM)
        else:
            self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.lr)
        self.frozen = {}
        if self.only is not None:
            self.frozen = {name: ~self.only.mask(name, p) for name, p in self.parameters.items()}

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
        self._decay_and_freeze()
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

    @torch.no_grad()
    def _decay_and_freeze(self) -> None:
        """Weight decay on the gradients, then none at all on what may not change."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None
            if self.optimiser == "sgd":
                parameter.grad.add_(parameter, alpha=WEIGHT_DECAY)
            if name in self.frozen:
                parameter.grad.masked_fill_(self.frozen[name], 0)

    def state(self) -> dict[str, Tensor]:
        """Everything that a continued repair needs, see `state_of`."""
        return state_of(self.parameters, self.optimizer)

    def restore(self, tensors: dict[str, Tensor], step: int, history: list[dict[str, Any]]) -> None:
        """Continue from a `state` taken after `step` steps."""
        restore_into(self.parameters, self.optimizer, tensors, step)
        self.step, self.history = step, list(history)


def state_of(parameters: Parameters, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's moments as named tensors: KIND/PARAMETER, the weights' kind is `weight`."""
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        moments = optimizer.state[parameter]
        tensors |= {f"{kind}/{name}": value for kind, value in moments.items() if kind != "step" and value is not None}
    return tensors


@torch.no_grad()
def restore_into(
    parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], step: int
) -> None:
    """Put back what `state_of` gave after `step` steps."""
    moments = {kind for kind, _, _ in (name.partition("/") for name in tensors)} - {"weight"}
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight/{name}"])
        optimizer.state[parameter] = {kind: tensors[f"{kind}/{name}"].to(parameter) for kind in sorted(moments)}
        if isinstance(optimizer, torch.optim.Adam):
            optimizer.state[parameter]["step"] = torch.tensor(float(step))


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: whole for the first half, then linear to a tenth.

    The authors keep it constant; the decay lets the retain term settle after the forgetting is done.
    """
    return min(1.0, 0.1 + 1.8 * (1 - step / steps))
