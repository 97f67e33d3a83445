"""L-CODEC against slower, plainer re-implementations in float64, and its Newton step against retraining."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sd_scissorhands.errors import UserError
from sd_scissorhands.methods import codec as own
from sd_scissorhands.methods import method as methods
from sd_scissorhands.methods.codec import foci
from sd_scissorhands.methods.edits import newton
from sd_scissorhands.methods.edits.newton import NewtonOptions
from sd_scissorhands.methods.method import Options
from sd_scissorhands.methods.scorers import foci as scorer
from sd_scissorhands.methods.selection import Selection, select


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the oracle


def plain_nearest(columns: np.ndarray, i: int) -> int:
    """The first of the nearest other rows."""
    others = [j for j in range(len(columns)) if j != i]
    return min(others, key=lambda j: (sum((columns[i] - columns[j]) ** 2), j))


def plain_codec(y: np.ndarray, z: np.ndarray, x: np.ndarray | None = None) -> float:
    """The formulae, sample by sample."""
    n = len(y)
    rank = [sum(y[j] < y[i] or (y[j] == y[i] and j <= i) for j in range(n)) for i in range(n)]
    scaled = [(v - v.mean(0)) / v.std(0) for v in (*([] if x is None else [x]), z)]
    both = np.concatenate(scaled, 1)
    above = below = 0.0
    for i in range(n):
        left = n + 1 - rank[i]
        told = min(rank[i], rank[plain_nearest(both, i)])
        if x is None:
            above, below = above + n * told - left**2, below + left * (n - left)
        else:
            told_given = min(rank[i], rank[plain_nearest(scaled[0], i)])
            above, below = above + told - told_given, below + rank[i] - told_given
    return above / below


def plain_foci(y: np.ndarray, units: np.ndarray) -> list[int]:
    picked: list[int] = []
    while len(picked) < units.shape[1]:
        scores = {
            j: plain_codec(y, units[:, [j]], units[:, picked] if picked else None)
            for j in range(units.shape[1])
            if j not in picked
        }
        best = max(scores, key=lambda j: scores[j])
        if scores[best] <= 0:
            break
        picked.append(best)
    return picked


# ---------------------------------------------------------------- CODEC


def codec(y: Tensor, z: Tensor, x: Tensor | None = None, *, jitter: float = 0.0, seed: int = 0) -> float:
    """T(Y, Z), or T(Y, Z | X), of variables (n,) or (n, d), by the functions that L-FOCI is made of."""
    generator = torch.Generator().manual_seed(seed)
    ranks = own._ranks(y, jitter, generator)
    distances, nearest_given = own._no_distances(len(ranks)), None
    for variables in (x, z):
        if variables is not None:
            for column in own._columns(variables.view(len(y), -1), jitter, generator).T:
                distances = distances + own._apart(column[None], torch.empty_like(distances)[None])[0]
        if variables is x is not None:
            nearest_given = distances.min(1).indices
    return float(own._dependence(ranks, distances.min(1).indices, nearest_given))


@pytest.mark.parametrize("seed", range(4))
def test_codec_equals_plain_loops(seed):
    y, z, x = normal(seed, 40), normal(seed + 100, 40, 1 + seed % 3), normal(seed + 200, 40, 1 + seed % 2)
    y += z[:, 0].square()
    assert codec(y, z) == pytest.approx(plain_codec(y.numpy(), z.numpy()), abs=1e-12)
    assert codec(y, z, x) == pytest.approx(plain_codec(y.numpy(), z.numpy(), x.numpy()), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_codec_equals_plain_loops_where_values_tie(seed):
    cut = torch.tensor(
        [0.0, 0.3, -0.5, 0.8], dtype=torch.float64
    )  # columns of different spreads, so distances tie or are apart
    y, columns = normal(seed, 40).round(), (normal(seed + 100, 40, 4) > cut).double()
    x, z = columns.split(2, 1)
    expected = plain_codec(y.numpy(), z.numpy(), x.numpy())
    assert codec(y, z, x) == pytest.approx(expected, abs=1e-12)


def test_a_sum_modulo_one_needs_both():
    x = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.sum(1) % 1
    assert codec(y, x[:, 1]) == pytest.approx(0, abs=0.08)
    assert codec(y, x) == pytest.approx(0.92, abs=0.02)
    assert codec(y, x[:, 0], x[:, 1]) == pytest.approx(0.92, abs=0.02)


def test_independent_given_what_is_known():
    x, noise = normal(0, 1000), normal(1, 1000)
    assert codec(x + 0.1 * noise, normal(2, 1000), x) == pytest.approx(0, abs=0.15)
    assert codec(x + 0.1 * noise, noise, x) > 0.5


class Allocations(TorchDispatchMode):
    """Counts the tensors of at least `size` numbers that are made new, neither views nor written into another."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = {one.data_ptr() for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)}
        self.count += isinstance(out, Tensor) and out.numel() >= self.size and out.data_ptr() not in held
        return out


