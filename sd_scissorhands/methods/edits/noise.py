"""Noise on the selected weights."""

from __future__ import annotations

import torch

from ..interface import Parameters, Task
from ..method import Edit, Options
from ..selection import Selection
from . import EDITS
from .reinitialise import generator_of


@torch.no_grad()
def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """Add N(0, s^2), s the layer's own standard deviation: LRA-NPP's control for zeroing.

    The authors add N(0, 1) whatever the layer, which drowns any layer of ordinary scale.
    """
    for name, rows in selection.indices.items():
        parameter = parameters[name]
        fresh = torch.randn(rows.numel(), generator=generator_of(name, options.seed))
        parameter.view(-1)[rows.to(parameter.device)] += fresh.to(parameter) * parameter.std(correction=0)


EDITS.add("noise", Edit(edit))
