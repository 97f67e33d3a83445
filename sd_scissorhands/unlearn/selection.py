"""Selection, the currency between the stages, and exact top-k over scores that never meet in one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements converted at a time: the scratch memory, about 32 MiB, beyond the scores themselves
BINS = 1 << 16  # one half of a float's 32 bits


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

    def where(self, wanted: dict[str, Tensor]) -> Selection:
        """The part of the selection that is wanted: booleans by name, shaped as the parameters."""
        kept = {name: rows[wanted[name].reshape(-1)[rows].cpu()] for name, rows in self.indices.items()}
        return Selection({name: rows for name, rows in kept.items() if rows.numel()})

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
    chosen = {name: rows for layer in layers.values() for name, rows in choose(layer, k).indices.items()}
    return Selection(chosen).where({name: scores[name] > 0 for name in chosen})


def select_top(scores: dict[str, Tensor], k: float) -> Selection:
    """The exactly `count_for(k, total)` highest scores (Scissorhands, eq. 5, without its concatenated copy).

    Two histograms over the floats' bit patterns find the threshold exactly: the first over the upper sixteen bits, the
    second over the lower sixteen within the bin that holds the threshold. Scores equal to the threshold are taken in
    the order of the dictionary, then of the flat index. The paper keeps s > tau, which is fewer than k where scores tie.

    Args:
        scores: name -> float32 scores of any shape, finite.
        k: share of all scores, in (0, 1).

    Raises:
        ValueError: no scores, or k outside (0, 1).
        FloatingPointError: a score is NaN.
    """
    total = sum(s.numel() for s in scores.values())
    if not total or not 0 < k < 1:
        raise ValueError(f"cannot select a share {k} of {total} scores: k must lie in (0, 1)")
    wanted = count_for(k, total)
    upper, above = _bin_of(_histogram(scores, None), wanted)
    lower, above_within = _bin_of(_histogram(scores, upper), wanted - above)
    threshold = (upper - BINS // 2) * BINS + lower
    ties = wanted - above - above_within
    indices = {}
    for name, values in scores.items():
        chosen, ties = _choose(name, values, threshold, ties)
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


def _keys(values: Tensor) -> Tensor:
    """Integers ordered as the floats are: int32 bit patterns, with those of negative numbers turned round."""
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _chunks(values: Tensor):
    return values.detach().reshape(-1).split(CHUNK)


def _histogram(scores: dict[str, Tensor], upper: int | None) -> Tensor:
    """Counts per upper half of the key, or per lower half among the keys whose upper half is `upper`: (BINS,) int64."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for name, values in scores.items():
        for chunk in _chunks(values):
            if upper is None and torch.isnan(chunk).any():
                raise FloatingPointError(f"a score of {name} is NaN")
            keys = _keys(chunk)
            high = (keys >> 16) + BINS // 2
            chosen = high if upper is None else (keys & 0xFFFF)[high == upper]
            counts += torch.bincount(chosen, minlength=BINS).cpu()
    return counts


def _bin_of(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th highest key, and how many keys lie in the bins above it."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, wanted))
    return BINS - 1 - place, int(above[place - 1]) if place else 0


def _choose(name: str, values: Tensor, threshold: int, ties: int) -> tuple[Tensor, int]:
    """Flat indices above the threshold and the first `ties` at it; returns the ties still to take."""
    chosen, start = [], 0
    for chunk in _chunks(values):
        keys = _keys(chunk)
        take = keys > threshold
        if ties and (equal := (keys == threshold).nonzero().view(-1)).numel():
            take[equal[:ties]] = True
            ties -= min(ties, equal.numel())
        chosen.append(take.nonzero().view(-1).cpu() + start)
        start += chunk.numel()
    return torch.cat(chosen), ties