def test_the_search_allocates_its_distances_once():
    """Anew for each chunk and pick they fragment the heap, and the process grows by all of them together."""
    n, counts = 600, []
    for p in (4, 24):
        units = normal(0, n, p)
        with Allocations(n * n) as made:
            assert len(foci(units.sum(1), units, prefilter=p)) > 1
        counts.append(made.count)
    assert counts[0] == counts[1] <= 4


def test_increasing_maps_of_the_response_change_nothing():
    y, z, x = normal(0, 200), normal(1, 200, 2), normal(2, 200)
    y = y + z[:, 0] * x
    for rising in (torch.exp, lambda v: v**3, lambda v: 1e-3 * v - 7, torch.arctan):
        assert codec(rising(y), z) == codec(y, z)
        assert codec(rising(y), z, x) == codec(y, z, x)
        assert foci(rising(y), z, jitter=0) == foci(y, z, jitter=0)


def test_units_of_measure_change_nothing():
    y, z, x = normal(0, 200), normal(1, 200, 2), normal(2, 200)
    scaled = z * torch.tensor([1e6, 1e-6]) + 3
    assert codec(y, scaled, 100 * x) == pytest.approx(codec(y, z, x), abs=1e-12)


def test_jitter_mends_ties():
    plain, randomised = [], []
    for seed in range(5):
        x = (normal(seed, 500) > 0).double()
        z = normal(seed + 50, 500)
        plain.append(codec(x, z, x))
        randomised.append(codec(x, z, x, jitter=0.01, seed=seed))
    assert np.mean(plain) > 0.2
    assert abs(np.mean(randomised)) < 0.08
    assert codec(x, z, x, jitter=0.01, seed=1) == codec(x, z, x, jitter=0.01, seed=1)
    assert codec(x, z, x, jitter=0.01, seed=1) != codec(x, z, x, jitter=0.01, seed=2)


@pytest.mark.parametrize("y, z", [((1,), (1, 2)), ((5,), (4, 2)), ((5, 1), (5, 2)), ((5,), (5, 2, 2))])
def test_foci_refuses_sizes(y, z):
    with pytest.raises(ValueError, match="have the shape"):
        foci(normal(0, *y), normal(1, *z))


# ---------------------------------------------------------------- L-FOCI


@pytest.mark.parametrize("seed", range(4))
def test_foci_equals_plain_loops(seed):
    units, other = normal(seed, 40, 6), normal(seed + 50, 40)
    y = units[:, 1] + units[:, 4].square() + other
    assert foci(y, units, jitter=0) == plain_foci(y.numpy(), units.numpy())


def test_foci_finds_what_was_planted():
    for seed in range(10):
        units = normal(seed, 400, 60)
        assert set(foci((2 * units[:, 34]).sin() + units[:, 47], units, seed=seed)) == {34, 47}


def test_foci_finds_what_was_planted_behind_relus():
    for seed in range(5):
        units = normal(seed, 400, 60).relu()
        assert set(foci((2 * units[:, 34]).sin() + units[:, 47], units, seed=seed)) == {34, 47}


