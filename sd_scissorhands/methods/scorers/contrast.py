"""Connection sensitivity to the concept over that to everything else."""

from __future__ import annotations

from .. import sensitivity
from ..interface import Parameters, Task
from ..method import Options, Scorer, Scores
from . import SCORERS


def score(task: Task, parameters: Parameters, options: Options) -> Scores:
    """s_f / (s_r + mean s_r) (ours), see `sensitivity.contrast`."""
    forget, retain = (
        sensitivity.sensitivity(loss, parameters, options.draws, group=options.group, tick=options.tick)
        for loss in (task.forget, task.retain)
    )
    return sensitivity.contrast(forget, retain)


SCORERS.add("contrast", Scorer(score, needs=("forget", "retain"), passes=2))
