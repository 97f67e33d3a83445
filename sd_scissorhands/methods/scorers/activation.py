"""Where concept and pair differ inside the network."""

from __future__ import annotations

import torch
from torch import Tensor

from ..interface import Parameters, Task
from ..method import Options, Scorer, Scores
from ..units import Layer, axis_of_units, hooked, layers_of, scores_of_units
from . import SCORERS


@torch.no_grad()
def score(task: Task, parameters: Parameters, options: Options) -> Scores:
    """How far each output channel answers to the concept: where it differs between the concept and what replaces it (ours).

    For a channel c of a linear or convolutional layer, mean |h_c(concept) - h_c(pair)| over batch, space and draws, both
    under the same noise, over the mean |h_c| on the retain set. Every weight of a channel has its channel's score, so
    that channels can be trimmed whole; weights of other layers score 0.

    Returns:
        name -> scores, float32, shaped as the parameter, all >= 0.
    """
    outputs: dict[str, Tensor] = {}
    difference: dict[str, Tensor] = {}
    usual: dict[str, Tensor] = {}

    def capture(name: str, layer: Layer, out: Tensor) -> None:
        outputs[name] = out.movedim(axis_of_units(layer), -1).reshape(-1, len(layer.weight))  # (everything else, units)

    with hooked(layers_of(task.module), capture):
        for draw in range(options.draws):
            task.forget(draw)
            concept = dict(outputs)
            task.replacement(draw)
            for name, out in concept.items():
                difference[name] = difference.get(name, 0) + (out - outputs[name]).abs().mean(0)
            task.retain(draw)
            for name, out in outputs.items():
                usual[name] = usual.get(name, 0) + out.abs().mean(0)
            options.tick()
    tiny = torch.finfo(torch.float32).tiny
    return scores_of_units({name: of / usual[name].clamp_min(tiny) for name, of in difference.items()}, parameters)


SCORERS.add("activation", Scorer(score, needs=("forget", "pairs", "retain"), passes=3))
