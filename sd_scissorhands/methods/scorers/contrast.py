"""Connection sensitivity to the concept over that to everything else."""

from __future__ import annotations

from torch import Tensor

from .. import sensitivity
from ..interface import Parameters, Task
from ..registry import Options

NEEDS, PASSES = ("forget", "retain"), 2


def score(task: Task, parameters: Parameters, options: Options) -> dict[str, Tensor]:
    """s_f / (s_r + mean s_r) (ours), see `sensitivity.contrast`."""
    forget, retain = (
        sensitivity.sensitivity(loss, parameters, options.draws, group=options.group, tick=options.tick)
        for loss in (task.forget, task.retain)
    )
    return sensitivity.contrast(forget, retain)
