"""CODEC, a rank measure of conditional dependence, and L-FOCI, which picks variables by it. Pure functions in float64.

T(Y, Z | X) asks how much better Y is known from its neighbours in (X, Z) than from those in X: in the limit it is 0 if
and only if Y and Z are independent given X, and 1 if and only if Y is a function of Z given X (Azadkia and Chatterjee
2021). With R the ranks of Y, L = n + 1 - R, M the nearest other sample in Z (given X: in (X, Z)) and N that in X:

    T(Y, Z) = sum(n min(R_i, R_M(i)) - L_i^2) / sum L_i (n - L_i)
    T(Y, Z | X) = sum(min(R_i, R_M(i)) - min(R_i, R_N(i))) / sum(R_i - min(R_i, R_N(i)))

Of Y the ranks alone count, so without jitter any increasing map of it gives the very same T. Equal responses are ranked in
the order of the samples, and of equally near neighbours the first is taken, where the authors choose at random. Where much
is equal (Y = X binary) T is .67 for an independent Z; jitter mends it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

JITTER = 0.01  # of the randomised variant, in standard deviations
CONSTANT = 1e-6  # a column that varies by less, as a share of its size, is constant: float32's rounding
PREFILTER = 2000  # variables that the greedy search tries
VALUES_AT_ONCE = 1 << 18  # distances, or values of columns, held at a time: 2 MiB stay in a cache


def foci(y: Tensor, units: Tensor, *, jitter: float = JITTER, seed: int = 0, prefilter: int = PREFILTER) -> list[int]:
    """L-FOCI: the units that know something of Y which those picked before them do not (Mehta et al. 2022, section 4).

    Greedily argmax over j of T(Y, Z_j | Z_S), until none is above 0. The distances over S grow by one term a pick, so a
    step takes O(p n^2) whatever the size of S. Columns are brought to mean 0 and standard deviation 1, as FOCI does: a
    distance over several variables needs a common scale. Constant columns are left out.

    Args:
        y: responses (n,).
        units: (n, p).
        jitter: standard deviation of normal noise on all variables, y included, in units of their own standard
            deviations (L-CODEC's randomised variant, which adds it to the variables as they are). On by default, since
            activations tie (at 0, after a ReLU).
        seed: of the noise.
        prefilter: as many units are tried, those with the highest |T(Y, Z_j)| (ours: a UNet has 300,000).

    Returns:
        Columns of `units` in the order of the picks; none if none knows anything of Y.

    Raises:
        ValueError: fewer than two samples, or sizes that differ.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = _ranks(y, jitter, generator)
    candidates = _prefilter(ranks, units, jitter, generator, prefilter)
    if not len(candidates):
        return []
    columns = _columns(units[:, candidates], jitter, generator)
    distances = _no_distances(len(ranks))
    scratch = distances.new_empty(max(1, VALUES_AT_ONCE // distances.numel()), *distances.shape)  # (c, n, n)
    scores = _dependence(ranks, _nearest_alone(columns))
    picked: list[int] = []
    while scores.max() > 0:
        picked.append(int(scores.argmax()))
        distances += _apart(columns[None, :, picked[-1]], scratch)[0]
        scores = _scores(ranks, columns, distances, scratch)
        scores[picked] = -math.inf
    return candidates[picked].tolist()


def _dependence(ranks: Tensor, nearest: Tensor, nearest_given: Tensor | None = None) -> Tensor:
    """T by ranks (n,) and neighbours (..., n): (...). Conditional where the neighbours in X are given too."""
    n, lower = len(ranks), torch.minimum(ranks, ranks[nearest])
    if nearest_given is None:
        left = n + 1 - ranks
        return (n * lower - left.square()).sum(-1) / (left * (n - left)).sum()
    lower_given = torch.minimum(ranks, ranks[nearest_given])
    return (lower - lower_given).sum(-1) / (ranks - lower_given).sum()  # some neighbour ranks lower: never 0 / 0


def _scores(ranks: Tensor, columns: Tensor, distances: Tensor, scratch: Tensor) -> Tensor:
    """T(Y, Z_j | Z_S) of every column: (p,), from the squared distances over S (n, n).

    All distances are computed in `scratch` (c, n, n): allocated anew for each chunk, they fragment the heap, up to p times their
    size.
    """
    nearest_given = distances.min(1).indices
    scores = []
    for some in columns.T.contiguous().split(len(scratch)):  # (c, n)
        both = _apart(some, scratch).add_(distances)  # (c, n, n)
        scores.append(_dependence(ranks, both.min(2).indices, nearest_given))
    return torch.cat(scores)


def _apart(columns: Tensor, scratch: Tensor) -> Tensor:
    """Squared distances over each of some columns (c, n), written into `scratch`: (c, n, n)."""
    return torch.sub(columns[:, :, None], columns[:, None, :], out=scratch[: len(columns)]).square_()


def _prefilter(ranks: Tensor, units: Tensor, jitter: float, generator: torch.Generator, most: int) -> Tensor:
    """The columns that vary, or those `most` of them with the highest |T(Y, Z_j)|: indices, ascending.

    Raises:
        ValueError: not as many rows as ranks.
    """
    if units.dim() != 2 or len(units) != len(ranks):
        raise ValueError(f"units have the shape {tuple(units.shape)}, not ({len(ranks)}, p)")
    low, high = units.min(0).values, units.max(0).values
    varied = (high - low > CONSTANT * torch.maximum(low.abs(), high.abs())).nonzero()[:, 0].cpu()
    if len(varied) <= most:
        return varied
    alone = [
        _dependence(ranks, _nearest_alone(_columns(units[:, some], jitter, generator)))
        for some in varied.split(max(1, VALUES_AT_ONCE // len(ranks)))
    ]
    return varied[torch.cat(alone).abs().argsort(descending=True, stable=True)[:most].sort().values]


def _nearest_alone(columns: Tensor) -> Tensor:
    """The nearest neighbour of every sample in every single column (n, p), by sorting: (p, n).

    Of neighbours on both sides that are equally near, and of equal values, the one before is taken.
    """
    n = len(columns)
    order = columns.argsort(dim=0, stable=True)
    gaps = columns.gather(0, order).diff(dim=0)
    edge = columns.new_full((1, columns.shape[1]), math.inf)
    step = torch.where(torch.cat([edge, gaps]) <= torch.cat([gaps, edge]), -1, 1)
    beside = order.gather(0, torch.arange(n)[:, None] + step)
    return torch.empty_like(order).scatter_(0, order, beside).T


def _no_distances(n: int) -> Tensor:
    """Squared distances over no variable: 0 to all others, and to oneself infinite, which no addition changes."""
    return torch.zeros(n, n, dtype=torch.float64).fill_diagonal_(math.inf)


def _ranks(y: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """1 for the lowest of the responses, n for the highest: (n,).

    Raises:
        ValueError: fewer than two samples, or more than one response of each.
    """
    if y.dim() != 1 or len(y) < 2:
        raise ValueError(f"responses have the shape {tuple(y.shape)}, not (n,) with n of at least 2")
    values = _columns(y[:, None], jitter, generator)[:, 0] if jitter else y.cpu()
    ascending = torch.arange(1, len(y) + 1, dtype=torch.float64)
    return torch.empty_like(ascending).scatter_(0, values.argsort(stable=True), ascending)


def _columns(values: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """(n, d) as float64 columns of mean 0 and standard deviation 1, constant ones 0, with noise added."""
    columns = values.detach().cpu().double()
    columns = columns - columns.mean(0)
    spread = columns.std(0, correction=0)
    columns = torch.where(spread > 0, columns / spread, 0.0)
    if jitter:
        columns = columns + jitter * torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    return columns
