"""Batch normalisation in a repair: its statistics follow what is retained, never what is to be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def learning(module: nn.Module) -> Iterator[None]:
    """Within it batch normalisation goes by each batch's own statistics, and its running ones follow; nothing else leaves eval mode."""
    layers = list(_layers(module).values())
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """Within it no running statistics move, whatever `learning` has them do."""
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
