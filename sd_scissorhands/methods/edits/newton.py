"""A Newton step up the forget loss, on the selected weights alone."""

from __future__ import annotations

from .. import newton_step as newton
from ..interface import Parameters, Task
from ..registry import Options
from ..selection import Selection

NEEDS = ("forget", "retain", "repair")


def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """L-CODEC's removal, see `newton.remove`."""
    newton.remove(task, parameters, selection, options)
