"""How often a unit or connection lies on the path to what is to be forgotten, and to nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...declaration import setting
from ..interface import Parameters, Task
from ..lrp import Linearised, Path, contrast, of_connections, of_units
from ..method import Options, Scorer, Scores
from ..units import Layer, axis_of_units, hooked, layers_of, scores_of_units
from . import SCORERS


@dataclass(frozen=True)
class RelevanceOptions(Options):
    """Settings of `score`."""

    path_share: float = setting(
        0.1,
        "Of relevance: share of a layer's units that count per input, LRA-NPP's K.",
        level="file",
        least=1e-9,
        most=1,
        remedy="it is a share of every layer",
    )


def score(task: Task, parameters: Parameters, options: RelevanceOptions) -> Scores:
    """Contrasted frequency of relevance (LRA-NPP: relevance by layer, top K per input, counted), see `contrast`.

    Over inputs that the model was not trained on. Granularity `channel` ranks the units of every linear and
    convolutional layer and gives all weights of a unit, with its bias, the unit's score; `weight` ranks a layer's
    connections. At the last layer, whose relevance starts at the target's logit, `channel` is the target's whole row
    and `weight` the path that the paper zeroes: the connections of the target with the most relevant units below it.
    The authors' eps of .1 in the denominators is left out, since gradient times activation divides by no sum; so are
    their other rules.

    Memory beyond the model's: the graph of a batch; in granularity `weight` 16 bytes per weight. That granularity costs
    a backward pass through the whole batch for every input of it.

    Returns:
        name -> scores, float32, shaped as the parameter; 0 for biases of `weight`, and for what is of no such layer.

    Raises:
        ValueError: no draw explains anything, or nothing can be explained, see `of_units`.
        FloatingPointError: a relevance is not finite.
    """
    layers = layers_of(task.module, parameters)
    paths_of = _units if options.granularity == "channel" else _connections
    forget, retain = (paths_of(task, layers, side, options) for side in ("forget", "retain"))
    found = {name: contrast(forget.pop(name), retain.pop(name)) for name in layers}
    if options.granularity == "channel":
        return scores_of_units(found, parameters)
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for name, layer in layers.items():
        scores[f"{name}.weight".removeprefix(".")] += found[name].view_as(layer.weight)
    return scores


def _units(task: Task, layers: dict[str, Layer], side: str, options: RelevanceOptions) -> dict[str, Path]:
    """The units' paths over one side's draws, all inputs of a draw at once."""
    paths = {n: Path(len(layer.weight), options.path_share, layer.weight.device) for n, layer in layers.items()}
    outputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def capture(name: str, layer: Layer, out: Tensor) -> Tensor | None:
        """Hold a layer's output, units last, so that relevance reaches it."""
        if not (torch.is_grad_enabled() and out.requires_grad):
            return None
        axis = axis_of_units(layer)
        last = out.movedim(axis, -1)
        outputs[name].append(last)
        return last.movedim(-1, axis).clone()  # what comes after may change its input in place

    with hooked(layers, capture):
        for draw in range(options.draws):
            with Linearised():
                explained = task.explain(side, draw)
            if len(explained):
                found = of_units(explained, outputs)
                for name, path in paths.items():
                    path.add(found.get(name, torch.zeros(len(explained), len(path.counts))))
            for calls in outputs.values():
                calls.clear()
            options.tick()
    _check(paths, side)
    return paths


def _connections(task: Task, layers: dict[str, Layer], side: str, options: RelevanceOptions) -> dict[str, Path]:
    """The connections' paths over one side's draws, input by input."""
    weights: dict[str, Tensor] = {name: layer.weight for name, layer in layers.items()}
    paths = {name: Path(w.numel(), options.path_share, w.device) for name, w in weights.items()}
    for draw in range(options.draws):
        with Linearised():
            explained = task.explain(side, draw)
        for number in range(len(explained)):
            found = of_connections(explained, weights, number)
            for name, path in paths.items():
                path.add(found.get(name, torch.zeros(weights[name].shape)).reshape(1, -1))
        del explained  # and its graph, before the next one is made
        options.tick()
    _check(paths, side)
    return paths


def _check(paths: dict[str, Path], side: str) -> None:
    if any(not path.inputs for path in paths.values()):
        raise ValueError(
            f"relevance found no input on the {side} side that can be explained: does the model get none right?"
        )


SCORERS.add("relevance", Scorer(score, needs=("unseen",), passes=2, options=RelevanceOptions, families=("unet",)))
