"""Fresh values for the selected weights."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from ..interface import Parameters, Task
from ..registry import Options
from ..selection import Selection

NEEDS = ()


def edit(task: Task, parameters: Parameters, selection: Selection, options: Options) -> None:
    """Scissorhands' trim, see `reinitialise`."""
    reinitialise(parameters, selection, options.init, options.seed)


@torch.no_grad()
def reinitialise(parameters: Parameters, selection: Selection, init: str, seed: int) -> None:
    """Give every selected weight a fresh value (Scissorhands, section 3.2); all others stay bit-identical.

    Args:
        init: `layer`, normal at the layer's own standard deviation (ours: it keeps the activations' scale);
            `kaiming`, uniform in +- sqrt(6 / fan_in) (the authors' for nudity, a = 0); `trunc_normal`, standard
            deviation .02, cut at two. Biases (one dimension) always become 0.
        seed: every parameter draws from its own generator, so the values do not depend on the scope.

    Raises:
        ValueError: unknown init.
    """
    for name, indices in selection.indices.items():
        parameter = parameters[name]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        fresh = _fresh(parameter, indices.numel(), init, generator)
        parameter.view(-1)[indices.to(parameter.device)] = fresh.to(parameter)


def _fresh(parameter: Tensor, count: int, init: str, generator: torch.Generator) -> Tensor:
    if parameter.dim() < 2:
        return torch.zeros(count)
    if init == "layer":
        return torch.randn(count, generator=generator) * float(parameter.std())
    if init == "kaiming":
        bound = math.sqrt(6 / parameter[0].numel())
        return (torch.rand(count, generator=generator) * 2 - 1) * bound
    if init == "trunc_normal":
        return torch.nn.init.trunc_normal_(torch.empty(count), std=0.02, a=-0.04, b=0.04, generator=generator)
    raise ValueError(f"unknown init {init!r}")
