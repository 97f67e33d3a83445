"""The selected weights become 0."""

from __future__ import annotations

import torch

from ..interface import Parameters, Task
from ..method import Edit, Options
from ..selection import Selection
from . import EDITS


def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """LRA-NPP's perturbation: the path's weights, its rows with their biases where channels were selected."""
    selection.put(parameters, {name: torch.zeros(len(rows)) for name, rows in selection.indices.items()})


EDITS.add("zero", Edit(edit))
