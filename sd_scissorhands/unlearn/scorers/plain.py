"""Connection sensitivity to the concept alone, as the paper has it."""

from __future__ import annotations

from torch import Tensor

from ..methods import Options
from ..sensitivity import sensitivity
from ..task import Parameters, Task

NEEDS, PASSES = ("forget",), 1


def score(task: Task, parameters: Parameters, options: Options) -> dict[str, Tensor]:
    """|theta| * sum |dL_f/dtheta| (Scissorhands, eq. 4), see `sensitivity`."""
    return sensitivity(task.forget, parameters, options.draws, team=options.team, tick=options.tick)
