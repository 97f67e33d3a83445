"""How much each weight matters to what is to be forgotten."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .task import Parameters, Task

Tick = Callable[[], None]
DRAWS = {"contrast": 2, "plain": 1, "activation": 3, "random": 0}  # scorer -> losses that it computes per draw


def sensitivity(
    loss: Callable[[int], Tensor], parameters: Parameters, draws: int, tick: Tick = lambda: None
) -> dict[str, Tensor]:
    """Connection sensitivity s_i = |theta_i| * sum over draws of |dL/dtheta_i| (Scissorhands, eq. 4; SNIP).

    The absolute value is taken per draw, before the sum, as the authors' code does: gradients of opposite sign in two
    batches do not cancel.

    Args:
        loss: scalar loss of the n-th draw.
        parameters: parameters to score; other parameters get no gradient.
        draws: number of batches.
        tick: called after every draw.

    Returns:
        name -> scores, float32, shaped as the parameter, all >= 0.

    Raises:
        FloatingPointError: a gradient is not finite; names the parameter.
    """
    names, tensors = list(parameters), list(parameters.values())
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for draw in range(draws):
        gradients = torch.autograd.grad(loss(draw), tensors, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                scores[name].add_(gradient.abs_())
        del gradients
        tick()
    for name, parameter in parameters.items():
        scores[name].mul_(parameter.detach().abs())
        if not torch.isfinite(scores[name]).all():
            raise FloatingPointError(f"the sensitivity of {name} is not finite: the loss overflows on this model")
    return scores


def contrast(forget: dict[str, Tensor], retain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forget sensitivity over retain sensitivity, s_f / (s_r + mean s_r), in place of `forget`.

    Not in the paper. A weight that everything depends on has a high plain score for every concept; trimming it wrecks
    the model. The mean over the whole scope keeps weights that matter to nothing from winning by a small denominator.
    """
    count = sum(s.numel() for s in retain.values())
    mean = sum(float(s.sum(dtype=torch.float64)) for s in retain.values()) / count
    floor = max(mean, torch.finfo(torch.float32).tiny)
    return {name: s.div_(retain[name] + floor) for name, s in forget.items()}


@torch.no_grad()
def activation(task: Task, parameters: Parameters, draws: int, tick: Tick = lambda: None) -> dict[str, Tensor]:
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
        for draw in range(draws):
            task.forget(draw)
            concept = dict(seen)
            task.replacement(draw)
            for name, out in concept.items():
                apart[name] = apart.get(name, 0) + (out - seen[name]).abs().mean(0)
            task.retain(draw)
            for name, out in seen.items():
                usual[name] = usual.get(name, 0) + out.abs().mean(0)
            tick()
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


def random(parameters: Parameters, seed: int) -> dict[str, Tensor]:
    """Uniform scores in [0, 1): the control that any other score has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) for name, p in parameters.items()}


def score(
    task: Task, parameters: Parameters, scorer: str, draws: int, seed: int, tick: Tick = lambda: None
) -> dict[str, Tensor]:
    """Scores by name: `plain` connection sensitivity, `contrast`, `activation`, or `random`.

    Raises:
        ValueError: unknown scorer.
    """
    if scorer == "random":
        return random(parameters, seed)
    if scorer == "activation":
        return activation(task, parameters, draws, tick)
    if scorer not in DRAWS:
        raise ValueError(f"unknown scorer {scorer!r}")
    forget = sensitivity(task.forget, parameters, draws, tick)
    return forget if scorer == "plain" else contrast(forget, sensitivity(task.retain, parameters, draws, tick))
