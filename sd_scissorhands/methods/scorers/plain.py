"""Connection sensitivity to the concept alone, as the paper has it."""

from __future__ import annotations

from ..interface import Parameters, Task
from ..method import Options, Scorer, Scores
from ..sensitivity import sensitivity
from . import SCORERS


def score(task: Task, parameters: Parameters, options: Options) -> Scores:
    """|theta| * sum |dL_f/dtheta| (Scissorhands, eq. 4), see `sensitivity`."""
    return sensitivity(task.forget, parameters, options.draws, group=options.group, tick=options.tick)


SCORERS.add("plain", Scorer(score, needs=("forget",), passes=1))
