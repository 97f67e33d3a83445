"""Selection and projection against slower, plainer re-implementations, in any layout."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch.utils._python_dispatch import TorchDispatchMode

from sd_scissorhands.methods import project as projecting
from sd_scissorhands.methods import selection as selecting
from sd_scissorhands.methods.project import (
    PAPER_RULE,
    SCALE_FREE,
    Memory,
    Projection,
    Rule,
    inner,
    multiplier,
    project,
    protect_retained,
)
from sd_scissorhands.methods.selection import Selection, count_for, select, select_top


class Largest(TorchDispatchMode):
    """Notes the largest memory that any operation within it makes, in bytes; views make none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(out, torch.Tensor) and not any(out is a for a in args):
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


# ---------------------------------------------------------------- selection


def plain_top(scores: dict[str, torch.Tensor], k: float) -> dict[str, list[int]]:
    """Sort everything: highest score first, ties in the order of dictionary and index."""
    flat = [
        (-float(v), n, i) for n, (name, s) in enumerate(scores.items()) for i, v in enumerate(s.reshape(-1).tolist())
    ]
    names, chosen = list(scores), {}
    for _, n, i in sorted(flat)[: count_for(k, len(flat))]:
        chosen.setdefault(names[n], []).append(i)
    return {name: sorted(rows) for name, rows in chosen.items()}


@pytest.mark.parametrize("seed,k", itertools.product(range(6), (0.001, 0.03, 0.29, 0.5, 0.97)))
def test_selection_equals_sorting(seed, k):
    g = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.randn(shape, generator=g) for name, shape in {"a": (40, 7), "b": (3,), "c": (5, 4, 3, 3)}.items()
    }
    if seed % 2:
        scores = {name: (s * 3).round() / 3 for name, s in scores.items()}  # many ties, zeros of both signs
    found = select_top(scores, k)
    assert {name: rows.tolist() for name, rows in found.indices.items()} == plain_top(scores, k)


def test_selection_is_exact_where_every_score_ties_and_over_chunks(monkeypatch):
    monkeypatch.setattr("sd_scissorhands.methods.selection.SCORES_AT_ONCE", 64)
    found = select_top({"a": torch.zeros(1000), "b": torch.zeros(1000)}, 0.6)
    assert (
        len(found) == 1200 and torch.equal(found.indices["a"], torch.arange(1000)) and found.indices["b"].max() == 199
    )


def test_selection_of_extreme_values():
    values = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, float("inf"), -1.0, 1e-38, -float("inf")])
    assert select_top({"a": values}, 3 / 8).indices["a"].tolist() == [3, 4, 6]


@pytest.mark.parametrize("k", [0, 1, -0.1, 1.5])
def test_selection_refuses_other_shares(k):
    with pytest.raises(ValueError, match="k must lie"):
        select_top({"a": torch.rand(5)}, k)


def test_selection_refuses_nan():
    with pytest.raises(FloatingPointError, match="b is NaN"):
        select_top({"a": torch.rand(5), "b": torch.tensor([float("nan")])}, 0.5)


def test_counting_is_not_off_by_rounding():
    assert [count_for(k, n) for k, n in ((0.29, 100), (0.7, 10), (0.001, 10), (0.5, 3))] == [29, 7, 1, 1]


def test_mask_and_within():
    selection = Selection({"a": torch.tensor([1, 5]), "b": torch.tensor([0])})
    assert selection.mask("a", torch.zeros(2, 3)).tolist() == [[False, True, False], [False, False, True]]
    assert len(selection.within({"b"})) == 1 and not selection.mask("c", torch.zeros(2)).any()