def test_the_prefilter_keeps_what_tells_most():
    units = normal(0, 300, 500)
    y = units[:, 340] + 0.8 * units[:, 471]
    assert foci(y, units, prefilter=50) == [340, 471]
    assert foci(y, units, prefilter=1) == [340]


def test_constant_activations_are_dropped():
    units = normal(0, 300, 8)
    units[:, [0, 3]] = torch.tensor([0.0, 7.0], dtype=torch.float64)
    units[:, 5] = 0.1 + 1e-9 * units[:, 5]
    y = units[:, 6] + units[:, 1]
    assert set(foci(y, units)) == {1, 6}
    assert foci(y, units[:, [0, 3, 5]]) == []


# ---------------------------------------------------------------- the scorer


class Response:
    """Two layers; the units of the first are independent, and the response is a function of its units 4 and 9."""

    def __init__(self):
        self.module = nn.Sequential(nn.Conv2d(12, 12, 1), nn.Flatten(2), nn.Linear(9, 5))
        with torch.no_grad():
            self.module[0].weight.copy_(torch.eye(12)[:, :, None, None])
            self.module[0].bias.zero_()

    def respond(self, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(draw)
        x = torch.randn(20, 12, 1, 1, generator=generator) + 0.1 * torch.randn(20, 12, 3, 3, generator=generator)
        self.module(torch.zeros(1, 12, 3, 3))  # what is asked first, of another size, does not count
        self.module(x)
        means = x.mean((2, 3))
        return means[:, 4] + (2 * means[:, 9]).sin()


def test_the_scorer_ranks_the_rows_that_were_picked():
    task = Response()
    parameters = {name: p for name, p in task.module.named_parameters() if name.startswith("0.")}
    ticks: list[int] = []
    options = Options(draws=15, granularity="channel", tick=lambda: ticks.append(1))
    scores = methods.score(task, parameters, "foci", options)
    assert len(ticks) == 15 and not task.module[0]._forward_hooks
    weight, bias = scores["0.weight"], scores["0.bias"]
    assert {name: s.shape for name, s in scores.items()} == {name: p.shape for name, p in parameters.items()}
    assert weight.dtype == torch.float32 and torch.equal(weight, bias.view(-1, 1, 1, 1).expand_as(weight))
    assert sorted(bias.nonzero()[:, 0].tolist()) == [4, 9] and sorted(bias[[4, 9]].tolist()) == [1, 2]
    chosen = select(scores, 0.5, granularity="channel")
    assert chosen.indices["0.bias"].tolist() == [4, 9] and len(chosen) == 26
    again = methods.score(task, parameters, "foci", options)
    assert all(torch.equal(again[name], scores[name]) for name in scores)


def test_activations_are_means_by_sample():
    task = Response()
    responses, seen = scorer._observe(task, dict(task.module.named_parameters()), Options(draws=2))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 12, 1, 1, generator=generator) + 0.1 * torch.randn(20, 12, 3, 3, generator=generator)
    assert responses.shape == (40,) and list(seen) == ["0", "2"]
    torch.testing.assert_close(seen["0"][20:], x.mean((2, 3)))
    torch.testing.assert_close(seen["2"][20:], task.module[2](x.flatten(2)).mean(1).detach())


def test_the_scorer_says_when_there_is_nothing_to_go_by():
    task = Response()
    task.respond = lambda draw: torch.ones(20)
    with pytest.raises(ValueError, match="depends on"):
        scorer.score(task, dict(task.module.named_parameters()), Options(draws=2))


# ---------------------------------------------------------------- the Newton step


