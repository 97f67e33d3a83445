"""Where concept and pair differ inside the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..interface import Parameters, Task
from ..registry import Options

NEEDS, PASSES = ("forget", "pairs", "retain"), 3


@torch.no_grad()
def score(task: Task, parameters: Parameters, options: Options) -> dict[str, Tensor]:
    """How far each output channel answers to the concept: where it differs between the concept and what replaces it (ours).

    For a channel c of a linear or convolutional layer, mean |h_c(concept) - h_c(pair)| over batch, space and draws, both
    under the same noise, over the mean |h_c| on the retain set. Every weight of a channel has its channel's score, so
    that channels can be trimmed whole; weights of other layers score 0.

    Returns:
        name -> scores, float32, shaped as the parameter, all >= 0.
    """
    seen: dict[str, Tensor] = {}
    layers = {name: m for name, m in task.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, _channels_last(out)))
        for name, layer in layers.items()
    ]
    apart: dict[str, Tensor] = {}
    usual: dict[str, Tensor] = {}
    try:
        for draw in range(options.draws):
            task.forget(draw)
            concept = dict(seen)
            task.replacement(draw)
            for name, out in concept.items():
                apart[name] = apart.get(name, 0) + (out - seen[name]).abs().mean(0)
            task.retain(draw)
            for name, out in seen.items():
                usual[name] = usual.get(name, 0) + out.abs().mean(0)
            options.tick()
    finally:
        for hook in hooks:
            hook.remove()
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for name in apart:
        share = apart[name] / usual[name].clamp_min(torch.finfo(torch.float32).tiny)  # (channels,)
        for own in (f"{name}.weight", f"{name}.bias"):
            if own in scores:
                scores[own] += share.view(-1, *[1] * (scores[own].dim() - 1))
    return scores


def _channels_last(out: Tensor) -> Tensor:
    """(B, c, h, w) or (B, tokens, c) to (everything else, c)."""
    return (out.movedim(1, -1) if out.dim() == 4 else out).reshape(-1, out.shape[1 if out.dim() == 4 else -1])
