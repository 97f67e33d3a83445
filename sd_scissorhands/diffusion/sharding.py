"""Weights that stay frozen, shared out over processes: each holds a part and gathers a block's rest when it is its turn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..machine import together
from ..methods.interface import Parameters
from ..settings import UserError
from .denoiser import Denoiser

OLDEST = (2, 7)  # torch whose `fully_shard` takes ignored_params


def check_shareable(denoiser: Denoiser, trained: Parameters, *, compiled: bool) -> None:
    """Refuse what `shared_out` cannot share out.

    Raises:
        UserError: what stands against it, and what to do instead.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:
        raise UserError(
            f"FSDP with weights left out needs torch {OLDEST[0]}.{OLDEST[1]}, this is {torch.__version__}: "
            "update it, or launch with --multi_gpu instead"
        )
    if compiled:
        raise UserError("--compile does not go with FSDP, which gathers weights between blocks: leave one of them out")
    if denoiser.scope("full").keys() <= trained.keys():
        raise UserError(
            "FSDP shares out what stays frozen, and nothing does under this --scope: "
            "name a smaller one, or launch with --multi_gpu instead"
        )


@contextmanager
def shared_out(denoiser: Denoiser, trained: Parameters) -> Iterator[dict[str, int]]:
    """Within it every process holds its part of the denoiser's frozen weights alone (FSDP2, `fully_shard`).

    What is trained stays whole and the same on every process, as ordinary parameters. A pass gathers the rest block by
    block, forward and back, which needs all processes: they make the same passes in the same order (`in_step`).
    Afterwards the denoiser has its own module back, with no frozen weights in it: `load.restore` puts them there.

    Args:
        trained: by name, not shared out.

    Yields:
        shared_out, how many weights are, and held, how many of these this process holds.

    Raises:
        UserError: another process has ended.
    """
    whole, kept = denoiser.module, set(trained.values())
    denoiser.family.module, denoiser.in_step = _sharded(denoiser, kept), True
    for parameter in set(whole.parameters()) - kept:
        parameter.data = parameter.data.new_empty(0)
    frozen: list[Any] = [parameter for parameter in denoiser.module.parameters() if parameter not in kept]
    facts = {"shared_out": sum(p.numel() for p in frozen), "held": sum(p.to_local().numel() for p in frozen)}
    try:
        with together():
            yield facts
    finally:
        denoiser.family.module, denoiser.in_step = whole, False


def _sharded(denoiser: Denoiser, kept: set[nn.Parameter]) -> nn.Module:
    """A module of the same structure that shares what is kept with the denoiser's; of the rest it has a part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    memo = {id(parameter): parameter for parameter in denoiser.module.parameters()}  # none of which is copied
    module: Any = copy.deepcopy(denoiser.module, memo)
    mesh = init_device_mesh(denoiser.device.type, (torch.distributed.get_world_size(),))
    for block in reversed(list(module.modules())):  # from the inside out
        if block is module or type(block).__name__ in (module._no_split_modules or ()):
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    return module
