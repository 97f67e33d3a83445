"""What chance alone could make of a figure: 95 % intervals for shares and for counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # the normal distribution's .975 quantile
BLOCK = 2**20  # draws held at once: 8 MiB of indices and as much of values


def wilson(hits: int, n: int) -> list[float]:
    """The 95 % score interval of a share (Wilson 1927), rounded to 4 places.

    It stays inside [0, 1] and has a width even at 0 or n hits, which the textbook's normal interval has not.

    Returns:
        [low, high]; [0, 1] for n = 0, of which nothing is known.

    Raises:
        ValueError: hits outside 0 to n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if n == 0:
        return [0.0, 1.0]
    share, square = hits / n, Z * Z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def bootstrap_total(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> list[float]:
    """A 95 % interval of the sum over pictures: bootstrap, percentile method (Efron 1979).

    Pictures are drawn again with replacement, as many as there are, and summed; the interval holds the middle 95 % of
    those sums. It carries over to other prompts of the same kind and other seeds, not to other kinds of prompts. Same
    values in the same order, seed and resamples give the same interval. Memory stays near 16 MiB, or 16 bytes a value.

    Where every value is the same, above all where nothing was found in any picture, it has no width: it says nothing
    about what more pictures would show, and `wilson(0, n)` does.

    Returns:
        [low, high], the 2.5 and 97.5 percentiles (linear between neighbours); [0, 0] for no values.
    """
    some = np.asarray(values, np.float64)  # (n,)
    if not some.size:
        return [0.0, 0.0]
    draws, block = np.random.default_rng(seed), max(1, BLOCK // some.size)
    sums = [
        some[draws.integers(some.size, size=(min(block, resamples - at), some.size))].sum(axis=1)
        for at in range(0, resamples, block)
    ]
    low, high = np.quantile(np.concatenate(sums), (0.025, 0.975))
    return [float(low), float(high)]
