"""The selected weights become 0."""

from __future__ import annotations

import torch

from ..interface import Parameters, Task
from ..registry import Options
from ..selection import Selection

NEEDS = ()


@torch.no_grad()
def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """LRA-NPP's perturbation: the path's weights, its rows with their biases where channels were selected."""
    for name, rows in selection.indices.items():
        parameters[name].view(-1)[rows.to(parameters[name].device)] = 0
