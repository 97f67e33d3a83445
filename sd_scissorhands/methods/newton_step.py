"""Removal by Newton steps on the selected weights alone.

A model at the minimum of 1/n sum l_i + decay/2 |w|^2 is asked what it would be without m of its n samples. At w, the
gradient of what is left is -m/(n - m) (grad f + decay w), with f the mean loss of the m. So the Newton step is
w + m/(n - m) (H' + lambda I)^-1 (grad f + decay w), with H' the Hessian of what is left. It ascends f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .interface import Parameters, Task
from .registry import Options
from .repair import WEIGHT_DECAY
from .selection import Selection

SAMPLES = 64  # retained samples that the curvature is taken of, r
HALVINGS = 10  # of a step that costs too much, before its round is given up


def newton_step(gradient: Tensor, samples: Tensor, damping: float) -> Tensor:
    """d = (lambda I + U U')^-1 g by Woodbury, with the Fisher matrix U U' of r samples in place of the Hessian (ours).

    d = (g - U (lambda I + U'U)^-1 U'g) / lambda, U = samples' / sqrt(r): only an r x r system is solved. The authors'
    code takes a matrix of rank one from differences of gradients. Where every retained sample is fitted well, U is
    close to 0 and d to g / lambda. This is no exact Newton step: on logistic regression, `newton_step_dense` leaves
    .3 % of the way to the retrained weights, this leaves half of it with all samples, and all of it with 64.

    Args:
        gradient: g (p,).
        samples: gradients of r single samples (r, p).
        damping: lambda.

    Returns:
        d (p,), float64; takes O(r p) memory.

    Raises:
        ValueError: damping is not above 0, without which the matrix has no inverse.
    """
    _check(damping)
    g, u = gradient.double(), samples.double() / math.sqrt(max(1, len(samples)))  # u: U', (r, p)
    inner = u @ u.T + damping * torch.eye(len(u), dtype=g.dtype, device=g.device)
    return (g - u.T @ torch.linalg.solve(inner, u @ g)) / damping


def newton_step_dense(gradient: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """d = (H + lambda I)^-1 g with a Hessian that is known: (p,), (p, p) -> (p,), float64.

    For m samples out of n, H = (n H_all - m H_m) / (n - m), both means (L-CODEC has m = 1). For convex problems.

    Raises:
        ValueError: damping is not above 0.
    """
    _check(damping)
    eye = torch.eye(len(gradient), dtype=torch.float64, device=gradient.device)
    return torch.linalg.solve(hessian.double() + damping * eye, gradient.double())


@dataclass(frozen=True)
class Removal:
    """What a removal did, by its rounds."""

    alphas: tuple[float, ...] = ()  # how much of each Newton step was taken
    kept: tuple[float, ...] = ()  # the task's figure before the first round, then after every one


def remove(
    task: Task, parameters: Parameters, selection: Selection, options: Options, *, decay: float = WEIGHT_DECAY
) -> Removal:
    """Newton steps up the forget loss until it is forgotten (L-CODEC, Mehta et al. 2022, algorithm 1, in rounds: ours).

    Every round takes f = -(the repair's forget term), its gradient over `options.draws` draws, and the curvature of
    `SAMPLES` retained samples, both on draws of the round's own, and moves the selected weights by
    alpha m/(n - m) (H' + lambda I)^-1 (grad f + decay w). f is a mean over what is removed, so m stands in m/(n - m)
    alone. alpha starts at 1 and is halved until no more than `options.tolerance` of what was kept before the first
    round is lost; the authors put the weights back altogether at five points. When `HALVINGS` do not do it, the round
    is put back and ends the removal.

    Args:
        task: of its data, those to forget, to keep and for the repair are seen.
        parameters: changed in place where selected; all other weights stay bit-identical.
        decay: weight decay under which the model was trained, whose gradient belongs to that of every sample.

    Returns:
        What was done; nothing where it is forgotten already.

    Raises:
        ValueError: damping is not above 0, or the task has no forget term or no retained samples.
        FloatingPointError: a gradient is not finite.
    """
    _check(options.damping)
    step = task.share() if options.newton_step is None else options.newton_step
    chosen = {name: parameters[name] for name in selection.indices if selection.count(name)}
    if not chosen or step == 0:
        return Removal()
    done = Removal(kept=(task.kept(),))
    for number in range(options.rounds):
        if task.gone():
            break
        direction = step * _direction(task, chosen, selection, options, number, decay)
        alpha, kept = _backtrack(task, chosen, selection, options, direction, done.kept[0])
        if not alpha:
            break
        done = replace(done, alphas=(*done.alphas, alpha), kept=(*done.kept, kept))
    return done


def _direction(
    task: Task, chosen: Parameters, selection: Selection, options: Options, number: int, decay: float
) -> Tensor:
    """(H' + lambda I)^-1 (grad f + decay w) on the selected weights: (p,) float64 on the CPU.

    Raises:
        ValueError: the forget term does not depend on the module.
    """
    gradient = decay * _gather(chosen, selection).double()
    for draw in range(number * options.draws, (number + 1) * options.draws):
        ascended = -task.repair(draw)[0]
        if not ascended.requires_grad:
            raise ValueError("the Newton step ascends the repair's forget term, and this repair has none")
        gradient += _gradient(ascended, chosen, selection) / options.draws
        options.tick()
    return newton_step(gradient, _each(task, chosen, selection, number), options.damping)


def _each(task: Task, chosen: Parameters, selection: Selection, number: int) -> Tensor:
    """Gradients of `SAMPLES` single retained losses on the selected weights: (r, p).

    Raises:
        ValueError: as many draws hold too few samples.
    """
    rows: list[Tensor] = []
    for draw in range(number * SAMPLES, (number + 1) * SAMPLES):
        losses = task.retain_each(draw)[: SAMPLES - len(rows)]
        rows += [_gradient(loss, chosen, selection, again=True) for loss in losses]
        if len(rows) == SAMPLES:
            return torch.stack(rows)
    raise ValueError("a Newton step takes its curvature from what is to be kept, and there is too little of that")


def _gradient(loss: Tensor, chosen: Parameters, selection: Selection, *, again: bool = False) -> Tensor:
    """The gradient on the selected weights: (p,) on the CPU. `again`: further losses come of the same graph.

    Raises:
        FloatingPointError: it is not finite.
    """
    found = torch.autograd.grad(loss, list(chosen.values()), retain_graph=again, allow_unused=True)
    whole = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(chosen.items(), found, strict=True)}
    gradient = _gather(whole, selection)
    if not torch.isfinite(gradient).all():
        raise FloatingPointError("a gradient of the Newton step is not finite: the loss overflows on this model")
    return gradient


@torch.no_grad()
def _backtrack(
    task: Task,
    chosen: Parameters,
    selection: Selection,
    options: Options,
    direction: Tensor,
    kept_before: float,
) -> tuple[float, float]:
    """Take the largest alpha of 1, 1/2, 1/4, ... that costs no more than is allowed: (alpha, what is kept then).

    (0, `kept_before`) and the weights as they were, where there is none.
    """
    before = _gather(chosen, selection)
    for halving in range(HALVINGS + 1):
        alpha = 0.5**halving
        _put(chosen, selection, before + alpha * direction)
        kept = task.kept()
        if kept >= kept_before - options.tolerance - 1e-9:  # the product's rounding; NaN is no more either
            return alpha, kept
    _put(chosen, selection, before)
    return 0.0, kept_before


def _gather(tensors: dict[str, Tensor] | Parameters, selection: Selection) -> Tensor:
    """The selected numbers, parameter by parameter: (p,) on the CPU."""
    parts = [t.detach().reshape(-1)[selection.indices[name].to(t.device)].cpu() for name, t in tensors.items()]
    return torch.cat(parts)


@torch.no_grad()
def _put(chosen: Parameters, selection: Selection, values: Tensor) -> None:
    """The inverse of `_gather`, rounded to each parameter's own precision."""
    sizes = [selection.count(name) for name in chosen]
    for (name, parameter), part in zip(chosen.items(), values.split(sizes), strict=True):
        parameter.view(-1)[selection.indices[name].to(parameter.device)] = part.to(parameter)


def _check(damping: float) -> None:
    if not damping > 0:
        raise ValueError(f"damping {damping} is not above 0: the Newton step needs some, e.g. 0.1")