def newton_step_dense(gradient: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """d = (H + lambda I)^-1 g with a Hessian that is known: (p,), (p, p) -> (p,), float64.

    For m samples out of n, H = (n H_all - m H_m) / (n - m), both means (L-CODEC has m = 1). For convex problems.
    """
    eye = torch.eye(len(gradient), dtype=torch.float64)
    return torch.linalg.solve(hessian.double() + damping * eye, gradient.double())


@pytest.mark.parametrize("r, p", [(0, 5), (1, 5), (8, 30), (64, 20)])
def test_woodbury_equals_the_dense_solution(r, p):
    gradient, samples = normal(0, p), normal(1, r, p)
    fisher = sum((torch.outer(s, s) for s in samples), torch.zeros(p, p, dtype=torch.float64)) / max(r, 1)
    for damping in (0.01, 0.1, 3.0):
        expected = torch.linalg.inv(fisher + damping * torch.eye(p, dtype=torch.float64)) @ gradient
        assert (newton.newton_direction(gradient, samples, damping) - expected).norm() <= 1e-9 * expected.norm()
        assert (newton_step_dense(gradient, fisher, damping) - expected).norm() <= 1e-9 * expected.norm()


def test_a_step_without_damping_is_refused():
    for damping in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="damping"):
            NewtonOptions(damping=damping)


# ---------------------------------------------------------------- the convex case


