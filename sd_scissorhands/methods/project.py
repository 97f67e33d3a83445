"""Gradient projection: the repair may not undo the forgetting.

Functions over lists of tensors. The gradients are never flattened or copied: they are read a piece at a time, once for
the inner products, in float64, and once to be moved. Only the inner products leave the tensors' device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Sequence[Tensor]
PIECE = 1 << 17  # weights looked at together on the CPU, so that they stay in its cache: 1 MiB of scratch a vector
LARGE_PIECE = 1 << 20  # and on other devices, where a call costs more than memory


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


class Memories:
    """Gradients to project against, m lists of tensors, and what is known of them from the first projection on.

    Attributes:
        gram: MM', (m, m) float64 on the CPU, or None.
    """

    def __init__(self, gradients: Sequence[Gradient]):
        self.gradients = list(gradients)
        self.gram: Tensor | None = None


@torch.no_grad()
def project(gradient: Gradient, memories: Memories | Sequence[Gradient], rule: Rule) -> Projection:
    """Move `gradient`, in place, to the nearest g~ with <g~, f_i> >= 0 for every memory f_i (Scissorhands, eq. 7-8).

    primal min 1/2 |g~ - g|^2 s.t. M g~ >= 0; dual min over v >= margin of 1/2 v'(MM' + eps I)v + (Mg)'v; g~ = g + M'v.
    With f = grad of -L_f, a step along -g~ does not lower the forget loss, to first order. Without a conflict the
    gradient is left bit-identical.

    Args:
        gradient: tensors of any shapes; changed in place when there is a conflict.
        memories: m gradients with the same shapes; m is small (the system is solved by trying the 2^m active sets).
            `Memories` where they serve for more than one gradient.

    Returns:
        Whether a memory was in conflict and the relative size of the correction.
    """
    memories = memories if isinstance(memories, Memories) else Memories(memories)
    vectors = [gradient, *memories.gradients]
    products = inner(vectors, len(vectors) if memories.gram is None else 1)
    if memories.gram is None:
        memories.gram = products[1:, 1:]
    length, b = float(products[0, 0]) ** 0.5, products[1:, 0]
    if bool((b >= 0).all()):
        return Projection(False, 0.0)
    v = multipliers(memories.gram, b, length, rule)
    for moved, *pieces in _pieces(vectors):
        for weight, piece in zip(v.tolist(), pieces, strict=True):
            moved.add_(piece, alpha=weight)
    correction = max(0.0, float(v @ memories.gram @ v)) ** 0.5
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


@torch.no_grad()
def inner(vectors: Sequence[Gradient], count: int) -> Tensor:
    """Inner products of n vectors with the first `count` of them: (n, count) float64 on the CPU.

    In float64 because a float32 sum over 16 million products is wrong in the fourth digit.
    """
    scratch: dict[torch.device, Tensor] = {}
    sums: dict[torch.device, Tensor] = {}
    for pieces in _pieces(vectors):
        device, size = pieces[0].device, pieces[0].numel()
        if device not in scratch:
            scratch[device] = torch.empty(len(vectors), _size(device), dtype=torch.float64, device=device)
            sums[device] = torch.zeros(count, len(vectors), dtype=torch.float64, device=device)
        rows = scratch[device][:, :size]
        for row, piece in zip(rows, pieces, strict=True):
            row.view(piece.shape).copy_(piece)
        for number in range(count):  # each pair once: faster than a matrix product with so few rows
            sums[device][number, number:] += rows[number:] @ rows[number]
    total = sum((own.cpu() for own in sums.values()), torch.zeros(count, len(vectors), dtype=torch.float64))
    square = total[:, :count]
    square += square.triu(1).T
    return total.T


def _pieces(vectors: Sequence[Gradient]) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same small part of every vector, part by part, that together are all of them."""
    for tensors in zip(*vectors, strict=True):
        yield from _parted(tensors)


def _parted(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in views of one shape that are small enough; along their dimensions if not contiguous."""
    first, size = tensors[0], _size(tensors[0].device)
    if first.numel() <= size:
        yield tensors
    elif all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(size) for t in tensors), strict=True)
    elif len(first) == 1:
        yield from _parted(tuple(t[0] for t in tensors))
    else:
        rows = max(1, size * len(first) // first.numel())
        for parts in zip(*(t.split(rows) for t in tensors), strict=True):
            yield from _parted(parts)


def _size(device: torch.device) -> int:
    """Weights in a piece."""
    return PIECE if device.type == "cpu" else LARGE_PIECE
