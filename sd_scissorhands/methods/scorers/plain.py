"""Connection sensitivity to the concept alone, as the paper has it."""

from __future__ import annotations

from torch import Tensor

from ..interface import Parameters, Task
from ..registry import Options
from ..sensitivity import sensitivity

NEEDS, PASSES = ("forget",), 1


def score(task: Task, parameters: Parameters, options: Options) -> dict[str, Tensor]:
    """|theta| * sum |dL_f/dtheta| (Scissorhands, eq. 4), see `sensitivity`."""
    return sensitivity(task.forget, parameters, options.draws, group=options.group, tick=options.tick)
