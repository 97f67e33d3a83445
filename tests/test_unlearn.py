"""The science against slower, plainer re-implementations in float64."""

from __future__ import annotations

import pytest
import torch
from test_selection import oracle_multiplier
from torch import nn

from sd_scissorhands.errors import UserError
from sd_scissorhands.methods.distributed import FULL_BATCH, BatchSlice
from sd_scissorhands.methods.edits.reinitialise import ReinitialiseOptions
from sd_scissorhands.methods.method import Options, edit, score
from sd_scissorhands.methods.project import SCALE_FREE
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.methods.selection import Selection, select_top
from sd_scissorhands.methods.sensitivity import contrast, sensitivity


class Regression:
    """A small network that is to forget one half of its data and keep the other."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
        self.x, self.y = torch.randn(2, 40, 5, dtype=dtype), torch.randn(2, 40, 3, dtype=dtype)

    def _errors(self, side: int, draw: int, part: BatchSlice = FULL_BATCH, some: slice = slice(None)) -> torch.Tensor:
        rows = torch.randint(40, (8,), generator=torch.Generator().manual_seed(draw))
        places = part.of(torch.arange(8))
        rows = rows[places[torch.isin(places, torch.arange(8)[some])]]
        return (self.module(self.x[side, rows]) - self.y[side, rows]).square().mean(1)

    def forget(self, draw: int, part: BatchSlice = FULL_BATCH) -> torch.Tensor:
        return part.mean(self._errors(0, draw, part), 8)

    def retain(self, draw: int) -> torch.Tensor:
        return self._errors(1, draw).mean()

    def repair(self, draw: int, part: BatchSlice = FULL_BATCH, adversary=None) -> tuple[torch.Tensor, torch.Tensor]:
        first = slice(4 if adversary is False else 0, 4 if adversary else None)  # of eight samples
        kept = self._errors(1, draw, part) if not adversary else torch.zeros(0)
        return -part.mean(self._errors(0, draw, part, first), 8), part.mean(kept, 8)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_equals_backward_in_float64(seed):
    task, oracle = Regression(seed), Regression(seed, torch.float64)
    oracle.module.load_state_dict({n: t.double() for n, t in task.module.state_dict().items()})
    oracle.x, oracle.y = task.x.double(), task.y.double()
    expected = {name: torch.zeros_like(p) for name, p in oracle.parameters.items()}
    for draw in range(4):
        oracle.module.zero_grad()
        oracle.forget(draw).backward()
        for name, p in oracle.parameters.items():
            expected[name] += p.grad.abs()
    for name, found in sensitivity(task.forget, task.parameters, 4).items():
        torch.testing.assert_close(found.double(), expected[name] * oracle.parameters[name].abs(), rtol=1e-4, atol=1e-7)


def test_sensitivity_does_not_see_the_sign_of_the_loss():
    task = Regression()
    up, down = sensitivity(task.forget, task.parameters, 3), sensitivity(lambda n: -task.forget(n), task.parameters, 3)
    assert all(torch.equal(up[name], down[name]) for name in up)


def test_absolute_values_are_taken_per_draw():
    weight = nn.Parameter(torch.tensor([2.0]))
    found = sensitivity(lambda draw: weight.sum() * (-1) ** draw, {"w": weight}, 2)
    assert found["w"].item() == 4.0


def test_contrast_is_forget_over_retain():
    forget, retain = {"a": torch.tensor([1.0, 4.0])}, {"a": torch.tensor([1.0, 3.0])}
    assert torch.allclose(contrast(forget, retain)["a"], torch.tensor([1 / 3, 4 / 5]))


def test_an_overflowing_loss_is_named():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(FloatingPointError, match="w"):
        sensitivity(lambda draw: (weight * torch.inf).sum(), {"w": weight}, 1)


def test_unknown_scorer():
    with pytest.raises(UserError, match="psychic"):
        score(Regression(), {}, "psychic", Options())


# ---------------------------------------------------------------- edit


def reinitialise(parameters, selection: Selection, init: str, seed: int) -> None:
    edit(None, parameters, selection, "reinitialise", ReinitialiseOptions(init=init, seed=seed))


@pytest.mark.parametrize("init", ["layer", "kaiming", "trunc_normal"])
def test_only_the_selected_weights_change(init):
    task = Regression()
    before = {name: p.detach().clone() for name, p in task.parameters.items()}
    selection = select_top({name: torch.rand(p.shape) for name, p in task.parameters.items()}, 0.3)
    reinitialise(task.parameters, selection, init, seed=1)
    for name, p in task.parameters.items():
        mask = selection.mask(name, p)
        assert torch.equal(p[~mask], before[name][~mask]) and (p[mask] != before[name][mask]).all()
        assert p.dim() > 1 or not p[mask].any()


def test_edits_repeat_with_the_seed_and_empty_selections_do_nothing():
    one, two, other = Regression(), Regression(), Regression()
    selection = select_top({name: p.abs() for name, p in one.parameters.items()}, 0.2)
    for task, seed in ((one, 3), (two, 3), (other, 4)):
        reinitialise(task.parameters, selection, "layer", seed)
    assert torch.equal(one.module[0].weight, two.module[0].weight)
    assert not torch.equal(one.module[0].weight, other.module[0].weight)
    kept = one.module[2].weight.clone()
    reinitialise(one.parameters, Selection({}), "layer", 9)
    assert torch.equal(one.module[2].weight, kept)


def test_layer_init_has_the_layers_scale():
    weight = nn.Parameter(torch.randn(200, 200) * 0.037)
    everything = Selection({"w": torch.arange(40_000)})
    reinitialise({"w": weight}, everything, "layer", 0)
    assert abs(float(weight.detach().std()) / 0.037 - 1) < 0.02


# ---------------------------------------------------------------- repair


def test_first_step_follows_the_projected_gradient():
    task, plain = Regression(1), Regression(1, torch.float64)
    plain.module.load_state_dict({n: t.double() for n, t in task.module.state_dict().items()})
    plain.x, plain.y = task.x.double(), task.y.double()
    captured: list[torch.Tensor] = []
    repair = Repair(task, task.parameters, RepairSettings(1, 1e-3, 0.5, SCALE_FREE))
    step = repair.optimizer.step
    repair.optimizer.step = lambda: (captured.extend(p.grad.clone() for p in task.parameters.values()), step())
    repair.run()

    def flat(loss):
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(plain.parameters.values()))])

    forget, retain = plain.repair(0)
    g = flat(retain + 0.5 * forget)
    f = flat(-plain.forget(1 << 20))
    if f @ g < 0:
        g = g + f * oracle_multiplier(f.numpy(), g.numpy(), 0.0, 1e-12)
    assert repair.history[0]["conflict"] and torch.allclose(
        torch.cat([c.reshape(-1) for c in captured]).double(), g, atol=1e-5
    )


class Weights:
    """Two weights, with a forget and a retain loss that are linear in them."""

    def __init__(self, forget: tuple[float, float], retain: tuple[float, float]):
        self.weights = nn.Parameter(torch.zeros(2))
        self.slopes = torch.tensor([forget, retain])

    def repair(self, draw, part=FULL_BATCH, adversary=None):
        return tuple(self.slopes @ self.weights)


@pytest.mark.parametrize(
    "forget,retain,gradient,cosine",
    [
        ((-4.0, 2.0), (1.0, 1.0), (-0.5, 2.5), -(0.1**0.5)),  # g_f = (-2, 1) becomes (-1.5, 1.5), orthogonal to g_r
        ((-2.0, -2.0), (1.0, 1.0), (1.0, 1.0), -1),  # opposite: nothing is left of it
        ((4.0, -2.0), (1.0, 1.0), (3.0, 0.0), 0),
        ((-4.0, 2.0), (0.0, 0.0), (-2.0, 1.0), 0),  # at the first step of an unedited model
    ],
)
def test_the_forget_gradient_loses_what_is_against_the_retain_gradient(forget, retain, gradient, cosine):
    task = Weights(forget, retain)
    how = RepairSettings(1, 1.0, 0.5, optimiser=lambda tensors, lr: torch.optim.SGD(tensors, lr), protect_retained=True)
    repair = Repair(task, {"weights": task.weights}, how)
    repair.run()
    assert (-task.weights).tolist() == list(gradient)
    assert repair.conflict_rate == (cosine < 0) and (repair.mean_correction or 0) == pytest.approx(-cosine)


def test_where_nothing_conflicts_protecting_what_is_retained_changes_no_bit():
    ends = []
    for protect in (False, True):
        task = Regression()
        task.repair = lambda *where, task=task: [Regression.repair(task, *where)[1]] * 2
        repair = Repair(task, task.parameters, RepairSettings(5, 1e-2, 0.3, protect_retained=protect))
        repair.run()
        ends.append(torch.cat([p.detach().view(-1) for p in task.parameters.values()]))
        assert repair.conflict_rate == (0 if protect else None) and repair.mean_correction is None
    assert torch.equal(*ends)


@pytest.mark.parametrize("protect", [False, True])
def test_resumed_repair_equals_an_uninterrupted_one(protect):
    whole, cut = Regression(), Regression()
    how = RepairSettings(9, 1e-2, 0.1, SCALE_FREE, memory_every=3, protect_retained=protect)
    make = lambda task: Repair(task, task.parameters, how)  # noqa: E731
    one = make(whole)
    one.run()
    saved = {}

    def stop(repair):
        if repair.step == 6:
            saved.update(state={n: t.clone() for n, t in repair.state().items()}, history=list(repair.history))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(cut).run(stop)
    fresh = Regression()
    two = make(fresh)
    two.restore(saved["state"], 6, saved["history"])
    two.run()
    assert two.history == one.history
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), fresh.module.parameters(), strict=True))


@pytest.mark.parametrize("rule,protect", [(None, False), (SCALE_FREE, False), (None, True)])
def test_a_loss_that_overflows_stops_the_repair(rule, protect):
    task, whole, seen = Regression(), Regression.repair, []
    task.repair = lambda draw, part, adversary: [
        (float("nan") if draw == 3 else 1) * t for t in whole(task, draw, part, adversary)
    ]
    with pytest.raises(FloatingPointError, match="step 3"):
        how = RepairSettings(9, 1e-3, 1.0, rule, memory_every=5, protect_retained=protect)
        Repair(task, task.parameters, how).run(lambda repair: seen.append(repair.step))
    assert max(seen) < 5  # no epoch ends, so no checkpoint is written


def test_trimming_hurts_what_is_forgotten_more_than_what_is_kept():
    for seed in range(3):
        task = Regression(seed)
        task.x[0, :, 3:], task.x[1, :, :2] = 0, 0  # each half of the data speaks through its own inputs
        optimizer = torch.optim.Adam(task.module.parameters(), lr=1e-2)
        for draw in range(500):
            optimizer.zero_grad()
            (task.forget(draw) + task.retain(draw)).backward()
            optimizer.step()
        before = [sum(float(loss(n)) for n in range(50)) for loss in (task.forget, task.retain)]
        selection = select_top(score(task, task.parameters, "contrast", Options(draws=20)), 0.1)
        reinitialise(task.parameters, selection, "layer", 0)
        after = [sum(float(loss(n)) for n in range(50)) for loss in (task.forget, task.retain)]
        assert after[0] - before[0] > 2 * (after[1] - before[1])