def fields(seed: int) -> dict[str, torch.Tensor]:
    """Scores of several shapes, layouts and dtypes, with ties, zeros of both signs, infinities and all magnitudes."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.randn(70, 9, generator=g) * 10.0 ** torch.randint(-38, 38, (70, 9), generator=g)
    return {
        "wide": wide,
        "empty": torch.empty(0, 3),
        "transposed": (torch.randn(9, 41, generator=g) * 4).round().t(),
        "image": torch.randn(6, 5, 3, 3, generator=g).contiguous(memory_format=torch.channels_last),
        "half": torch.randn(77, generator=g).bfloat16(),
        "one": torch.tensor(0.5),
        "signs": torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e-45, -1e-45] * 11),
    }


def listed(selection: Selection) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in selection.indices.items()}


@pytest.mark.parametrize("seed,k", itertools.product(range(4), (0.002, 0.05, 0.4, 0.9)))
def test_selection_of_any_layout_from_a_sample_over_pieces(seed, k, monkeypatch):
    for name, value in {"SCORES_AT_ONCE": 200, "ROW_WIDTH": 8, "SAMPLE": 97}.items():
        monkeypatch.setattr(selecting, name, value)
    scores = fields(seed)
    assert listed(select_top(scores, k)) == plain_top(scores, k)


@pytest.fixture
def thresholds(monkeypatch) -> list[float]:
    """What the scores are compared with: once for every pass over them, the threshold itself at the end."""
    asked = []
    score = selecting._score
    monkeypatch.setattr(selecting, "_score", lambda key: asked.append(score(key)) or asked[-1])
    return asked


@pytest.mark.parametrize("sampled", [-1.0, 1.0])
def test_a_wrong_guess_is_put_right(sampled, thresholds, monkeypatch):
    monkeypatch.setattr(selecting, "SAMPLE", 10)
    scores = {"a": torch.randn(50, 20, generator=torch.Generator().manual_seed(2)) * 1e-3}
    scores["a"].view(-1)[::100] = sampled
    assert listed(select_top(scores, 0.03)) == plain_top(scores, 0.03)
    assert thresholds[0] == sampled
    if sampled > 0:  # the guess, everything, within a bin of the one before and again, and what was found
        assert len(thresholds) == 5 and math.isnan(thresholds[1])


def test_a_sample_finds_the_threshold_in_one_pass(thresholds, monkeypatch):
    monkeypatch.setattr(selecting, "SAMPLE", 1 << 14)
    scores = {"a": 1 + torch.rand(1 << 18, generator=torch.Generator().manual_seed(0)) / 16}
    assert len(select_top(scores, 0.01)) == 2621
    assert len(thresholds) == 2


def test_selection_takes_no_memory_of_the_scores_size(monkeypatch):
    for name, value in {"SCORES_AT_ONCE": 1 << 12, "SAMPLE": 1 << 10, "BITS": 12}.items():
        monkeypatch.setattr(selecting, name, value)
    scores = {"a": torch.rand(1000, 300), "b": torch.rand(300, 500).t()}
    with Largest() as largest:
        assert len(select(scores, 0.01)) == 4500
    assert largest.bytes <= 8 * 4500  # as many as there are chosen


def test_selecting_never_takes_what_scores_nothing():
    scores = {"a.weight": torch.tensor([[0.0, 2.0], [-1.0, 0.5]]).t(), "b.weight": torch.tensor([-1.0, 0.0, -0.0])}
    assert listed(select(scores, 0.9)) == {"a.weight": [2, 3]}
    assert listed(select(scores, 0.5, by_layer=True)) == {"a.weight": [2, 3]}


@pytest.mark.parametrize("place", [0, 31, 32, 99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_is_found_wherever_it_lies(place, dtype, sign, monkeypatch):
    monkeypatch.setattr(selecting, "SCORES_AT_ONCE", 60)
    values = torch.rand(100).to(dtype)
    values[place] = torch.tensor(float("nan"), dtype=dtype).copysign(torch.tensor(float(sign), dtype=dtype))
    with pytest.raises(FloatingPointError, match="a score of b is NaN"):
        select_top({"a": torch.rand(500), "b": values}, 0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("k", [0.002, 0.4])
def test_selection_is_the_same_on_the_gpu(k):
    scores = fields(0) | {"large": torch.rand(3_000_000)}
    mixed = {name: s.cuda() if n % 2 else s for n, (name, s) in enumerate(scores.items())}
    assert listed(select_top(mixed, k)) == listed(select_top(scores, k))
    assert listed(select_top({name: s.cuda() for name, s in scores.items()}, k)) == listed(select_top(scores, k))


# ---------------------------------------------------------------- projection


def oracle_multiplier(f: np.ndarray, g: np.ndarray, margin: float, eps: float) -> float:
    """min over u >= 0 of |L'u + L^-1 b| with LL' = |f|^2 + eps, b = <g, f> + margin LL'; v = u + margin."""
    k = np.array([[f @ f + eps]])
    lower = np.linalg.cholesky(k)
    u, _ = nnls(lower.T, -np.linalg.solve(lower, np.array([f @ g]) + margin * k[0]))
    return float(u[0]) + margin


