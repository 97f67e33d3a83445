"""What chance alone could make of a figure: 95 % intervals for shares and for counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import hypot, sqrt

Z95 = 1.959964  # of the normal distribution, for 95 %
DRAWS_AT_ONCE = 2**20  # draws held at once: 8 MiB of indices and as much of values


def wilson(hits: int, n: int) -> list[float]:
    """The 95 % score interval of a share (Wilson 1927), rounded to 4 places.

    It stays inside [0, 1] and has a width even at 0 or n hits, which the textbook's normal interval has not.

    Returns:
        [low, high]; [0, 1] for n = 0, of which nothing is known.

    Raises:
        ValueError: hits outside 0 to n.
    """
    return [0.0, 1.0] if hits == n == 0 else list(_wilson(hits, n))


@lru_cache(4096)
def _wilson(hits: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return round(float(low), 4), round(float(high), 4)


def difference(hits: int, others: int, n: int) -> list[float]:
    """The 95 % interval of hits / n - others / n, from the two Wilson intervals (Newcombe 1998, method 10).

    For two samples of n each that know nothing of each other. Of the same prompts and seeds, as a model's and its original's, it
    is too wide, never too narrow, where the two tend to be right about the same pictures.

    Raises:
        ValueError: hits outside 0 to n.
    """
    ours, theirs = hits / n, others / n
    (low, high), (lower, higher) = wilson(hits, n), wilson(others, n)
    return [ours - theirs - hypot(ours - low, higher - theirs), ours - theirs + hypot(high - ours, theirs - lower)]


def bootstrap_total(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> list[float]:
    """A 95 % interval of the sum over pictures: bootstrap, percentile method (Efron 1979).

    Pictures are drawn again with replacement, as many as there are, and summed; the interval holds the middle 95 % of
    those sums. It carries over to other prompts of the same kind and other seeds, not to other kinds of prompts. Same
    values in the same order, seed and resamples give the same interval. Memory stays near 16 MiB, or 16 bytes a value.

    Where every value is the same, above all where nothing was found in any picture, it has no width: it shows nothing
    about what more pictures would show, and `wilson(0, n)` does.

    Returns:
        [low, high], the 2.5 and 97.5 percentiles (linear between neighbours); [0, 0] for no values.
    """
    import numpy as np
    from scipy.stats import bootstrap

    some = np.asarray(values, np.float64)  # (n,)
    if some.size < 2:
        return [float(some.sum())] * 2
    found = bootstrap(
        (some,), np.sum, n_resamples=resamples, batch=max(1, DRAWS_AT_ONCE // some.size), method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return [float(end) for end in found.confidence_interval]


def corrected(seen: int, n: int, sensitivity: tuple[int, int], false_positives: tuple[int, int]) -> list[float] | None:
    """A share as it is, out of what an erring judge saw: [share, low, high], rounded to 4 places.

    Rogan and Gladen 1978: (seen / n + specificity - 1) / (sensitivity + specificity - 1), held in [0, 1]. The 95 % interval is that of
    Lang and Reiczigel 2014, with their added counts, and knows that both rates were measured on few pictures.

    Args:
        sensitivity: (seen, pictures) where it is there.
        false_positives: (seen, pictures) where it is not.

    Returns:
        None where the judge tells no difference, or nothing was counted.
    """
    (hits, positives), (wrong, negatives) = sensitivity, false_positives
    if not (n and positives and negatives) or hits / positives <= wrong / negatives:
        return None
    share = (seen / n - wrong / negatives) / (hits / positives - wrong / negatives)
    z2 = Z95 * Z95
    p, se, sp = (seen + z2 / 2) / (n + z2), (hits + 1) / (positives + 2), (negatives - wrong + 1) / (negatives + 2)
    index = se + sp - 1
    if index <= 0:
        return None
    middle = (p + sp - 1) / index
    by_hits, by_wrong = se * (1 - se) / (positives + 2), sp * (1 - sp) / (negatives + 2)
    shift = 2 * z2 * (middle * by_hits - (1 - middle) * by_wrong)
    reach = Z95 / index * sqrt(p * (1 - p) / (n + z2) + middle**2 * by_hits + (1 - middle) ** 2 * by_wrong)
    return [round(min(max(one, 0.0), 1.0), 4) for one in (share, middle + shift - reach, middle + shift + reach)]
