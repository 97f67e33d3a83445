"""Selection, the currency between the stages, and exact top-k over scores that never meet in one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 21  # scores that are read together: 8 MiB
ROW_WIDTH = 32  # neighbouring scores that are passed over together where their maximum is too low
SAMPLE, DEVIATIONS = 1 << 19, 5  # scores that guess where the threshold lies; standard deviations to either side
BITS = 19  # 2^19 bins prove the guess: 4 MiB


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

    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The chosen numbers of tensors shaped as the parameters: name -> (count,) on the CPU."""
        return {
            name: tensors[name].detach().take(rows.to(tensors[name].device)).cpu()
            for name, rows in self.indices.items()
        }

    @torch.no_grad()
    def put(self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Give the chosen weights these values (the inverse of `values`), rounded to each parameter's dtype."""
        for name, rows in self.indices.items():
            parameters[name].view(-1)[rows.to(parameters[name].device)] = values[name].to(parameters[name])


def count_for(share: float, total: int) -> int:
    """How many weights a share means: floor(share * total), at least one.

    The small addition undoes the product's rounding: .29 * 100 is 28.999999999999996.
    """
    return max(1, math.floor(share * total + 1e-9))


def select(scores: dict[str, Tensor], k: float, *, granularity: str = "weight", by_layer: bool = False) -> Selection:
    """The top share k of the scores, without those that score 0 or less, of which a scorer knows nothing.

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
    chosen = Selection({name: rows for layer in layers.values() for name, rows in choose(layer, k).indices.items()})
    positive = {name: chosen.indices[name][values > 0] for name, values in chosen.values(scores).items()}
    return Selection({name: rows for name, rows in positive.items() if rows.numel()})


def select_channels(scores: dict[str, Tensor], k: float) -> Selection:
    """Whole output channels, by their mean score, as many as fit in `count_for(k, total)` weights (ours).

    A channel is a row of a weight of two or more dimensions, with its number of the bias where that is scored too. The first
    channel that does not fit ends the selection; ties go in the order of the dictionary, then of the row.
    """
    most = count_for(k, sum(s.numel() for s in scores.values()))
    channels = []  # (minus the mean score, number of the weight, row, size), which sorts as the docstring orders
    weights = [name for name, values in scores.items() if values.dim() > 1]
    biases = [name.removesuffix("weight") + "bias" for name in weights]
    for number, (name, bias) in enumerate(zip(weights, biases, strict=True)):
        size = scores[name][0].numel() + (bias in scores)
        channels += [(-mean, number, row, size) for row, mean in enumerate(scores[name].flatten(1).mean(1).tolist())]
    rows: dict[int, list[int]] = {}
    for _, number, row, size in sorted(channels):
        most -= size
        if most < 0:
            break
        rows.setdefault(number, []).append(row)
    indices = {}
    for number in sorted(rows):
        name, bias, own = weights[number], biases[number], torch.tensor(sorted(rows[number]))
        width = scores[name][0].numel()
        indices[name] = (own[:, None] * width + torch.arange(width)).view(-1)
        indices |= {bias: own} if bias in scores else {}
    return Selection(indices)


# ---------------------------------------------------------------- exact top-k


@torch.no_grad()
def select_top(scores: dict[str, Tensor], k: float) -> Selection:
    """The exactly `count_for(k, total)` highest scores (Scissorhands, eq. 5, without its concatenated copy).

    Scores equal to the threshold are taken in the order of the dictionary, then of the flat index. The paper keeps
    s > tau, which is fewer than k where scores tie.

    Args:
        scores: name -> scores of any shape, no NaN, compared as float32; they may lie on different devices.
        k: share of all scores, in (0, 1).

    Raises:
        ValueError: no scores, or k outside (0, 1).
        FloatingPointError: a score is NaN.
    """
    total = sum(s.numel() for s in scores.values())
    if not total or not 0 < k < 1:
        raise ValueError(f"cannot select a share {k} of {total} scores: k must lie in (0, 1)")
    threshold, ties = _threshold(scores, count_for(k, total), total)
    indices = {}
    for name, values in scores.items():
        parts = [torch.empty(0, dtype=torch.int64)]
        for found, places in _not_below(values, threshold):
            take = found > threshold
            equal = (~take).nonzero().view(-1)[:ties]
            take[equal] = True
            ties -= len(equal)
            parts.append(places[take].cpu())
        indices[name] = torch.cat(parts)
    return Selection({name: rows for name, rows in indices.items() if len(rows)})


def _threshold(scores: dict[str, Tensor], count: int, total: int) -> tuple[float, int]:
    """The `count`-th highest score, and how many of those equal to it belong to the `count` highest.

    A pass counts the scores in bins of 2^shift float bit patterns, from `first` on, and so finds the threshold's bin,
    which the next pass divides. A sample guesses where to begin; a wrong guess is noticed, and everything is counted.
    """
    bits, stride = min(BITS, max(12, total.bit_length())), max(1, total // SAMPLE)
    sample = torch.cat([rows.view(-1)[::stride].float().cpu() for s in scores.values() for _, rows in _rows(s)])
    rank, size, most = count * len(sample) / total, len(sample), 1 << bits
    ends = (rank + side * (DEVIATIONS * math.sqrt(rank) + 1) for side in (1, -1))
    first, last = (int(_keys(sample.kthvalue(min(max(size - math.floor(end), 1), size)).values)) for end in ends)
    shift = next(shift for shift in range(32) if (last - first) >> shift < most)
    while True:
        counts = torch.zeros(most + 1, dtype=torch.int64)  # the last counts what lies above all bins
        for name, values in scores.items():
            for found, _ in _not_below(values, _score(first)):
                if found.isnan().any():
                    raise FloatingPointError(f"a score of {name} is NaN")
                bins = ((_keys(found).cpu() - first) >> shift).clamp_(max=most)
                counts.index_add_(0, bins, torch.ones_like(bins))
        above = counts.flip(0).cumsum_(0)
        place = int(torch.searchsorted(above, count))
        if not 0 < place <= most:
            first, shift = -(1 << 31), 32 - bits
        elif shift:
            first, shift = first + ((most - place) << shift), max(0, shift - bits)
        else:
            return _score(first + most - place), count - int(above[place - 1])


def _not_below(values: Tensor, least: float) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores, flat indices) of what is not below `least`, which NaN is not, a chunk at a time.

    Only the maxima of rows read every score; comparing and searching every score takes five times as long.
    """
    for start, rows in _rows(values):
        high = (~(rows.amax(1).float() < least)).nonzero().view(-1)
        if len(high):
            found = rows.index_select(0, high).float().view(-1)
            places = (~(found < least)).nonzero().view(-1)
            row = places // rows.shape[1]
            yield found[places], places + (high[row] - row) * rows.shape[1] + start


def _rows(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Flattened scores as rows (n, ROW_WIDTH), what is left over as (n, 1), and before each the flat index of its first score."""
    values, start = values.detach(), 0
    whole = values.is_contiguous() or not values.numel()  # else it is copied chunk by chunk
    for part in (
        values.reshape(-1).split(SCORES_AT_ONCE) if whole else values.split(max(1, SCORES_AT_ONCE // values[0].numel()))
    ):
        end = part.numel() // ROW_WIDTH * ROW_WIDTH
        for piece, width in zip(part.reshape(-1).tensor_split([end]), (ROW_WIDTH, 1), strict=True):
            if len(piece):
                yield start, piece.view(-1, width)
            start += len(piece)


def _keys(values: Tensor) -> Tensor:
    """Integers ordered as the floats are: bit patterns, with those of negative numbers turned round; int64."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF)).long()


def _score(key: int) -> float:
    """The float of a key; NaN beyond those of the infinities, and nothing is below NaN."""
    return float(torch.tensor(key if key >= 0 else key ^ 0x7FFFFFFF, dtype=torch.int32).view(torch.float32))
