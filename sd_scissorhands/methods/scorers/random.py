"""The control that any other score has to beat."""

from __future__ import annotations

import torch

from ..interface import Parameters, Task
from ..method import Options, Scorer, Scores
from . import SCORERS


def score(task: Task, parameters: Parameters, options: Options) -> Scores:
    """Uniform scores in [0, 1); one for a whole channel where channels are selected."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.granularity == "weight":
        return {name: torch.rand(p.shape, generator=generator) for name, p in parameters.items()}
    rows = {name: torch.rand(len(p), generator=generator) for name, p in parameters.items()}
    return {name: rows[name].view(-1, *[1] * (p.dim() - 1)).expand(p.shape).clone() for name, p in parameters.items()}


SCORERS.add("random", Scorer(score, needs=(), passes=0))
