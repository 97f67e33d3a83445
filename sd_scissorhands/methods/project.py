"""Gradient projection, both ways: the repair may not undo the forgetting, nor the forgetting harm what is retained.

Functions over lists of tensors. The gradients are never flattened or copied: they are read a piece at a time, once for
the inner products, in float64, and once to be moved. Only the inner products leave the tensors' device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Gradient = Sequence[Tensor]
PIECE = 1 << 17  # weights looked at together on the CPU, so that they stay in its cache: 1 MiB of scratch a vector
LARGE_PIECE = 1 << 20  # and on other devices, where a call costs more than memory


@dataclass(frozen=True)
class Rule:
    """How far a conflicting gradient is moved.

    `paper`: margin .5 and eps .001, as the authors use them. Neither scales with the gradients: at |g| = .1 the correction is 5
    times |g| for |f| = 1. `scale_free`: the memory is taken at length 1 and the margin times |g|, so scaling g or f
    changes nothing else.
    """

    margin: float
    eps: float
    scale_free: bool


PAPER_RULE = Rule(margin=0.5, eps=1e-3, scale_free=False)
SCALE_FREE = Rule(margin=0.0, eps=1e-12, scale_free=True)
RULES = {"scale-free": SCALE_FREE, "paper": PAPER_RULE, "retain": None, "both": SCALE_FREE, "none": None}
PROTECTING_RETAINED = ("retain", "both")  # of these, those that also call `protect_retained`
ROUNDING = 1e-6  # of the vectors' lengths: an inner product below it is that of rounded float32 gradients


@dataclass(frozen=True)
class Projection:
    """What a projection did: whether there was a conflict, and |correction| / |g| of the gradient that was moved."""

    conflict: bool
    correction: float


class Memory:
    """A gradient to project against, and its squared length from the first projection on."""

    def __init__(self, gradient: Gradient):
        self.gradient = gradient
        self.square: Tensor | None = None  # scalar, float64 on the CPU


@torch.no_grad()
def project(gradient: Gradient, memory: Memory, rule: Rule) -> Projection:
    """Move `gradient`, in place, to the nearest g~ with <g~, f> >= 0 for the memory f (Scissorhands, eq. 7-8).

    primal min 1/2 |g~ - g|^2 s.t. <g~, f> >= 0; dual min over v >= margin of v^2 (|f|^2 + eps) / 2 + <g, f> v;
    g~ = g + v f. With f = grad of -L_f, a step along -g~ does not lower the forget loss, to first order. Without a
    conflict the gradient is left bit-identical. The paper has several memories; its authors' code has one.

    Args:
        gradient: tensors of any shapes; changed in place when there is a conflict.
        memory: a gradient with the same shapes.

    Returns:
        Whether the memory was in conflict and the relative size of the correction.
    """
    vectors = [gradient, memory.gradient]
    products = inner(vectors, 2 if memory.square is None else 1)
    if memory.square is None:
        memory.square = products[1, 1]
    length, b = float(products[0, 0]) ** 0.5, products[1, 0]
    if b >= 0:
        return Projection(False, 0.0)
    v = multiplier(memory.square, b, length, rule)
    _add(vectors, v)
    return Projection(True, float(v * memory.square * v) ** 0.5 / length)


@torch.no_grad()
def protect_retained(gradient: Gradient, retain: Gradient) -> Projection:
    """Take out of g_f, in `gradient` = g_f + g_r, in place, what would raise the retain loss, to first order.

    Where <g_f, g_r> < 0, g_f becomes g_f - <g_f, g_r> / |g_r|^2 g_r (Yu et al., NeurIPS 2020, arXiv 2001.06782, one way);
    g_r stays. Taking the sum, of which g_f is not stored apart, leaves a gradient without a conflict bit-identical.

    Args:
        gradient: of the forget and the retain term together, tensors of any shapes; changed in place when there is a conflict.
        retain: g_r, of the retain term alone, with the same shapes; may be 0, which is in conflict with nothing.

    Returns:
        Whether there was a conflict, and the size of the correction relative to g_f: minus the cosine of g_f and g_r.
    """
    products = inner([gradient, retain], 2)
    both, retained = products[0, 0], products[1, 1]
    b = products[1, 0] - retained
    if b >= -ROUNDING * (both * retained).sqrt():
        return Projection(False, 0.0)
    _add([gradient, retain], -b / retained)
    forget = both - 2 * products[1, 0] + retained  # |g_f|^2
    return Projection(True, float(-b / (retained * forget).sqrt()))


def _add(vectors: Sequence[Gradient], factor: Tensor) -> None:
    """Add `factor` times the second vector to the first, in place."""
    for moved, piece in _pieces(vectors):
        moved.add_(piece, alpha=float(factor))


def multiplier(square: Tensor, b: Tensor, length: float, rule: Rule) -> Tensor:
    """The dual variable v of `project`: max(margin, -b / (|f|^2 + eps)), a scalar.

    Args:
        square: |f|^2, above 0, a scalar.
        b: <g, f>, a scalar.
        length: |g|.
    """
    if rule.scale_free:
        scale = square.sqrt()
        unit = multiplier(square / (scale * scale), b / (scale * length), 1.0, replace(rule, scale_free=False))
        return unit * length / scale
    k = square + rule.eps
    return rule.margin + (-(b + rule.margin * k) * k.reciprocal()).clamp_min(
        0
    )  # to the bit as a solver of least squares


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
