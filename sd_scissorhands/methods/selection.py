"""Selection, the currency between the stages, and exact top-k over scores that never meet in one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import SINGLE_PROCESS, ProcessGroup

CHUNK = 1 << 21  # scores whose rows' maxima are taken together
ROW = 32  # neighbouring scores that are passed over together where their maximum is too low
PIECE = 1 << 18  # scores that are searched together: the scratch memory, at most some 35 MiB beyond the scores
SAMPLE = 1 << 21  # scores whose histogram guesses where the threshold lies
COARSE = 1 << 16  # bins of that histogram
BINS = 1 << 20  # most bins of the one that proves the guess: 8 MiB
DEVIATIONS = 5  # standard deviations of a sampled rank to either side of the guess


@dataclass(frozen=True)
class Selection:
    """Chosen weights: parameter name -> flat indices (int64, ascending) into that parameter.

    Sparse, because k is small: the top .1 % of Stable Diffusion's weights are 7 MB of indices and 860 MB of mask.
    """

    indices: dict[str, Tensor]

    def __len__(self) -> int:
        return sum(rows.numel() for rows in self.indices.values())

    def count(self, name: str) -> int:
        """How many weights of one parameter are chosen."""
        return self.indices[name].numel() if name in self.indices else 0

    def mask(self, name: str, like: Tensor) -> Tensor:
        """The choice within one parameter as booleans, shaped and placed as `like`."""
        mask = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
        if name in self.indices:
            mask[self.indices[name].to(like.device)] = True
        return mask.view(like.shape)

    def within(self, names: set[str]) -> Selection:
        """The part of the selection that lies in the named parameters."""
        return Selection({name: rows for name, rows in self.indices.items() if name in names})


def count_for(share: float, total: int) -> int:
    """How many weights a share means: floor(share * total), at least one.

    The small addition undoes the product's rounding: .29 * 100 is 28.999999999999996.
    """
    return max(1, math.floor(share * total + 1e-9))


def select(scores: dict[str, Tensor], k: float, *, granularity: str = "weight", by_layer: bool = False) -> Selection:
    """The top share k of the scores; what scores 0 or less, which a scorer says nothing for, is never chosen.

    Args:
        granularity: `weight`, see `select_top`, or `channel`, see `select_channels`.
        by_layer: take the share in every layer (a weight and its bias) instead of over all of them.

    Raises:
        ValueError, FloatingPointError: see `select_top`.
    """
    choose = select_channels if granularity == "channel" else select_top
    layers: dict[str, dict[str, Tensor]] = {}
    for name, values in scores.items():
        layers.setdefault(name.rpartition(".")[0] if by_layer else "", {})[name] = values
    kept = {}
    for layer in layers.values():
        for name, rows in choose(layer, k).indices.items():
            positive = scores[name].take(rows.to(scores[name].device)) > 0
            if positive.any():
                kept[name] = rows[positive.cpu()]
    return Selection(kept)


@torch.no_grad()
def select_top(scores: dict[str, Tensor], k: float, *, group: ProcessGroup = SINGLE_PROCESS) -> Selection:
    """The exactly `count_for(k, total)` highest scores (Scissorhands, eq. 5, without its concatenated copy).

    Two passes over the scores. A sample guesses an interval of float bit patterns that holds the threshold; the first
    pass counts what lies in every pattern of it and above it, and so either finds the threshold or proves the guess
    wrong or too wide, upon which it is repeated with another interval. The second pass chooses. Scores equal to the
    threshold are taken in the order of the processes, then of the dictionary, then of the flat index. The paper keeps
    s > tau, which is fewer than k where scores tie.

    Args:
        scores: name -> scores of any shape, no NaN, compared as float32; they may lie on different devices.
        k: share of all scores, in (0, 1).
        group: processes that hold some of the tensors each. Each is given its own part of the selection; the parts
            together are what one process would choose of all tensors.

    Raises:
        ValueError: no scores, or k outside (0, 1).
        FloatingPointError: a score is NaN, in any process.
    """
    total = int(_sum(torch.tensor([sum(s.numel() for s in scores.values())]), group, scores))
    if not total or not 0 < k < 1:
        raise ValueError(f"cannot select a share {k} of {total} scores: k must lie in (0, 1)")
    wanted = count_for(k, total)
    threshold, above, equal = _threshold(scores, wanted, total, group)
    before = _sum(torch.tensor([equal * (group.index < n) for n in range(group.count)]), group, scores)[group.index]
    ties = min(max(wanted - above - int(before), 0), equal)
    indices = {}
    for name, values in scores.items():
        chosen, ties = _choose(values, threshold, ties)
        if chosen.numel():
            indices[name] = chosen
    return Selection(indices)


def select_channels(scores: dict[str, Tensor], k: float) -> Selection:
    """Whole output channels, by their mean score, as many as fit in `count_for(k, total)` weights (ours).

    A channel is a row of a weight of two or more dimensions, with its number of the bias where that is scored too. The first
    channel that does not fit ends the selection; ties go in the order of the dictionary, then of the row.
    """
    total = sum(s.numel() for s in scores.values())
    owners = [name for name, values in scores.items() if values.dim() > 1]
    if not owners:
        return Selection({})
    rows = torch.cat([scores[name].flatten(1).mean(1).cpu() for name in owners])
    owner = torch.cat([torch.full((len(scores[name]),), n) for n, name in enumerate(owners)])
    number = torch.cat([torch.arange(len(scores[name])) for name in owners])
    biases = [name.removesuffix("weight") + "bias" for name in owners]
    sizes = torch.tensor([scores[n][0].numel() + (b in scores) for n, b in zip(owners, biases, strict=True)])
    order = rows.argsort(descending=True, stable=True)
    chosen = order[: int((sizes[owner[order]].cumsum(0) <= count_for(k, total)).sum())]
    indices = {}
    for n, (name, bias) in enumerate(zip(owners, biases, strict=True)):
        own = number[chosen[owner[chosen] == n]].sort().values
        if own.numel():
            width = scores[name][0].numel()
            indices[name] = (own[:, None] * width + torch.arange(width)).view(-1)
            indices |= {bias: own} if bias in scores else {}
    return Selection(indices)


@dataclass(frozen=True)
class _Span:
    """An interval of keys in bins of 2^shift keys, the first of which holds the keys first * 2^shift and so on."""

    first: int
    shift: int
    bins: int

    @classmethod
    def around(cls, low: int, high: int, most: int) -> _Span:
        """The keys from low to high, as finely as so many bins allow."""
        shift = next(s for s in range(32) if (high >> s) - (low >> s) < most)
        return cls(low >> shift, shift, (high >> shift) - (low >> shift) + 1)

    def bin(self, number: int) -> tuple[int, int]:
        """The least and the greatest key of a bin."""
        return (self.first + number) << self.shift, ((self.first + number + 1) << self.shift) - 1


def _threshold(scores: dict[str, Tensor], wanted: int, total: int, group: ProcessGroup) -> tuple[int, int, int]:
    """The key of the `wanted`-th highest score, how many are higher, and how many of this process equal it."""
    most = min(BINS, max(1 << 12, total))  # few scores do not wait for empty bins
    everything = _Span.around(-(1 << 31), (1 << 31) - 1, min(COARSE, most))
    span = _guess(scores, wanted, total, everything, most, group)
    while True:
        own = _histogram(_not_below(scores, _score(span.bin(0)[0])), span)
        counts = _sum(own, group, scores)
        if counts[-1]:
            raise FloatingPointError(f"a score of {_holder_of_nan(scores)} is NaN")
        number, above = _bin_of(counts[:-1], wanted)
        if not 0 <= number < span.bins:  # the threshold lies outside the guess
            span = everything
        elif span.shift:
            span = _Span.around(*span.bin(number), most)
        else:
            return span.first + number, above, int(own[number])


def _guess(
    scores: dict[str, Tensor], wanted: int, total: int, everything: _Span, most: int, group: ProcessGroup
) -> _Span:
    """Where the threshold most likely lies, from every n-th score."""
    stride = max(1, total // SAMPLE)
    parts = (chunk[stride // 2 :: stride] for values in scores.values() for _, chunk in _chunks(values))
    counts = _sum(_histogram(parts, everything), group, scores)[:-1]
    rank = wanted * int(counts.sum()) / total
    slack = DEVIATIONS * math.sqrt(rank) + 1
    lowest, highest = (_bin_of(counts, math.floor(rank + side * slack))[0] for side in (1, -1))
    low, high = everything.bin(max(lowest, 0))[0], everything.bin(min(highest, everything.bins - 1))[1]
    return _Span.around(low, high, most)


def _sum(counts: Tensor, group: ProcessGroup, scores: dict[str, Tensor]) -> Tensor:
    """The sum over the group of int64 counts on the CPU; exact, since their mean in float64 is right to 52 bits."""
    if group.count == 1:
        return counts
    mean = counts.double().to(next((s.device for s in scores.values()), "cpu"))  # where the processes can speak
    group.average([mean])
    return mean.mul_(group.count).round_().long().cpu()


def _histogram(parts: Iterable[Tensor], span: _Span) -> Tensor:
    """How many scores lie in each bin, above the last one, and are NaN: (bins + 2,) int64 on the CPU.

    No score may lie below the span. PIECE of them are counted at a time, since an empty histogram costs what a full
    one does.
    """
    size = span.bins + 2
    counts = torch.zeros(size, dtype=torch.int64)
    greatest = min(span.first + size - 2, (1 << 31) - 1)  # clamped before the difference, which could overflow
    for values in _gathered(parts):
        bins = _keys(values).bitwise_right_shift_(span.shift).clamp_(max=greatest).sub_(span.first)
        counts += torch.bincount(bins.masked_fill_(values.isnan(), size - 1), minlength=size)
    return counts


def _gathered(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The parts on the CPU, joined until they are PIECE long."""
    waiting, held = [], 0
    for part in parts:
        waiting.append(part.cpu())
        held += len(part)
        if held >= PIECE:
            yield torch.cat(waiting)
            waiting, held = [], 0
    if waiting:
        yield torch.cat(waiting)


