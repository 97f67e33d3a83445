"""Units: the output channels of linear and convolutional layers, what they answer and which weights are theirs."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .interface import Parameters

Layer = nn.Linear | nn.Conv2d


def layers_of(module: nn.Module, within: Container[str] | None = None) -> dict[str, Layer]:
    """The layers that have units, by name; with `within` only those whose weight is named there."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, Layer) and (within is None or _own(name)[0] in within)
    }


@contextmanager
def hooked(layers: Mapping[str, Layer], hook: Callable[[str, Layer, Tensor], Tensor | None]) -> Iterator[None]:
    """Within it `hook(name, layer, output)` runs after every call of a layer; what it returns replaces the output."""
    handles = [
        layer.register_forward_hook(lambda own, _, out, name=name: hook(name, own, out))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def axis_of_units(layer: Layer) -> int:
    """Of its outputs: (B, units, h, w) or (B, ..., units)."""
    return 1 if isinstance(layer, nn.Conv2d) else -1


def scores_of_units(found: Mapping[str, Tensor], parameters: Parameters) -> dict[str, Tensor]:
    """Every weight of a unit, with its number of the bias, has the unit's score; all other weights score 0.

    Args:
        found: layer -> scores of its units, (units,).

    Returns:
        name -> scores, float32, shaped as the parameter.
    """
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for layer, values in found.items():
        for name in _own(layer):
            if name in scores:
                scores[name] += values.to(scores[name].device).view(-1, *[1] * (scores[name].dim() - 1))
    return scores


def _own(layer: str) -> tuple[str, str]:
    """Names of a layer's weight and bias; the module itself may be the layer."""
    return f"{layer}.weight".removeprefix("."), f"{layer}.bias".removeprefix(".")