def of_one(gradient: torch.Tensor, memory: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, Projection]:
    """A projected copy of a gradient of one tensor, and what was done."""
    moved = [gradient.clone()]
    done = project(moved, Memory([memory]), rule)
    return moved[0], done


def test_closed_form_equals_nnls():
    rng = np.random.default_rng(1)
    rule = Rule(margin=0.5, eps=1e-3, scale_free=False)
    for _ in range(250):
        f, g = rng.standard_normal(12), rng.standard_normal(12)
        found = multiplier(torch.tensor(f @ f), torch.tensor(f @ g), float(np.linalg.norm(g)), rule)
        np.testing.assert_allclose(found.item(), oracle_multiplier(f, g, 0.5, 1e-3), rtol=1e-6, atol=1e-8)


def test_projected_gradient_is_the_nearest_feasible_one():
    rng = np.random.default_rng(11)
    for _ in range(100):
        f, g = rng.standard_normal(9), rng.standard_normal(9)
        moved = [torch.tensor(g[:4]), torch.tensor(g[4:])]
        done = project(moved, Memory([torch.tensor(f[:4]), torch.tensor(f[4:])]), SCALE_FREE)
        after = torch.cat(moved).numpy()
        assert done.conflict == bool(f @ g < 0)
        assert f @ after >= -1e-9
        expected = g + f * oracle_multiplier(f, g, 0.0, 1e-12) if done.conflict else g
        np.testing.assert_allclose(after, expected, atol=1e-6)


def test_without_conflict_the_gradient_is_bit_identical():
    g, f = torch.randn(50), torch.randn(50)
    moved, done = of_one(g, f if float(g @ f) >= 0 else -f, PAPER_RULE)
    assert not done.conflict and torch.equal(moved, g)


