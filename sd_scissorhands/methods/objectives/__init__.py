"""Repair objectives: what takes the concept's place. Each is one file, under the name that --repair takes.

class Anchor(Loss["ConceptSamples"]):
    def questions(self, x: ConceptSamples) -> Questions:
        return [(x.noisy, x.anchor_words)]

OBJECTIVES.add("anchor", Objective("what the original predicts under the anchor's words", diffusion=Anchor()))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...registry import Registry
from ..losses import Loss

TASKS = {"diffusion": "diffusion models", "classifier": "classifiers"}  # kinds of task -> in words


@dataclass(frozen=True)
class Objective:
    """A forget loss for each kind of task that it fits."""

    summary: str  # what the model should give in the concept's place, in a few words
    diffusion: Loss[Any] | None = None
    classifier: Loss[Any] | None = None
    needs_pairs: bool = False  # whether every picture of the concept needs its pair
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings over the recipe's, unless the user gives them


OBJECTIVES: Registry[Objective] = Registry("repair objective", __name__, Path(__file__).parent)


def loss_of(name: str, task: str) -> Loss[Any]:
    """An objective's forget loss for a kind of task, one of `TASKS`.

    Raises:
        UserError: it does not fit; the message lists what does.
    """
    if (loss := getattr(OBJECTIVES[name], task)) is None:
        fitting = ", ".join(other for other, objective in OBJECTIVES if getattr(objective, task))
        kinds = " and ".join(words for kind, words in TASKS.items() if getattr(OBJECTIVES[name], kind))
        raise UserError(f"--repair {name} is for {kinds}: choose {fitting}")
    return loss
