"""Noise on the selected weights."""

from __future__ import annotations

import zlib

import torch

from ..interface import Parameters, Task
from ..registry import Options
from ..selection import Selection

NEEDS = ()


@torch.no_grad()
def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """Add N(0, s^2), s the layer's own standard deviation: LRA-NPP's control for zeroing.

    The authors add N(0, 1) whatever the layer, which drowns any layer of ordinary scale. Every parameter draws from its own
    generator, so the values do not depend on the scope.
    """
    for name, rows in selection.indices.items():
        parameter = parameters[name]
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + zlib.crc32(name.encode()))
        fresh = torch.randn(rows.numel(), generator=generator).to(parameter) * parameter.std(correction=0)
        parameter.view(-1)[rows.to(parameter.device)] += fresh
