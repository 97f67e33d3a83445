"""The units that each know something of how the concept comes out that the others do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..codec import PREFILTER, foci
from ..interface import Parameters, Task
from ..method import Options, Scorer, Scores
from ..units import Layer, axis_of_units, hooked, layers_of, scores_of_units
from . import SCORERS

MOST_SAMPLES = 1000  # samples looked at, as many as the authors perturb
WORK = PREFILTER * 400**2  # distances in a step of L-FOCI: no more than 400 samples of 2000 units and above


@torch.no_grad()
def score(task: Task, parameters: Parameters, options: Options) -> Scores:
    """L-FOCI of the response on the units' activations (L-CODEC, Mehta et al. 2022, section 4), see `codec.foci`.

    A unit is an output channel of a linear or convolutional layer. Its activation is the mean over space or tokens, one
    for every perturbed copy of what is to be forgotten, over `options.draws` batches of them (the authors take the mean
    over a batch as well, which leaves fewer to rank). Layers whose output is not by sample have no units. Of more
    samples than L-FOCI can afford a seeded choice is taken. A few hundred can miss the unit that decides: a Newton step
    on what 1000 samples picked made an MLP forget a digit under each of ten seeds, on what 400 picked under nine.

    Returns:
        name -> scores, float32, shaped as the parameter: the first of p units picked has p in its whole row and its
        number of the bias, the last has 1, all others have 0.

    Raises:
        ValueError: no unit knows anything of the response.
        FloatingPointError: the response is not finite.
    """
    responses, activations = _observe(task, parameters, options)
    if not torch.isfinite(responses).all():
        raise FloatingPointError("the response to the concept is not finite: the loss overflows on this model")
    if not activations or responses.min() == responses.max():
        raise ValueError("no unit's activation depends on the response: take another scorer or scope")
    units = [(name, row) for name, own in activations.items() for row in range(own.shape[1])]
    most = min(MOST_SAMPLES, math.isqrt(WORK // min(len(units), PREFILTER)))
    rows = torch.randperm(len(responses), generator=torch.Generator().manual_seed(options.seed))[:most].sort().values
    picked = foci(responses[rows], torch.cat(list(activations.values()), 1)[rows], seed=options.seed)
    if not picked:
        raise ValueError("no unit's activation depends on the response: take another scorer or more draws")
    found = {name: torch.zeros(own.shape[1]) for name, own in activations.items()}
    for place, unit in enumerate(picked):
        layer, row = units[unit]
        found[layer][row] = len(picked) - place
    return scores_of_units(found, parameters)


def _observe(task: Task, parameters: Parameters, options: Options) -> tuple[Tensor, dict[str, Tensor]]:
    """Responses (n,), and by layer the units' activations (n, units), on the CPU.

    A layer's last output in a draw counts: a task may have asked the module for something to compare with before.
    """
    outputs: dict[str, Tensor] = {}

    def capture(name: str, layer: Layer, out: Tensor) -> None:
        outputs[name] = _means(layer, out)

    responses: list[Tensor] = []
    activations: dict[str, list[Tensor]] = {}
    with hooked(layers_of(task.module, parameters), capture):
        for draw in range(options.draws):
            responses.append(task.respond(draw).float().cpu())
            count = len(responses[-1])
            for name, means in outputs.items():
                if count and len(means) % count == 0:
                    by_sample = means.view(count, -1, means.shape[1]).mean(1).cpu()
                    activations.setdefault(name, []).append(by_sample)
            outputs.clear()
            options.tick()
    everything = torch.cat(responses)
    joined = {name: torch.cat(parts) for name, parts in activations.items()}
    return everything, {name: own for name, own in joined.items() if len(own) == len(everything)}


def _means(layer: Layer, out: Tensor) -> Tensor:
    """Every channel's mean over space or tokens: (whatever comes first, channels) float32.

    What comes first is the sample, or the windows or tokens of one sample after those of another.
    """
    last = out.detach().movedim(axis_of_units(layer), -1)
    return last.float().reshape(len(out), -1, last.shape[-1]).mean(1)


SCORERS.add("foci", Scorer(score, needs=("forget",), passes=1))
