"""Repair after the edit: descend the retain and forget loss, with gradients projected where one term works against the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .adversary import EPISODE, PACE, Adversary
from .batch_norm import statistics
from .calibration import RESTARTS, Calibration, Plan
from .distributed import SINGLE_PROCESS, BatchSlice, ProcessGroup, backward, swapped_weights
from .interface import Parameters, Task
from .optimisers import Make, Trained, adam, restore_into, state_of
from .project import Memory, Projection, Rule, project, protect_retained
from .selection import Selection

MEMORY_DRAWS = 1 << 20  # draws of the memory gradients lie apart from those of the steps
STATISTICS = "statistics"  # kind of tensors in a state
READ_EVERY = 10  # steps between reading the losses, for which an accelerator must be waited

History = list[dict[str, float]]  # of every step: step, forget, retain, conflict (of any way), correction (sum of both)


@dataclass(frozen=True)
class RepairSettings:
    """How to repair."""

    steps: int
    lr: float
    forget_weight: float
    rule: Rule | None = None  # of the projection; None for none
    memory_every: int = 50  # steps between fresh memory gradients, the authors' epoch
    relearn_every: int = 0  # steps between those against an adversary; 0 for none
    optimiser: Make = adam
    slices: int = 1  # that a process takes its share of a batch in, one after the other
    protect_retained: bool = False  # project the forget term's gradient where it conflicts with the retain term's


class Repair:
    """A repair as it stands; `run` takes it on to the last step.

    Minimises retain + forget_weight * forget with the authors' optimisers. Every `memory_every` steps the memory
    f = grad of -L_f is taken afresh at the current weights, as the authors do every epoch. Weight decay and momentum act after
    the projection, so the constraint holds for the gradient, not for the step (as in the authors' code).

    With `protect_retained`, what would raise the step's own retain loss is first taken out of the forget term's gradient, see
    there, at the price of a second backward pass. An average over steps would be less noisy, but of other weights, and one more
    state to resume.

    Every `relearn_every` steps half of the forget loss is taken where an `Adversary` has led the weights (ours). It starts
    again after `EPISODE` of its steps, and with every epoch, so that a checkpoint needs nothing of it.

    A batch is taken in as many slices as the group has processes, times `slices`, whose gradients are averaged: the same step
    up to rounding, in less memory or time.
    """

    def __init__(
        self,
        task: Task,
        parameters: Parameters,
        settings: RepairSettings,
        *,
        only: Selection | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        calibration: Calibration | None = None,
    ):
        """`only`: weights that may change; None for all of the parameters. `calibration`: may change the plan on the way."""
        self.task, self.settings, self.group, self.trained = task, settings, group, Trained(parameters, only)
        self.plan, self.calibration = Plan(settings.lr, settings.forget_weight, settings.steps), calibration
        self.optimizer = settings.optimiser(list(self.trained.tensors.values()), settings.lr)
        self._first = (
            {name: t.detach().cpu().clone() for name, t in self.trained.tensors.items()} if calibration else {}
        )
        count = settings.slices * group.count
        self.slices = [BatchSlice(at, count) for at in range(group.index, count, group.count)]
        self.step = 0
        self.history: History = []
        self._unread: list[tuple[Tensor, Projection]] = []

    def run(self, callback: Callable[[Repair], None] = lambda repair: None) -> None:
        """Do the remaining steps; `callback(self)` after each.

        Raises:
            FloatingPointError: a loss is not finite; noticed within `READ_EVERY` steps, and before the end of an epoch is.
        """
        s, memory, adversary = self.settings, None, None
        while self.step < self.plan.steps:
            if not self.step:
                memory = adversary = None
            epoch_begins = self.step % s.memory_every == 0
            if s.rule and (memory is None or epoch_begins):
                memory = Memory(self._memory())
            if s.relearn_every and (adversary is None or epoch_begins or adversary.step == EPISODE):
                adversary = Adversary(self.trained.parameters, self.plan.lr * PACE)
            try:
                self._descend(memory, adversary if s.relearn_every and self.step % s.relearn_every == 0 else None)
                self.step += 1
                if self.step % READ_EVERY == 0 or self.step % s.memory_every == 0 or self.step == self.plan.steps:
                    self._read_losses()
            except FloatingPointError:
                if not self.calibration or self.calibration.restarts == RESTARTS:
                    raise
                self._begin_again(self.calibration)
            else:
                self._calibrate()
            callback(self)

    def _calibrate(self) -> None:
        """Follow the calibration, where there is one."""
        if self.calibration:
            plan = self.calibration.after(self.plan, self.step)
            if plan is None:
                self._begin_again(self.calibration)
            else:
                self.plan = plan

    @torch.no_grad()
    def _begin_again(self, calibration: Calibration) -> None:
        """From the first weights, at a lower rate."""
        for name, tensor in self.trained.tensors.items():
            tensor.copy_(self._first[name])
        self.trained.put_back()
        self.trained.forget_gradients()
        self.plan = calibration.restarted(self.plan)
        self.optimizer = self.settings.optimiser(list(self.trained.tensors.values()), self.plan.lr)
        self.step, self.history, self._unread = 0, [], []

    def _memory(self) -> list[Tensor]:
        """f = grad of -L_f at the current weights, on a draw of its own."""
        draw = MEMORY_DRAWS + self.step // self.settings.memory_every
        with self.trained.gathering():
            for part in self.slices:
                backward(-self.task.forget(draw, part) / len(self.slices), self.trained.parameters)
        memory = self.trained.gradients()
        self.group.average(memory)
        self.trained.forget_gradients()
        return memory

    def _descend(self, memory: Memory | None, adversary: Adversary | None) -> None:
        """One step."""
        losses, gradients, retained = self._gradients(adversary)
        if memory or retained:  # whose projection reads numbers anyway, and cannot take others
            self._check(self.step, losses.tolist())
        projections = [protect_retained(gradients, retained)] if retained else []
        if memory and self.settings.rule:
            projections.append(project(gradients, memory, self.settings.rule))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trained.put_back()
        conflict, correction = any(p.conflict for p in projections), sum((p.correction for p in projections), 0.0)
        self._unread.append((losses, Projection(conflict, correction)))

    def _gradients(self, adversary: Adversary | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Means over all slices of the group.

        Returns:
            Forget and retain loss (2,), gradients of what is trained, and the retain term's alone; none unless protected.
        """
        tensors = self.trained.tensors.values() if self.settings.protect_retained else ()
        retained = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]
        losses = torch.zeros(2, device=next(iter(self.trained.parameters.values())).device)
        weights = adversary.advance(self.task, self.step, self.slices, self.group) if adversary else None
        with self.trained.gathering():
            for part in self.slices:
                if weights:
                    with swapped_weights(self.trained.parameters, weights):
                        losses += self._backward(part, True, [])  # where no sample is retained
                losses += self._backward(part, False if weights else None, retained)
        gradients = self.trained.gradients()
        self.group.average([*gradients, *retained, losses])
        return losses, gradients, retained

    def _backward(self, part: BatchSlice, adversary: bool | None, retained: list[Tensor]) -> Tensor:
        """Backward through a slice's losses, see `Task.repair`; forget and retain loss as shares of the process's: (2,).

        Args:
            retained: what the retain term's gradients alone are added to, too; nothing if empty.
        """
        forget, retain = self.task.repair(self.step, part, adversary)
        both, parameters = retain + self.plan.forget_weight * forget, self.trained.parameters
        backward(both / len(self.slices), parameters, keep_graph=bool(retained))
        if retained:
            with self.trained.adding_to(retained):
                backward(retain / len(self.slices), parameters)
        return torch.stack([forget.detach(), retain.detach()]) / len(self.slices)

    def _read_losses(self) -> None:
        """Enter the latest steps in the history."""
        first = self.step - len(self._unread)
        read = torch.stack([losses for losses, _ in self._unread]).tolist()
        for step, ((forget, retain), (_, did)) in enumerate(zip(read, self._unread, strict=True), first):
            self._check(step, [forget, retain])
            losses = {"step": step, "forget": forget, "retain": retain}
            self.history.append(losses | {"conflict": did.conflict, "correction": did.correction})
        self._unread = []

    @staticmethod
    def _check(step: int, losses: list[float]) -> None:
        if not math.isfinite(sum(losses)):
            raise FloatingPointError(
                f"the repair loss is not finite at step {step}: lower --lr or use --mixed-precision no"
            )

    @property
    def conflict_rate(self) -> float | None:
        """Share of the steps whose gradient was projected; None without a projection."""
        projected = self.history and (self.settings.rule or self.settings.protect_retained)
        return sum(record["conflict"] for record in self.history) / len(self.history) if projected else None

    @property
    def mean_correction(self) -> float | None:
        """Of the projected gradients, the mean length of what was added over the gradient's; None where there are none."""
        corrections = [record["correction"] for record in self.history if record["conflict"]]
        return sum(corrections) / len(corrections) if corrections else None

    def state(self) -> dict[str, Tensor]:
        """Everything that a continued repair needs: see `state_of`, and running statistics of the kind `statistics`."""
        running = {f"{STATISTICS}/{name}": tensor.clone() for name, tensor in statistics(self.task.module).items()}
        return state_of(self.trained.tensors, self.optimizer) | running

    def restore(
        self, state: dict[str, Tensor], step: int, history: History, calibrated: Mapping[str, Any] | None = None
    ) -> None:
        """Continue from a `state` taken after `step` steps, and `calibrated` then."""
        running, state = dict(state), {n: t for n, t in state.items() if not n.startswith(f"{STATISTICS}/")}
        restore_into(self.trained.tensors, self.optimizer, state, step)
        for name, tensor in statistics(self.task.module).items():
            tensor.copy_(running[f"{STATISTICS}/{name}"])
        self.trained.put_back()
        self.step, self.history = step, list(history)
        if self.calibration and calibrated:
            self.plan = Plan(**calibrated["plan"])
            self.calibration.restore(calibrated["calibration"])

    def calibrated(self) -> dict[str, Any]:
        """Plan and calibration as they stand, as JSON; nothing without a calibration."""
        return {"plan": asdict(self.plan), "calibration": self.calibration.state()} if self.calibration else {}
