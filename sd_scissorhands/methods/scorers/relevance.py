"""How often a unit or connection lies on the path to what is to be forgotten, and to nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..interface import Parameters, Task
from ..lrp import Linearised, Path, contrast, of_connections, of_units
from ..registry import Options

NEEDS, PASSES = ("unseen",), 2

Layers = dict[str, nn.Linear | nn.Conv2d]


def score(task: Task, parameters: Parameters, options: Options) -> dict[str, Tensor]:
    """Contrasted frequency of relevance (LRA-NPP: relevance by layer, top K per input, counted), see `contrast`.

    Over inputs that the model was not trained on. Granularity `channel` ranks the units of every linear and
    convolutional layer and gives all weights of a unit, with its bias, the unit's score; `weight` ranks a layer's
    connections. At the last layer, whose relevance starts at the target's logit, `channel` is the target's whole row
    and `weight` the path that the paper zeroes: the connections of the target with the most relevant units below it.
    The authors' eps of .1 in the denominators is left out, since gradient times activation divides by no sum; so are
    their other rules.

    Memory beyond the model's: the graph of a batch; in granularity `weight` 16 bytes per weight. That granularity costs
    a pass back through the whole batch for every input of it.

    Returns:
        name -> scores, float32, shaped as the parameter; 0 for biases of `weight`, and for what is of no such layer.

    Raises:
        ValueError: no draw explains anything, or nothing can be explained, see `of_units`.
        FloatingPointError: a relevance is not finite.
    """
    layers: Layers = {
        name: layer
        for name, layer in task.module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and f"{name}.weight" in parameters
    }
    look = _units if options.granularity == "channel" else _connections
    forget, retain = (look(task, layers, side, options) for side in ("forget", "retain"))
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for name, layer in layers.items():
        found = contrast(forget.pop(name), retain.pop(name))
        if options.granularity == "weight":
            scores[f"{name}.weight"] += found.view_as(layer.weight)
            continue
        for own in (f"{name}.weight", f"{name}.bias"):
            if own in scores:
                scores[own] += found.view(-1, *[1] * (scores[own].dim() - 1))
    return scores


def _units(task: Task, layers: Layers, side: str, options: Options) -> dict[str, Path]:
    """The units' paths over one side's draws, all inputs of a draw at once."""
    paths = {n: Path(len(layer.weight), options.path_share, layer.weight.device) for n, layer in layers.items()}
    outputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def capture(name: str, layer: nn.Module, out: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and out.requires_grad):
            return None
        units = 1 if isinstance(layer, nn.Conv2d) else -1
        kept = out.movedim(units, -1)  # (B, ..., units)
        outputs[name].append(kept)
        return kept.movedim(-1, units).clone()  # what comes after may change its input in place

    hooks = [
        layer.register_forward_hook(lambda layer, _, out, name=name: capture(name, layer, out))
        for name, layer in layers.items()
    ]
    try:
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
    finally:
        for hook in hooks:
            hook.remove()
    _check(paths, side)
    return paths


def _connections(task: Task, layers: Layers, side: str, options: Options) -> dict[str, Path]:
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
