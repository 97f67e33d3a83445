"""Batch normalisation in a repair: its statistics follow what is retained, never what is to be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def follow(module: nn.Module, run: Callable[[], object]) -> None:
    """Let the running statistics follow the pictures of a pass; nothing is run where nothing is normalised so.

    Losses are then of the module in eval mode, on both sides. Were the retained side normalised by its batch, as in a
    training, a repair could learn to answer wrongly in eval mode alone, and it does: wrong labels for a tenth of the
    pictures wrecked a network that still answered rightly in training mode.

    Args:
        run: the pass.
    """
    layers = list(_layers(module).values())
    if not layers:
        return
    for layer in layers:
        layer.train()
    try:
        run()
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """Within it no running statistics move, whatever `follow` has them do."""
    before = [(layer, layer.momentum, layer.num_batches_tracked) for layer in _layers(module).values()]
    for layer, _, count in before:
        layer.momentum, layer.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for layer, momentum, count in before:
            layer.momentum, layer.num_batches_tracked = momentum, count


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running statistics by name; none where nothing is normalised so."""
    return {
        f"{name}.{kind}": tensor for name, layer in _layers(module).items() for kind, tensor in layer.named_buffers()
    }


def _layers(module: nn.Module) -> dict[str, _BatchNorm]:
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.track_running_stats}