def _bin_of(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th highest score, -1 if none does, and how many scores lie in the bins above it."""
    above = counts.flip(0).cumsum_(0)
    place = int(torch.searchsorted(above, wanted))
    return len(counts) - 1 - place, int(above[place - 1]) if place else 0


def _choose(values: Tensor, threshold: int, ties: int) -> tuple[Tensor, int]:
    """Flat indices, ascending, of keys above the threshold and of the first `ties` at it; and the ties still to take."""
    chosen, least = [torch.empty(0, dtype=torch.int64)], _score(threshold)
    for start, rows, high in _high_rows(values, least if ties else _score(threshold + 1)):
        scores = rows.index_select(0, high).float().view(-1)
        take = scores > least
        if ties:
            equal = (scores == least).nonzero().view(-1)[:ties]
            take[equal] = True
            ties -= len(equal)
        places = take.nonzero().view(-1)
        row = places // rows.shape[1]
        chosen.append((places + (high.index_select(0, row) - row) * rows.shape[1] + start).cpu())
    return torch.cat(chosen), ties


def _not_below(scores: dict[str, Tensor], least: float) -> Iterator[Tensor]:
    """The scores that are not below `least`, which NaN is not, a piece at a time."""
    for values in scores.values():
        for _, rows, high in _high_rows(values, least):
            piece = rows.index_select(0, high).float().view(-1)
            yield piece.index_select(0, (~(piece < least)).nonzero().view(-1))


def _high_rows(values: Tensor, least: float) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Scores in rows, the flat index of the first, and which rows hold scores not below `least`, a piece at a time.

    Only the rows' maxima look at every score; comparing and searching every score takes five times as long.
    """
    for start, rows in _rows(values):
        high = (~(rows.amax(1).float() < least)).nonzero().view(-1)
        if len(high):
            yield from ((start, rows, piece) for piece in high.split(max(1, PIECE // ROW)))


def _rows(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The scores in rows of ROW, with the flat index of the first: (n, ROW), and what is left over as (n, 1)."""
    for start, chunk in _chunks(values):
        whole = len(chunk) // ROW * ROW
        for first, part, width in ((start, chunk[:whole], ROW), (start + whole, chunk[whole:], 1)):
            if len(part):
                yield first, part.view(-1, width)


def _chunks(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Runs of the flattened scores, with the flat index of the first; what is not contiguous is copied run by run."""
    values, start = values.detach(), 0
    whole = values.is_contiguous() or not values.numel()
    parts = values.reshape(-1).split(CHUNK) if whole else values.split(max(1, CHUNK // values[0].numel()))
    for part in parts:
        yield start, part.reshape(-1)
        start += part.numel()


def _keys(values: Tensor) -> Tensor:
    """Integers ordered as the floats are: int32 bit patterns, with those of negative numbers turned round."""
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


def _score(key: int) -> float:
    """The float of a key; NaN beyond those of the infinities, and nothing is below NaN."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def _holder_of_nan(scores: dict[str, Tensor]) -> str:
    """The first parameter with a score that is NaN."""
    holders = (name for name, values in scores.items() if any(chunk.isnan().any() for _, chunk in _chunks(values)))
    return next(holders, "another process")
