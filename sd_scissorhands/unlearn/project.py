"""Gradient projection: the repair may not undo the forgetting.

Pure functions over lists of tensors. Only inner products and an m x m system in float64 leave the tensors' device; the
gradients are never flattened or copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Sequence[Tensor]


@dataclass(frozen=True)
class Rule:
    """How far a conflicting gradient is moved.

    `paper`: margin .5 and eps .001, as the authors use them. Neither scales with the gradients: at |g| = .1 the correction is 5
    times |g| for |f| = 1. `scale_free`: the memories are taken at length 1 and the margin is `rho` times |g|, so
    scaling g or f changes nothing else.
    """

    margin: float
    eps: float
    scale_free: bool


PAPER = Rule(margin=0.5, eps=1e-3, scale_free=False)
SCALE_FREE = Rule(margin=0.0, eps=1e-12, scale_free=True)
RULES = {"paper": PAPER, "scale-free": SCALE_FREE, "none": None}


@dataclass(frozen=True)
class Projection:
    """What a projection did: whether any memory was in conflict, and |correction| / |g|."""

    conflict: bool
    correction: float


@torch.no_grad()
def project(gradient: Gradient, memories: Sequence[Gradient], rule: Rule) -> Projection:
    """Move `gradient`, in place, to the nearest g~ with <g~, f_i> >= 0 for every memory f_i (Scissorhands, eq. 7-8).

    primal min 1/2 |g~ - g|^2 s.t. M g~ >= 0; dual min over v >= margin of 1/2 v'(MM' + eps I)v + (Mg)'v; g~ = g + M'v.
    With f = grad of -L_f, a step along -g~ does not lower the forget loss, to first order. Without a conflict the
    gradient is left bit-identical.

    Args:
        gradient: tensors of any shapes; changed in place when there is a conflict.
        memories: m gradients with the same shapes; m is small (the system is solved by trying the 2^m active sets).

    Returns:
        Whether a memory was in conflict and the relative size of the correction.
    """
    b = torch.tensor([dot(memory, gradient) for memory in memories], dtype=torch.float64)
    if not memories or bool((b >= 0).all()):
        return Projection(False, 0.0)
    gram = torch.tensor([[dot(f, h) for h in memories] for f in memories], dtype=torch.float64)
    length = dot(gradient, gradient) ** 0.5
    v = multipliers(gram, b, length, rule)
    for weight, memory in zip(v.tolist(), memories, strict=True):
        torch._foreach_add_(list(gradient), list(memory), alpha=weight)
    correction = max(0.0, float(v @ gram @ v)) ** 0.5
    return Projection(True, correction / length)


def multipliers(gram: Tensor, b: Tensor, length: float, rule: Rule) -> Tensor:
    """The dual variables v of `project`.

    Args:
        gram: MM', (m, m) float64.
        b: Mg, (m,) float64.
        length: |g|.

    Returns:
        v, (m,) float64.
    """
    if not rule.scale_free:
        return nonnegative_minimum(gram, b, rule)
    scale = gram.diagonal().sqrt()
    safe = scale.clamp_min(torch.finfo(torch.float64).tiny)
    unit = nonnegative_minimum(gram / torch.outer(safe, safe), b / (safe * max(length, 1e-300)), rule)
    return torch.where(scale > 0, unit * length / safe, 0.0)


def nonnegative_minimum(gram: Tensor, b: Tensor, rule: Rule) -> Tensor:
    """argmin over v >= margin of 1/2 v'(gram + eps I)v + b'v, exactly.

    With u = v - margin it is a non-negative quadratic problem; the optimum is the one active set whose solution
    satisfies the optimality conditions. For m = 1 this is v = max(margin, -b / (|f|^2 + eps)).
    """
    size = len(b)
    k = gram + rule.eps * torch.eye(size, dtype=torch.float64)
    c = b + rule.margin * k.sum(1)
    best, best_value = torch.zeros(size, dtype=torch.float64), 0.0
    for count in range(1, size + 1):
        for active in map(list, itertools.combinations(range(size), count)):
            u = torch.zeros(size, dtype=torch.float64)
            u[active] = torch.linalg.lstsq(
                k[active][:, active], -c[active].unsqueeze(1), driver="gelsd"
            ).solution.squeeze(1)
            value = float(0.5 * u @ k @ u + c @ u)
            if bool((u >= 0).all()) and value < best_value:
                best, best_value = u, value
    return best + rule.margin


def dot(left: Gradient, right: Gradient) -> float:
    """Inner product over all tensors, summed in double precision across them."""
    return sum(float(torch.dot(a.reshape(-1), b.reshape(-1))) for a, b in zip(left, right, strict=True))
