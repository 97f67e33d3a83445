"""Distances between two sets of features: what an erasure did to everything else, in three numbers.

All of them compare distributions, not pictures: they fall with the number of samples even where nothing changed, so a
distance means something only beside the same distance of the original against itself. Features are the caller's, so a
value is comparable with a published one only under that paper's features (Inception's pool3 for FID and KID, CLIP
ViT-L/14-336 for CMMD).

Each takes features (n, d) and (m, d) of any real dtype, on any device, computes on the CPU in float64, and raises
ValueError for fewer than 2 rows, differing widths, or values that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import METRICS
from .base import Distance

if TYPE_CHECKING:
    from torch import Tensor

KERNEL_ROWS = 2048  # rows and columns of a kernel matrix held at once: 32 MiB in float64
SIGMA = 10.0  # CMMD's bandwidth, for features of length 1
SCALE = 1000.0  # what CMMD is multiplied by, to read well


def distances(a: Tensor, b: Tensor) -> dict[str, float]:
    """Every distance that is declared, to 6 significant digits."""
    declared = {name: metric for name, metric in METRICS if isinstance(metric, Distance)}
    return {name: float(f"{metric.between(a, b):.6g}") for name, metric in declared.items()}


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    FID where the features are Inception's (Heusel et al. 2017, equation 6); A and B are the unbiased covariances, as in
    the authors' code, pytorch-fid and torchmetrics. Departs from these in how the trace is found: with A = R'R and B = S'S
    it is the sum of the singular values of RS', and a QR decomposition of the centred features gives R and S without
    ever forming a covariance. That is the same number, needs no complex square root and no "epsilon on the diagonal",
    and loses no digits where there are fewer samples than features. Rounding below zero is cut off.
    """
    import torch

    a, b = _checked(a, b)
    factor_a, factor_b = _factor(a), _factor(b)  # (min(n, d), d), (min(m, d), d)
    means = (a.mean(0) - b.mean(0)).square().sum()
    traces = factor_a.square().sum() + factor_b.square().sum()
    return max(0.0, float(means + traces - 2 * torch.linalg.svdvals(factor_a @ factor_b.T).sum()))


def _factor(features: Tensor) -> Tensor:
    """R with R'R = the unbiased covariance: (min(n, d), d)."""
    import torch

    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R


def kid(a: Tensor, b: Tensor) -> float:
    """Kernel distance: the unbiased squared MMD under the kernel (x'y / d + 1)^3; negative values are chance.

    KID where the features are Inception's (Binkowski et al. 2018). Departs from the authors'
    code and torchmetrics, which average over 100 random subsets of 1000: here it is taken once over all samples, which
    has the same expectation, less variance and no seed, and the sets may differ in size.
    """
    a, b = _checked(a, b)
    n, m, d = len(a), len(b), a.shape[1]
    own_a, own_b = ((x.square().sum(1) / d + 1).pow(3).sum().item() for x in (a, b))  # each sample against itself
    within = (_total(a, a, _cubic) - own_a) / (n * (n - 1)) + (_total(b, b, _cubic) - own_b) / (m * (m - 1))
    return within - 2 * _total(a, b, _cubic) / (n * m)


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def cmmd(a: Tensor, b: Tensor) -> float:
    """1000 times the squared MMD under a Gaussian kernel of sigma 10, of features brought to length 1.

    CMMD where the features are CLIP's (Jayasumana et al. 2024). Like the authors' code, this is the V-statistic and not
    the unbiased estimator: each sample also meets itself, so the value is never negative and carries a bias of order
    1/n + 1/m. In float64; theirs is in float32. A row of zeros stays one.
    """
    a, b = _checked(a, b)
    a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (a, b))
    n, m = len(a), len(b)
    between = _total(a, b, _gauss_less_one) / (n * m)
    return SCALE * max(0.0, _total(a, a, _gauss_less_one) / n**2 + _total(b, b, _gauss_less_one) / m**2 - 2 * between)


def _gauss_less_one(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)) - 1: all values lie near 1, and the ones cancel in the sum."""
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squared.clamp(min=0) / (2 * SIGMA**2)).expm1()


def _total(a: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Sum of a kernel over all pairs of rows, a block of its matrix at a time."""
    return sum(kernel(x, y).sum().item() for x in a.split(KERNEL_ROWS) for y in b.split(KERNEL_ROWS))


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features of shape {tuple(features.shape)}: a distance needs (n, d) with n of at least 2")
        if not features.isfinite().all():
            raise ValueError("features hold NaN or infinite values")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features of different widths, {a.shape[1]} and {b.shape[1]}: they come from different models"
        )
    return a.detach().cpu().double(), b.detach().cpu().double()


METRICS.add("frechet", Distance(
    "Fréchet", "distance of the Gaussians fitted to the features of the model's and the original's pictures for prompts that have nothing to do with the concept; lower is better.",
    frechet,
))  # fmt: skip
METRICS.add("kid", Distance("KID", "the same by a cubic kernel; negative values are chance; lower is better.", kid))
METRICS.add("cmmd", Distance("CMMD", "the same by a Gaussian kernel, times 1000; lower is better.", cmmd))
