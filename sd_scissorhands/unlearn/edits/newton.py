"""A Newton step up the forget loss, on the selected weights alone."""

from __future__ import annotations

from .. import newton
from ..methods import Options
from ..selection import Selection
from ..task import Parameters, Task

NEEDS = ("forget", "retain", "repair")


def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """L-CODEC's removal, see `newton.remove`."""
    newton.remove(task, parameters, selection, options)
