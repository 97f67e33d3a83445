"""Distances of feature sets: against plain float64 re-implementations, against torchmetrics, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from sd_scissorhands.evaluation.metrics import distances as distance
from sd_scissorhands.evaluation.metrics.distances import cmmd, distances, frechet, kid

SHAPES = [(60, 50, 8), (40, 90, 16), (12, 9, 20), (2, 2, 5), (30, 4, 12), (15, 40, 33), (25, 25, 1)]  # n, m, d


def two_sets(n: int, m: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Correlated features with differing means and spreads, float32 as models give them."""
    rng = np.random.default_rng([seed, n, m, d])
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    b = 0.7 * rng.normal(size=(m, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    return torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)


# ---------------------------------------------------------------- oracles


def plain_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The definition. A square root of (A B) that is singular by construction is taken where it is not: A B shares its
    nonzero eigenvalues with (a b')(b a') of the smaller set, centred."""
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    if min(len(a), len(b)) > a.shape[1]:
        root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    else:
        small, large = sorted((a, b), key=len)
        # rows of an orthonormal basis of the centred small set: without the direction that centring removed
        small, large = (
            scipy.linalg.null_space(np.ones((1, len(x)))).T @ x / np.sqrt(len(x) - 1) for x in (small, large)
        )
        product = small @ large.T  # (n - 1, m - 1)
        root = np.sqrt(np.clip(scipy.linalg.eigvalsh(product @ product.T), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root)


def plain_kid(a: np.ndarray, b: np.ndarray) -> float:
    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    within = [
        sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    return within[0] + within[1] - 2 * sum(k(x, y) for x in a for y in b) / (len(a) * len(b))


def plain_cmmd(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in (a, b))

    def mean(s: np.ndarray, t: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((x - y) ** 2).sum() / (2 * 10**2)) for x in s] for y in t]))

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_distances_are_what_their_definitions_say(shape, seed):
    a, b = two_sets(*shape, seed)
    x, y = a.double().numpy(), b.double().numpy()
    assert frechet(a, b) == pytest.approx(plain_frechet(x, y), rel=1e-6)
    assert kid(a, b) == pytest.approx(plain_kid(x, y), rel=1e-6)
    assert cmmd(a, b) == pytest.approx(plain_cmmd(x, y), rel=1e-6)


def test_the_matrix_square_root_itself_agrees_with_fewer_samples_than_features():
    """Straight through scipy's square root of the singular product, as pytorch-fid does; it has fewer digits there."""
    a, b = two_sets(12, 9, 20, 0)
    x, y = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(scipy.linalg.sqrtm(cov_a) @ cov_b @ scipy.linalg.sqrtm(cov_a)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-6)


# ---------------------------------------------------------------- torchmetrics


class AsTheyAre(nn.Module):
    """A feature extractor for torchmetrics whose pictures are features already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
@pytest.mark.parametrize("shape", [(60, 60, 8), (200, 200, 32), (20, 20, 48)])
def test_distances_agree_with_torchmetrics(shape):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = (x.double() for x in two_sets(*shape, seed=1))
    fid = FrechetInceptionDistance(feature=AsTheyAre(shape[2]))
    kernel = KernelInceptionDistance(feature=AsTheyAre(shape[2]), subsets=1, subset_size=len(a))
    for metric in (fid, kernel):
        for at in range(0, len(a), 7):
            metric.update(a[at : at + 7], real=True)
            metric.update(b[at : at + 7], real=False)
    assert frechet(a, b) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert kid(a, b) == pytest.approx(float(kernel.compute()[0]), rel=1e-6)


# ---------------------------------------------------------------- properties and edges


def test_known_values():
    shifted = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet(shifted, shifted + 2) == pytest.approx(6 * 4, rel=1e-9)  # means alone
    assert frechet(shifted, 3 * shifted - 2 * shifted.mean(0)) == pytest.approx(
        float(4 * shifted.var(0).sum()), rel=1e-9
    )
    assert frechet(shifted, shifted) < 1e-12 and cmmd(shifted, shifted) < 1e-9
    assert cmmd(shifted, 5 * shifted) < 1e-9  # only directions count
    east, north = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 3)
    assert cmmd(east, north) == pytest.approx(2000 * (1 - np.exp(-2 / 200)), rel=1e-9)
    assert kid(east, north) == pytest.approx(2 * 1.5**3 - 2, rel=1e-9)


def test_kid_of_one_distribution_is_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    drawn = [kid(*torch.randn(2, 20, 4, generator=generator)) for _ in range(300)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(300) and min(drawn) < 0


def test_order_of_sets_and_rows_and_the_size_of_blocks_change_nothing(monkeypatch):
    a, b = two_sets(23, 17, 9, 0)
    found = distances(a, b)
    assert distances(b, a) == found and distances(a.flip(0), b) == found
    monkeypatch.setattr(distance, "KERNEL_ROWS", 5)
    assert distances(a, b) == found


def test_distances_keep_six_digits():
    a, b = two_sets(30, 30, 4, 0)
    found = distances(a, b)
    assert list(found) == ["frechet", "kid", "cmmd"]
    assert all(float(f"{value:.6g}") == value for value in found.values())
    assert found["frechet"] == pytest.approx(frechet(a, b), rel=1e-5)


def test_half_precision_and_rows_of_zeros_are_taken():
    a, b = two_sets(9, 8, 4, 0)
    b[0] = 0
    assert distances(a.half(), b.half()) == distances(a.half().double(), b.half().double())


@pytest.mark.parametrize("measure", [frechet, kid, cmmd, distances])
def test_impossible_features_are_refused(measure):
    good = torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"shape \(1, 4\)"):
        measure(good[:1], good)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        measure(good, good[:, 0])
    with pytest.raises(ValueError, match="different widths, 4 and 3"):
        measure(good, good[:, :3])
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure(good, good * float("nan"))
