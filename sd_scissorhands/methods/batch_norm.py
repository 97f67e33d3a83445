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
    """Within it the running statistics may move; after it they are what they were."""
    before = {name: tensor.clone() for name, tensor in statistics(module).items()}
    try:
        yield
    finally:
        for name, tensor in statistics(module).items():
            tensor.copy_(before[name])


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running statistics by name; none where nothing is normalised so."""
    return {
        f"{name}.{kind}": tensor for name, layer in _layers(module).items() for kind, tensor in layer.named_buffers()
    }


def _layers(module: nn.Module) -> dict[str, _BatchNorm]:
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.track_running_stats}
