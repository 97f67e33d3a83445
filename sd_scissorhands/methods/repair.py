"""Repair after the edit: descend the retain and forget terms, with gradients projected against the memories."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .adversary import EPISODE, PACE, Adversary
from .distributed import SINGLE_PROCESS, BatchSlice, ProcessGroup, gradient_hooks, swapped_weights
from .interface import Parameters, Task
from .project import Memories, Projection, Rule, project
from .selection import Selection

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD, the authors'
MEMORY_DRAWS = 1 << 20  # draws of the memory gradients lie apart from those of the steps
SETTLE = 10  # steps between looks at the losses, each of which an accelerator must be waited for

Make = Callable[[list[Tensor], float], torch.optim.Optimizer]  # an optimiser of tensors at a learning rate


def adam(tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam, the authors' for diffusion; fused, one pass over memory instead of a dozen."""
    return torch.optim.Adam(tensors, lr=lr, fused=True)


def sgd(tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Momentum SGD, the authors' for classifiers, with `WEIGHT_DECAY`."""
    return torch.optim.SGD(tensors, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def adam_8bit(tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam with its moments in 8 bits, by blocks (Dettmers et al., ICLR 2022, arXiv 2110.02861): 2 bytes a weight, not 8.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError:
        raise ValueError("optimiser adam-8bit needs bitsandbytes: pip install bitsandbytes, or take adam") from None
    return bitsandbytes.optim.Adam8bit(tensors, lr=lr)


OPTIMISERS: dict[str, Make] = {"adam": adam, "adam-8bit": adam_8bit, "sgd": sgd}


@dataclass
class Repair:
    """The state of a repair; `run` takes it from wherever it stands to the last step.

    Minimises retain + forget_weight * forget with the authors' optimisers. Every `memory_every` steps the memory
    f = grad of -L_f is taken afresh at the current weights, as the authors do every epoch. Weight decay and momentum act after
    the projection, so the constraint holds for the gradient, not for the step (as in the authors' code).

    Every `relearn_every` steps the task takes half of the forget term, or all of it, where a `Adversary` has taken the weights
    (ours). It starts again after `EPISODE` of its steps, and with every epoch, so that a checkpoint needs nothing of it.

    A batch is taken in as many parts as the group has processes, times `parts`, whose gradients are averaged: the same step
    up to rounding, in less memory or time. With `only`, gradients, moments and memories are held for the chosen weights alone.
    """

    task: Task
    parameters: Parameters
    steps: int
    lr: float
    forget_weight: float
    rule: Rule | None
    memory_every: int = 50
    relearn_every: int = 0  # steps between looks ahead at what fine-tuning would bring back; 0 for none
    make: Make = adam
    only: Selection | None = None  # weights that may change; None for all parameters
    parts: int = 1  # of a process's batch, one after the other
    group: ProcessGroup = SINGLE_PROCESS
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trained: dict[str, Tensor] = dict(self.parameters)  # what the optimiser moves, by parameter
        if self.only is not None:
            self.rows = {n: rows.to(self.parameters[n].device) for n, rows in self.only.indices.items()}
            self.trained = {n: self.parameters[n].detach().view(-1)[rows] for n, rows in self.rows.items()}
        self.optimizer = self.make(list(self.trained.values()), self.lr)
        self._unsettled: list[tuple[Tensor, Projection]] = []

    def run(self, callback: Callable[[Repair], None] = lambda repair: None) -> None:
        """Do the remaining steps; `callback(self)` after each.

        Raises:
            FloatingPointError: a loss is not finite; told within `SETTLE` steps, and before the end of an epoch is.
        """
        memories: Memories | None = None
        moved = {name: self.parameters[name] for name in self.trained}
        relearner = Adversary(moved, self.lr * PACE) if self.relearn_every else None
        while self.step < self.steps:
            if self.rule is not None and (memories is None or self.step % self.memory_every == 0):
                memories = Memories([self._memory()])
            if relearner and (self.step % self.memory_every == 0 or relearner.step == EPISODE):
                relearner = Adversary(moved, self.lr * PACE)
            looks = relearner and self.step % self.relearn_every == 0
            self._descend(memories, relearner if looks else None)
            self.step += 1
            if self.step % SETTLE == 0 or self.step % self.memory_every == 0 or self.step == self.steps:
                self._settle()
            callback(self)

    def _memory(self) -> list[Tensor]:
        """f = grad of -L_f at the current weights, on a draw of its own."""
        draw = MEMORY_DRAWS + self.step // self.memory_every
        with self._gathered():
            for part in self._shares():
                self._back(-self.task.forget(draw, part) / self.parts)
        memory = self._gradients()
        self.group.average(memory)
        for tensor in self.trained.values():
            tensor.grad = None
        return memory

    def _descend(self, memories: Memories | None, relearner: Adversary | None) -> None:
        terms = torch.zeros(2, device=next(iter(self.parameters.values())).device)
        shares = self._shares()
        ahead = relearner.advance(self.task, self.step, shares, self.group) if relearner else None
        with self._gathered():
            for part in shares:
                if ahead:
                    with swapped_weights(self.parameters, ahead):
                        terms += self._back_of(part, True)
                terms += self._back_of(part, False if ahead else None)
        gradients = self._gradients()
        self.group.average([*gradients, terms])
        done = Projection(False, 0.0)
        if memories and self.rule:  # which reads numbers anyway, and cannot take others
            self._check(self.step, terms.tolist())
            done = project(gradients, memories, self.rule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate(self.step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._scatter()
        self._unsettled.append((terms, done))

    def _shares(self) -> list[BatchSlice]:
        """What this process takes of a batch, one after the other."""
        count, group = self.parts, self.group
        return [BatchSlice(number * group.count + group.index, count * group.count) for number in range(count)]

    def _back_of(self, part: BatchSlice, ahead: bool | None) -> Tensor:
        """Backward through a slice's terms; the terms, as shares of the process's: (2,)."""
        forget, retain = self.task.repair(self.step, part, ahead)
        self._back((retain + self.forget_weight * forget) / self.parts)
        return torch.stack([forget.detach(), retain.detach()]) / self.parts

    def _back(self, loss: Tensor) -> None:
        if loss.requires_grad:  # not where a part has no sample
            torch.autograd.backward(loss, inputs=[self.parameters[name] for name in self.trained])

    def _gathered(self):
        """Within it gradients go to what is trained: where that is single weights, no others are held."""
        if self.only is None:
            return nullcontext()

        def use(name: str, gradient: Tensor) -> None:
            own = gradient.view(-1)[self.rows[name]]
            grad = self.trained[name].grad
            self.trained[name].grad = own if grad is None else grad.add_(own)

        return gradient_hooks({name: self.parameters[name] for name in self.trained}, use)

    def _gradients(self) -> list[Tensor]:
        """The gradients of what is trained, zero where the loss does not depend on it."""
        for tensor in self.trained.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor, requires_grad=False)
        return [tensor.grad for tensor in self.trained.values() if tensor.grad is not None]

    @torch.no_grad()
    def _scatter(self) -> None:
        """Put single weights that are trained where they belong."""
        if self.only is not None:
            for name, rows in self.rows.items():
                self.parameters[name].view(-1)[rows] = self.trained[name]

    def _settle(self) -> None:
        """Read the losses of the latest steps."""
        first = self.step - len(self._unsettled)
        told = torch.stack([terms for terms, _ in self._unsettled]).tolist()
        for step, ((forget, retain), (_, done)) in enumerate(zip(told, self._unsettled, strict=True), first):
            self._check(step, [forget, retain])
            self.history.append(
                {
                    "step": step,
                    "forget": forget,
                    "retain": retain,
                    "conflict": done.conflict,
                    "correction": done.correction,
                }
            )
        self._unsettled = []

    @staticmethod
    def _check(step: int, terms: list[float]) -> None:
        if not math.isfinite(sum(terms)):
            raise FloatingPointError(
                f"the repair loss is not finite at step {step}: lower --lr or use --mixed-precision no"
            )

    def state(self) -> dict[str, Tensor]:
        """Everything that a continued repair needs, see `state_of`."""
        return state_of(self.trained, self.optimizer)

    def restore(self, tensors: dict[str, Tensor], step: int, history: list[dict[str, Any]]) -> None:
        """Continue from a `state` taken after `step` steps."""
        restore_into(self.trained, self.optimizer, tensors, step)
        self._scatter()
        self.step, self.history = step, list(history)


def state_of(trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's moments as named tensors: KIND/PARAMETER, the weights' kind is `weight`."""
    tensors = {}
    for name, parameter in trained.items():
        tensors[f"weight/{name}"] = parameter.detach()
        moments = {
            kind: m for kind, m in optimizer.state[parameter].items() if kind != "step" and isinstance(m, Tensor)
        }
        for kind, moment in moments.items():  # tables of 8-bit codes are one tensor for all, which no file can say
            tensors[f"{kind}/{name}"] = moment.clone() if kind.startswith("qmap") else moment
    return tensors


@torch.no_grad()
def restore_into(
    trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], step: int
) -> None:
    """Put back what `state_of` gave after `step` steps."""
    moments = sorted({kind for kind, _, _ in (name.partition("/") for name in tensors)} - {"weight"})
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"weight/{name}"])
        own = {kind: tensors.get(f"{kind}/{name}") for kind in moments}  # 8-bit Adam has others for small tensors
        optimizer.state[parameter] = {kind: m.to(parameter.device) for kind, m in own.items() if m is not None}
        if isinstance(optimizer, torch.optim.Adam):
            optimizer.state[parameter]["step"] = torch.tensor(float(step), device=parameter.device)
        elif not isinstance(optimizer, torch.optim.SGD):
            optimizer.state[parameter]["step"] = step


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: whole for the first half, then linear to a tenth.

    The authors keep it constant; the decay lets the retain term settle after the forgetting is done.
    """
    return min(1.0, 0.1 + 1.8 * (1 - step / steps))
