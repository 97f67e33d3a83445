"""How far the concept's loss would move each weight."""

from __future__ import annotations

import torch

from ..distributed import gradients
from ..interface import Parameters, Task
from ..method import Options, Scorer, Scores
from . import SCORERS


def score(task: Task, parameters: Parameters, options: Options) -> Scores:
    """|sum over draws of dL_f/dtheta| (SalUn, Fan et al. 2024, eq. 3: the saliency mask's absolute gradient)."""
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    add = lambda name, g: total[name].add_(g)  # noqa: E731
    gradients(task.forget, parameters, options.draws, add, group=options.group, tick=options.tick)
    return {name: values.abs_() for name, values in total.items()}


SCORERS.add("gradient", Scorer(score, needs=("forget",), passes=1))
