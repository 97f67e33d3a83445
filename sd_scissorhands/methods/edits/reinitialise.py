"""Fresh values for the selected weights."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ...declaration import setting
from ..interface import Parameters, Task
from ..method import Edit, Options
from ..selection import Selection
from . import EDITS


@dataclass(frozen=True)
class ReinitialiseOptions(Options):
    """Settings of `edit`."""

    init: str = setting(
        "layer", "New values of reinitialise.", level="file", choices=("layer", "kaiming", "trunc_normal")
    )


@torch.no_grad()
def edit(task: Task, parameters: Parameters, selection: Selection, options: ReinitialiseOptions) -> None:
    """Give every selected weight a fresh value (Scissorhands, section 3.2): the paper's trim.

    `init` is `layer`, normal at the layer's own standard deviation (ours: it keeps the activations' scale); `kaiming`,
    uniform in +- sqrt(6 / fan_in) (the authors' for nudity, a = 0); or `trunc_normal`, standard deviation .02, cut at
    two. Biases (one dimension) always become 0.
    """
    fresh = {
        name: _fresh(parameters[name], len(rows), options.init, generator_of(name, options.seed))
        for name, rows in selection.indices.items()
    }
    selection.put(parameters, fresh)


def generator_of(name: str, seed: int) -> torch.Generator:
    """A parameter's own generator, so that its draws do not depend on the scope."""
    return torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))


def _fresh(parameter: Tensor, count: int, init: str, generator: torch.Generator) -> Tensor:
    if parameter.dim() < 2:
        return torch.zeros(count)
    if init == "layer":
        return torch.randn(count, generator=generator) * float(parameter.std())
    if init == "kaiming":
        bound = math.sqrt(6 / parameter[0].numel())
        return (torch.rand(count, generator=generator) * 2 - 1) * bound
    return torch.nn.init.trunc_normal_(torch.empty(count), std=0.02, a=-0.04, b=0.04, generator=generator)


EDITS.add("reinitialise", Edit(edit, options=ReinitialiseOptions))