class Logistic:
    """Multinomial logistic regression on handwritten digits with an L2 penalty, in float64."""

    penalty = 0.01

    def __init__(self, count: int = 1257):
        digits = load_digits()
        rows = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))[:count]
        pictures = torch.from_numpy(digits.data / 16)[rows]
        self.x = torch.cat([pictures, torch.ones(count, 1, dtype=torch.float64)], 1)  # (n, 65)
        self.y = torch.from_numpy(digits.target)[rows].long()

    def train(self, rows: Tensor, start: Tensor) -> Tensor:
        """The minimum, to a gradient of about 1e-8: (650,)."""
        w = start.clone().requires_grad_(True)
        x, y = self.x[rows], self.y[rows]
        optimizer = torch.optim.LBFGS(
            [w], max_iter=500, history_size=30, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(x @ w.view(-1, 10), y) + self.penalty / 2 * w.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert w.grad is not None and w.grad.norm() < 1e-6
        return w.detach()

    def each(self, w: Tensor, rows: Tensor) -> Tensor:
        """Gradients of single samples without the penalty: (n, 650)."""
        error = (self.x[rows] @ w.view(-1, 10)).softmax(1) - nn.functional.one_hot(self.y[rows], 10)
        return (self.x[rows, :, None] * error[:, None]).flatten(1)

    def hessian(self, w: Tensor, rows: Tensor) -> Tensor:
        """Mean Hessian without the penalty: (650, 650)."""
        q = (self.x[rows] @ w.view(-1, 10)).softmax(1)
        inner = torch.diag_embed(q) - q[:, :, None] * q[:, None]
        left = torch.einsum("na,ncd->nacd", self.x[rows], inner).flatten(2)  # (n, 65, 100)
        return torch.einsum("nax,nb->axb", left, self.x[rows]).view(65, 10, 10, 65).permute(0, 1, 3, 2).reshape(
            650, 650
        ) / len(rows)


@pytest.fixture(scope="module")
def trained() -> tuple[Logistic, Tensor]:
    problem = Logistic()
    return problem, problem.train(torch.arange(len(problem.y)), torch.zeros(650, dtype=torch.float64))


@pytest.mark.parametrize("removed", [1, 10])
def test_a_newton_step_arrives_where_retraining_does(trained, removed):
    problem, w = trained
    n, m, penalty = len(problem.y), removed, problem.penalty
    gone, left = torch.arange(m), torch.arange(m, n)
    retrained = problem.train(left, w)
    hessian = (n * problem.hessian(w, torch.arange(n)) - m * problem.hessian(w, gone)) / (n - m)
    torch.testing.assert_close(hessian, problem.hessian(w, left), rtol=1e-9, atol=1e-12)
    gradient = problem.each(w, gone).mean(0) + penalty * w  # of what is removed, its share of the penalty included

    def apart(step: Tensor) -> float:
        return float((w + m / (n - m) * step - retrained).norm() / (w - retrained).norm())

    assert apart(newton_step_dense(gradient, hessian, penalty)) <= 0.01
    fisher = apart(newton.newton_direction(gradient, problem.each(w, left), penalty))
    assert 0.1 < fisher < 0.8  # the Fisher matrix of all that is left is no Hessian, but better than no step
    assert apart(newton_step_dense(gradient - penalty * w, hessian, penalty)) > 0.03  # the penalty belongs in


# ---------------------------------------------------------------- the loop


class Blobs:
    """A small classifier of three clouds, the first of which is to be forgotten."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(3).repeat_interleave(60)
        centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
        self.x = centres[self.y] + 0.5 * torch.randn(180, 2, generator=generator)
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(self.module.parameters(), 0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.module(self.x), self.y).backward()
            optimizer.step()
        self.looks: list[float] = []

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def _losses(self, forget: bool, draw: int) -> Tensor:
        rows = ((self.y == 0) == forget).nonzero()[:, 0]
        rows = rows[torch.randint(len(rows), (24,), generator=torch.Generator().manual_seed(draw))]
        return nn.functional.cross_entropy(self.module(self.x[rows]), self.y[rows], reduction="none")

    def _accuracy(self, forget: bool) -> float:
        rows = (self.y == 0) == forget
        return float((self.module(self.x[rows]).argmax(1) == self.y[rows]).float().mean())

    def repair(self, draw: int, part=None, ahead=None) -> tuple[Tensor, Tensor]:
        return -self._losses(True, draw).mean(), self._losses(False, draw).mean()

    def retain_each(self, draw: int) -> Tensor:
        return self._losses(False, draw)

    def retained(self) -> float:
        self.looks.append(self._accuracy(False))
        return self.looks[-1]

    def forgotten(self) -> bool:
        return self._accuracy(True) <= 0.05

    def share(self) -> float:
        return 0.5


def everything(parameters: dict[str, nn.Parameter]) -> Selection:
    return Selection({name: torch.arange(p.numel()) for name, p in parameters.items()})


def snapshot(task: Blobs) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in task.parameters.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


OPTIONS = NewtonOptions(draws=3, damping=0.1, rounds=30, tolerance=0.02)


def test_it_is_forgotten_and_the_rest_is_kept():
    task = Blobs()
    assert not task.forgotten()
    done = newton.remove(task, task.parameters, everything(task.parameters), OPTIONS)
    assert task.forgotten() and 0 < len(done.alphas) < OPTIONS.rounds
    assert all(kept >= done.retained[0] - OPTIONS.tolerance - 1e-9 for kept in done.retained)
    after = snapshot(task)
    assert newton.remove(task, task.parameters, everything(task.parameters), OPTIONS).alphas == ()
    assert same(after, snapshot(task))


def test_there_are_no_more_rounds_than_asked_for():
    task = Blobs()
    task.forgotten = lambda: False
    done = newton.remove(task, task.parameters, everything(task.parameters), NewtonOptions(rounds=2, draws=1))
    assert len(done.alphas) == 2 and len(done.retained) == 3


def test_rounds_stop_as_soon_as_it_is_gone():
    task, asked = Blobs(), []
    task.forgotten = lambda: bool(asked.append(1)) or len(asked) > 3
    done = newton.remove(task, task.parameters, everything(task.parameters), NewtonOptions(rounds=9, draws=1))
    assert len(done.alphas) == 3


def test_selected_weights_alone_change():
    task, selection = Blobs(), Selection({"0.weight": torch.tensor([6, 7, 20, 21]), "0.bias": torch.tensor([3, 10])})
    before = snapshot(task)
    methods.edit(task, task.parameters, selection, "newton", OPTIONS)
    for name, p in task.parameters.items():
        chosen = selection.mask(name, p)
        assert torch.equal(p[~chosen], before[name][~chosen])
        assert not chosen.any() or (p[chosen] != before[name][chosen]).all()


@pytest.mark.parametrize("options", [OPTIONS, NewtonOptions(newton_step=0.0)])
@pytest.mark.parametrize("selection", [Selection({}), Selection({"0.weight": torch.tensor([], dtype=torch.int64)})])
def test_nothing_selected_is_the_identity(options, selection):
    task = Blobs()
    before = snapshot(task)
    newton.remove(task, task.parameters, selection, options)
    assert same(before, snapshot(task)) and not task.looks


def test_a_vanishing_step_is_the_identity():
    task = Blobs()
    before = snapshot(task)
    newton.remove(task, task.parameters, everything(task.parameters), NewtonOptions(newton_step=0.0))
    assert same(before, snapshot(task))
    apart = []
    for step in (1e-4, 1e-6):
        task = Blobs()
        newton.remove(task, task.parameters, everything(task.parameters), NewtonOptions(newton_step=step, rounds=1))
        apart.append(max(float((p - before[name]).detach().abs().max()) for name, p in task.parameters.items()))
    assert 0 < apart[1] < 0.02 * apart[0] < 1e-4


@pytest.mark.parametrize("halvings", [0, 3])
def test_a_round_is_the_newton_step_of_an_oracle(halvings):
    """One round on some weights, halved as often as the task wants, from gradients taken one sample at a time."""
    task, oracle = Blobs(), Blobs()
    oracle.module.double()
    oracle.x = oracle.x.double()
    name, rows = "2.weight", torch.tensor([0, 5, 17, 30])
    weight = oracle.parameters[name]
    pick = lambda loss: torch.autograd.grad(loss, weight)[0].view(-1)[rows]  # noqa: E731
    w = weight.detach().view(-1)[rows]
    gradient = sum(pick(oracle._losses(True, draw).mean()) for draw in range(3)) / 3 + 0.01 * w
    losses = [oracle._losses(False, draw)[at] for draw in range(3) for at in range(24)][: newton.SAMPLES]
    samples = [pick(loss) for loss in losses]
    fisher = sum(torch.outer(g, g) for g in samples) / len(samples)
    direction = torch.linalg.solve(fisher + 0.1 * torch.eye(4, dtype=torch.float64), gradient)
    answers = iter([1.0, *[0.5] * halvings, 0.99])
    task.retained = lambda: next(answers)
    options = NewtonOptions(draws=3, damping=0.1, rounds=1, tolerance=0.015)
    done = newton.remove(task, task.parameters, Selection({name: rows}), options, decay=0.01)
    assert done.alphas == (0.5**halvings,) and done.retained == (1.0, 0.99)
    found = task.parameters[name].detach().view(-1)[rows].double() - w
    torch.testing.assert_close(found, 0.5**halvings * 0.5 * direction, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kept", [0.98, math.nan])
def test_a_round_that_costs_too_much_is_put_back_and_ends_it(kept):
    task = Blobs()
    before, answers = snapshot(task), [1.0]
    task.retained = lambda: answers.pop() if answers else kept
    done = newton.remove(task, task.parameters, everything(task.parameters), NewtonOptions(rounds=5, draws=1))
    assert done.alphas == () and same(before, snapshot(task))


def test_a_removal_repeats():
    ends = []
    for _ in range(2):
        task = Blobs()
        newton.remove(task, task.parameters, everything(task.parameters), OPTIONS)
        ends.append(snapshot(task))
    assert same(*ends)


def test_what_no_removal_can_use_is_refused():
    task = Blobs()
    task.retain_each = lambda draw: task._losses(False, draw)[:0]
    with pytest.raises(ValueError, match="too little"):
        newton.remove(task, task.parameters, everything(task.parameters), OPTIONS)
    task.repair = lambda draw: (torch.zeros(()), torch.zeros(()))
    with pytest.raises(ValueError, match="forget term"):
        newton.remove(task, task.parameters, everything(task.parameters), OPTIONS)
    task.repair = lambda draw: (math.inf * task._losses(True, draw).mean(), torch.zeros(()))
    with pytest.raises(FloatingPointError):
        newton.remove(task, task.parameters, everything(task.parameters), OPTIONS)