def test_the_papers_closed_form():
    g, f = torch.tensor([-1.0, 0.2], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(of_one(g, f, PAPER_RULE)[0], g + max(0.5, 1.0 / (1 + 1e-3)) * f)


def test_scale_free_rule_does_not_depend_on_scale():
    g, f = torch.randn(30, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    f = f if float(g @ f) < 0 else -f
    for scale in (1e-6, 1.0, 1e6):
        torch.testing.assert_close(of_one(g, f * scale, SCALE_FREE)[0], g - (g @ f) / (f @ f) * f)


def test_a_zero_memory_does_no_harm():
    g = torch.tensor([-1.0, 1.0])
    assert not of_one(g, torch.zeros(2), SCALE_FREE)[1].conflict
    assert torch.allclose(of_one(g, torch.tensor([1.0, 0.0]), SCALE_FREE)[0], torch.tensor([0.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_forget_gradient_becomes_the_nearest_that_does_not_harm_what_is_retained(seed):
    forget, retain = np.random.default_rng(seed).standard_normal((2, 9))
    moved, parts = torch.tensor(forget + retain), torch.tensor(retain)
    done = protect_retained([moved[:4], moved[4:]], [parts[:4], parts[4:]])
    cosine = forget @ retain / np.linalg.norm(forget) / np.linalg.norm(retain)
    assert done.conflict == (cosine < 0) and done.correction == pytest.approx(max(0, -cosine))
    expected = forget + retain * oracle_multiplier(retain, forget, 0.0, 0.0) if done.conflict else forget
    np.testing.assert_allclose(moved.numpy() - retain, expected, atol=1e-12)
    assert (moved.numpy() - retain) @ retain > -1e-12


@pytest.mark.parametrize("retain", [torch.zeros(3), torch.tensor([0.3, -0.7, 1.1])])
def test_a_gradient_that_is_the_retain_terms_alone_or_has_none_of_it_is_bit_identical(retain):
    moved = [retain * (1 + 1e-7) if retain.any() else torch.tensor([0.1, -0.2, 0.3])]
    before = moved[0].clone()
    assert protect_retained(moved, [retain]) == Projection(False, 0.0) and torch.equal(moved[0], before)


LAYOUTS = {"empty": (0, 4), "scalar": (), "bias": (150,), "conv": (7, 5, 3, 3), "row": (1, 900), "matrix": (40, 30)}


def laid_out(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """A gradient whose convolution is channels last and whose matrix is transposed."""
    g = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=g, dtype=dtype) * scale for name, shape in LAYOUTS.items()}
    tensors["conv"] = tensors["conv"].contiguous(memory_format=torch.channels_last)
    tensors["matrix"] = tensors["matrix"].t().contiguous().t()
    tensors["row"] = torch.stack([tensors["row"]] * 2, 2)[..., 0]
    return list(tensors.values())


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([t.reshape(-1) for t in tensors]).double().numpy()


@pytest.mark.parametrize("rule", [PAPER_RULE, SCALE_FREE])
@pytest.mark.parametrize("bound", [False, True])
def test_float32_gradients_of_any_layout_against_float64(rule, bound, monkeypatch):
    monkeypatch.setattr(projecting, "PIECE", 64)
    g, size = laid_out(0, 0.02), 10.0 if bound else 0.01
    memory = [size * (f - 30 * h) for f, h in zip(laid_out(1, 0.5), g, strict=True)]
    direction, before = flat(memory), flat(g)
    scale = np.linalg.norm(direction) if rule.scale_free else 1.0
    length = np.linalg.norm(before) if rule.scale_free else 1.0
    v = oracle_multiplier(direction / scale, before / length, rule.margin, rule.eps)
    assert bool(v <= rule.margin) == (bound and rule is PAPER_RULE)
    expected = before + v * length / scale * direction
    assert project(g, Memory(memory), rule).conflict
    assert np.linalg.norm(flat(g) - expected) <= 1e-6 * np.linalg.norm(expected)


def test_inner_products_are_summed_in_double_precision():
    ones = [torch.full((1 << 22,), 0.1), torch.full((3, 5), 0.1)]
    exact = float(torch.tensor(0.1)) ** 2 * ((1 << 22) + 15)
    assert abs(float(inner([ones, ones], 1)[1]) / exact - 1) < 1e-11


def test_inner_products_of_the_first_vectors_with_all():
    vectors = [laid_out(n) for n in range(4)]
    plain = np.stack([flat(v) for v in vectors])
    for count in (1, 3, 4):
        np.testing.assert_allclose(inner(vectors, count).numpy(), plain @ plain[:count].T, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("rule", [PAPER_RULE, SCALE_FREE])
def test_a_memory_used_again_gives_the_same_gradient_and_its_length_is_taken_once(rule, monkeypatch):
    counts = []
    monkeypatch.setattr(projecting, "inner", lambda vectors, count: counts.append(count) or inner(vectors, count))
    tensors = laid_out(1, 0.3)
    again = Memory(tensors)
    for seed in (11, 12, 13):
        one, other = ([h - 0.2 * f for h, f in zip(laid_out(seed), tensors, strict=True)] for _ in range(2))
        assert project(one, Memory(tensors), rule) == project(other, again, rule)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert counts == [2, 2, 2, 1, 2, 1]


def test_projection_takes_no_memory_of_the_gradients_size(monkeypatch):
    monkeypatch.setattr(projecting, "PIECE", 128)
    g = [torch.randn(200, 300), torch.randn(300, 100).t()]
    memory = Memory([torch.randn_like(t) - t for t in g])
    with Largest() as largest:
        assert project(g, memory, SCALE_FREE).conflict
    assert largest.bytes <= 2 * 128 * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_projection_is_the_same_on_the_gpu():
    g, memory = laid_out(0), [f - h for f, h in zip(laid_out(1), laid_out(0), strict=True)]
    moved = [t.cuda() for t in g]
    project(moved, Memory([t.cuda() for t in memory]), SCALE_FREE)
    project(g, Memory(memory), SCALE_FREE)
    assert np.linalg.norm(flat([t.cpu() for t in moved]) - flat(g)) <= 1e-6 * np.linalg.norm(flat(g))
