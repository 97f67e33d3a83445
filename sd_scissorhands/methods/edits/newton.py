"""Newton steps up the forget loss, on the selected weights alone.

A model at the minimum of 1/n sum l_i + decay/2 |w|^2 is to become what it would be without m of its n samples. At w, the
gradient of what is left is -m/(n - m) (grad f + decay w), with f the mean loss of the m. So the Newton step is
w + m/(n - m) (H' + lambda I)^-1 (grad f + decay w), with H' the Hessian of what is left. It ascends f.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...declaration import setting
from ..batch_norm import unmoved
from ..interface import Parameters, Task
from ..method import Edit, Options
from ..optimisers import WEIGHT_DECAY
from ..selection import Selection
from . import EDITS

SAMPLES = 64  # retained samples that the curvature is taken of, r
HALVINGS = 10  # of a step that costs too much, before its round is given up


@dataclass(frozen=True)
class NewtonOptions(Options):
    """Settings of `remove`."""

    damping: float = setting(0.1, "Of newton: lambda, added to the curvature.", level="file", least=0, open_ends=True)
    newton_step: float | None = setting(
        None, "Of newton: m / (n - m), as many as there are to forget over those to retain.", level="file", least=0
    )
    rounds: int = setting(10, "Of newton: steps at most.", level="file", least=1)
    tolerance: float = setting(
        0.015, "Of newton: how much of the figure for what is retained a step may cost.", level="file", least=0
    )


@dataclass(frozen=True)
class Removal:
    """What a removal did, by its rounds."""

    alphas: tuple[float, ...] = ()  # how much of each Newton step was taken
    retained: tuple[float, ...] = ()  # the task's figure for what is retained: before the first round, after every one


def remove(
    task: Task,
    parameters: Parameters,
    selection: Selection,
    options: NewtonOptions,
    *,
    decay: float = WEIGHT_DECAY,
) -> Removal:
    """Newton steps up the forget loss until it is forgotten (L-CODEC, Mehta et al. 2022, algorithm 1, in rounds: ours).

    Every round takes f = -(the repair's forget term), its gradient over `options.draws` draws, and the curvature of
    `SAMPLES` retained samples, both on draws of the round's own, and moves the selected weights by
    alpha m/(n - m) (H' + lambda I)^-1 (grad f + decay w). f is a mean over what is removed, so m stands in m/(n - m)
    alone. alpha starts at 1 and is halved until no more than `options.tolerance` of what was retained before the first
    round is lost; the authors put the weights back altogether at five points. When `HALVINGS` do not do it, the round
    is put back and ends the removal.

    Args:
        task: of its data, those to forget, to retain and for the repair are seen.
        parameters: changed in place where selected; all other weights stay bit-identical.
        decay: weight decay under which the model was trained, whose gradient belongs to that of every sample.

    Returns:
        What was done; nothing where it is forgotten already.

    Raises:
        ValueError: the task has no forget term or no retained samples.
        FloatingPointError: a gradient is not finite.
    """
    step = task.share() if options.newton_step is None else options.newton_step
    chosen = {name: parameters[name] for name in selection.indices if selection.count(name)}
    if not chosen or step == 0:
        return Removal()
    selection = selection.within(set(chosen))
    done = Removal(retained=(task.retained(),))
    for number in range(options.rounds):
        if task.forgotten():
            break
        with unmoved(task.module):
            direction = step * _direction(task, chosen, selection, options, number, decay)
        lowest = done.retained[0] - options.tolerance - 1e-9  # the product's rounding
        alpha, retained = _line_search(task, chosen, selection, direction, lowest)
        if not alpha:
            break
        done = replace(done, alphas=(*done.alphas, alpha), retained=(*done.retained, retained))
    return done


def newton_direction(gradient: Tensor, samples: Tensor, damping: float) -> Tensor:
    """d = (lambda I + U U')^-1 g by Woodbury, with the Fisher matrix U U' of r samples in place of the Hessian (ours).

    d = (g - U (lambda I + U'U)^-1 U'g) / lambda, U = samples' / sqrt(r): only an r x r system is solved. The authors'
    code takes a matrix of rank one from differences of gradients. Where every retained sample is fitted well, U is
    close to 0 and d to g / lambda. This is no exact Newton step: on logistic regression, one with the true Hessian leaves
    .3 % of the way to the retrained weights, this leaves half of it with all samples, and all of it with 64.

    Args:
        gradient: g (p,).
        samples: gradients of r single samples (r, p).
        damping: lambda, above 0.

    Returns:
        d (p,), float64; takes O(r p) memory.
    """
    g, u = gradient.double(), samples.double() / math.sqrt(max(1, len(samples)))  # u: U', (r, p)
    inner = u @ u.T + damping * torch.eye(len(u), dtype=g.dtype, device=g.device)
    return (g - u.T @ torch.linalg.solve(inner, u @ g)) / damping


def _direction(
    task: Task, chosen: Parameters, selection: Selection, options: NewtonOptions, number: int, decay: float
) -> Tensor:
    """(H' + lambda I)^-1 (grad f + decay w) on the selected weights: (p,) float64 on the CPU.

    Raises:
        ValueError: the forget term does not depend on the module.
    """
    gradient = decay * _flat(selection, chosen).double()
    for draw in range(number * options.draws, (number + 1) * options.draws):
        ascended = -task.repair(draw)[0]
        if not ascended.requires_grad:
            raise ValueError("the Newton step ascends the repair's forget term, and this repair has none")
        gradient += _gradient(ascended, chosen, selection) / options.draws
        options.tick()
    return newton_direction(gradient, _curvature(task, chosen, selection, number), options.damping)


def _curvature(task: Task, chosen: Parameters, selection: Selection, number: int) -> Tensor:
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
    gradient = _flat(selection, whole)
    if not torch.isfinite(gradient).all():
        raise FloatingPointError("a gradient of the Newton step is not finite: the loss overflows on this model")
    return gradient


def _line_search(
    task: Task, chosen: Parameters, selection: Selection, direction: Tensor, lowest: float
) -> tuple[float, float]:
    """Take the largest alpha of 1, 1/2, 1/4, ... that leaves `lowest` of what is retained: (alpha, what then is).

    (0, `lowest`) and the weights as they were, where there is none.
    """
    before = _flat(selection, chosen)
    for halving in range(HALVINGS + 1):
        alpha = 0.5**halving
        _put(selection, chosen, before + alpha * direction)
        retained = task.retained()
        if retained >= lowest:  # which NaN is not
            return alpha, retained
    _put(selection, chosen, before)
    return 0.0, lowest


def _flat(selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
    """The selected numbers, parameter by parameter: (p,) on the CPU."""
    return torch.cat(list(selection.values(tensors).values()))


def _put(selection: Selection, chosen: Parameters, values: Tensor) -> None:
    """The inverse of `_flat`."""
    parts = values.split([selection.count(name) for name in selection.indices])
    selection.put(chosen, dict(zip(selection.indices, parts, strict=True)))


EDITS.add("newton", Edit(remove, needs=("forget", "retain", "repair"), options=NewtonOptions))
