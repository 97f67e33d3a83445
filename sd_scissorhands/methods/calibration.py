"""Find a repair's learning rate, forget weight and length while it runs, from looks at held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

LOOKS = (20, 40, 80)  # steps after a change of the rate at which it is looked; and at half, and at the end
FAST = 0.5  # change of the prediction that is too much in these first steps,
SLOWER, RESTARTS = 4.0, 5  # and by what the rate is divided then; so often at most
SLOW_AT, FALLEN = 40, 0.2  # by then so much of the concept must be gone, or
AIM, STEEPEST, RAISES = 0.3, (2.0, 8.0), 5  # the rate is raised to reach this, by no less and no more; so often at most
TOLERATED, GAIN = 0.5, 0.5  # change of the prediction from which on forgetting weighs less; how fast
HALFWAY, EXTENSIONS = 0.6, 2  # share of the concept that may be left at half; so often the repair grows by a half
MORE = 2.0  # by what the forget weight is raised where a repair has ended and the concept is not gone
MOST_LEFT = {"name": 0.5, "near": 0.55, "arbitrary": 0.8, "generic": 0.8}  # share that may be left at the end


@dataclass(frozen=True)
class Look:
    """What one look at held-out data found."""

    left: dict[str, float]  # kind of words -> share of the concept that is left: 1 as in the original, 0 at its pair
    moved: dict[str, float]  # captions and open prompts -> change of the prediction, of what the words change in it

    @property
    def stays(self) -> list[str]:
        """Kinds of words under which too much of the concept is left."""
        return [kind for kind, share in self.left.items() if not share <= MOST_LEFT[kind]]


@dataclass(frozen=True)
class Plan:
    """How a repair goes on."""

    lr: float
    forget_weight: float
    steps: int  # in all
    first: int = 0  # step since which the rate stands

    def rate(self, step: int) -> float:
        """Learning rate of a step: whole for the first half, then linear to a tenth.

        The authors keep it constant; the decay lets the retain loss settle after the forgetting is done.
        """
        return self.lr * min(1.0, 0.1 + 1.8 * (1 - (step - self.first) / (self.steps - self.first)))

    @property
    def half(self) -> int:
        """The step at which the rate begins to fall."""
        return self.first + (self.steps - self.first) // 2

    def looked_at(self, step: int) -> bool:
        """Whether it is looked after so many steps."""
        return step - self.first in LOOKS or step in (self.half, self.steps)


@dataclass
class Calibration:
    """Changes a repair's plan where a look finds it too fast, too slow, too harmful or not done (ours).

    - Too fast: the prediction has changed by more than `FAST` of what words change in it, or a loss is not finite. Back to
      the weights that the repair began with, at a quarter of the rate.
    - Too slow: after 40 steps less than a fifth of the concept is gone. The rate is raised, by what would take it to `AIM`
      if the loss were linear, and the repair's steps count from here.
    - Too harmful: beyond `TOLERATED` the forget weight falls with the excess. That is dual ascent on the constraint that
      the rest may change by so much, one-sided, in the ratio of the two weights.
    - Not done: half of the steps more where too much is left at half, or at the end; there with twice the forget weight.

    A repair that needs none of this runs as it would without. Prior art: constrained unlearning by primal and dual steps
    (arXiv 2605.30825), bargaining between the two losses (MUNBa, arXiv 2411.15537); rates by the weights' own size as in LAMB (You
    et al., ICLR 2020, arXiv 1904.00962). The thresholds are measured on the embedded model, see docs/defaults.md.
    """

    look: Callable[[], Look]
    steps: int  # of the first plan
    restarts: int = 0
    raises: int = 0
    extensions: int = 0
    looks: list[dict[str, Any]] = field(default_factory=list)  # step, left, moved, lr, forget_weight, did

    def after(self, plan: Plan, step: int) -> Plan | None:
        """The plan from here on; None to begin again, by `restarted`."""
        if not plan.looked_at(step):
            return plan
        look = self.look()
        plan_now, did = self._decide(plan, step, look)
        values = plan_now or plan
        self.looks.append(
            {"step": step, **asdict(look), "lr": values.lr, "forget_weight": values.forget_weight, "did": did}
        )
        return plan_now

    def _decide(self, plan: Plan, step: int, look: Look) -> tuple[Plan | None, str]:
        """The new plan, and what was decided in a word."""
        moved, gone, since = max(look.moved.values()), 1 - look.left["name"], step - plan.first
        if not moved <= FAST and since <= max(LOOKS) and self.restarts < RESTARTS:
            return None, "too fast"
        if moved > TOLERATED:
            plan = replace(plan, forget_weight=plan.forget_weight * math.exp(-GAIN * min(moved / TOLERATED - 1, 1)))
        if since == SLOW_AT and gone < FALLEN and self.raises < RAISES:
            self.raises += 1
            faster = min(max(AIM / max(gone, 1e-6), STEEPEST[0]), STEEPEST[1])
            return replace(plan, lr=plan.lr * faster, first=step, steps=step + self.steps), "too slow"
        late = step == plan.half and look.left["name"] > HALFWAY
        if (late or (step == plan.steps and look.stays)) and self.extensions < EXTENSIONS:
            self.extensions += 1
            more = self.steps // 2
            if late:
                return replace(plan, steps=plan.steps + more), "not done"
            return replace(plan, first=step, steps=step + more, forget_weight=plan.forget_weight * MORE), "not done"
        return plan, "harmful" if moved > TOLERATED else ""

    def restarted(self, plan: Plan) -> Plan:
        """The plan after a return to the first weights."""
        self.restarts += 1
        return replace(plan, lr=plan.lr / SLOWER, first=0, steps=self.steps)

    def state(self) -> dict[str, Any]:
        """Everything that a continued repair needs, as JSON."""
        return {name: getattr(self, name) for name in ("restarts", "raises", "extensions", "looks")}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)
