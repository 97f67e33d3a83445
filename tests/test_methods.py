"""The contract of every method: any scorer with any edit, on a classifier and on a denoiser."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sd_scissorhands.classifier.data import Dataset, Parts, split_by_class
from sd_scissorhands.classifier.forgetting_task import ClassifierTask
from sd_scissorhands.diffusion.dataset import gather
from sd_scissorhands.diffusion.erasure_task import ErasureTask
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.methods import method as methods
from sd_scissorhands.methods.distributed import FULL_BATCH
from sd_scissorhands.methods.edits import EDITS
from sd_scissorhands.methods.method import DeclaredDataOnly, Options, options_for
from sd_scissorhands.methods.optimisers import OPTIMISERS, restore_into, state_of
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.methods.scorers import SCORERS
from sd_scissorhands.methods.selection import Selection, select
from sd_scissorhands.preparation import prepare
from sd_scissorhands.recipes import DEFAULT_RECIPE, recipes_for
from sd_scissorhands.settings import EraseSettings


class Net(nn.Module):
    """Convolution, hidden layer, head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.conv(x).relu().flatten(1)).relu())


def classifier() -> tuple[ClassifierTask, dict[str, nn.Parameter]]:
    """Three classes of noisy pictures, learnt in a moment, the first of which is to go."""
    torch.manual_seed(0)
    centres = torch.randn(3, 1, 5, 5)
    labels = torch.arange(120) % 3
    data = Dataset(centres[labels] + 0.5 * torch.randn(120, 1, 5, 5), labels, ("a", "b", "c"))
    net = Net()
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        adam.zero_grad()
        nn.functional.cross_entropy(net(data.pictures), labels).backward()
        adam.step()
    parts = Parts(data.rows(list(range(60))), data.rows(list(range(60, 90))), data.rows(list(range(90, 120))))
    task = ClassifierTask(net, split_by_class(parts, "a"), batch_size=8, seed=0)
    return task, task.scope("full")


@pytest.fixture(scope="module")
def gathered(short):
    """A denoiser and the data of a short erasure."""
    prepared = prepare(dataclasses.replace(short, scope="xattn"))
    pairs = prepared.pairs
    return prepared, gather(prepared.denoiser, prepared.settings, pairs, prepared.retain_prompts, tick=lambda n: None)


def denoiser(gathered) -> tuple[ErasureTask, dict[str, nn.Parameter]]:
    prepared, data = gathered
    task = ErasureTask(prepared.denoiser, data, prepared.settings)
    task.teacher = prepared.denoiser.teacher(prepared.parameters)
    for parameter in prepared.parameters.values():
        parameter.requires_grad_(True)
    return task, prepared.parameters


UNSCORED = ("scissorhands-robust", "scissorhands-open", "retain-only", "gradient-ascent", "esd", "substitution")
OPTIONS = Options(draws=3, granularity="channel")
OWN = {"rounds": 1, "path_share": 0.2}


def hold(task, parameters, scorer: str, edit: str, k: float) -> None:
    """Nothing selected changes nothing; nothing else than the selection changes; the same seed gives the same weights."""
    before = {name: t.clone() for name, t in task.module.state_dict().items()}
    scoring, editing = (options_for(one, OPTIONS, OWN) for one in (SCORERS[scorer], EDITS[edit]))
    scores = methods.score(task, parameters, scorer, scoring)
    assert list(scores) == list(parameters) and all(scores[n].shape == p.shape for n, p in parameters.items())
    assert all(s.dtype == torch.float32 and torch.isfinite(s).all() for s in scores.values())
    assert all(torch.equal(task.module.state_dict()[name], t) for name, t in before.items()), "scoring changes nothing"
    again = methods.score(task, parameters, scorer, scoring)
    assert all(torch.equal(scores[name], again[name]) for name in scores)

    methods.edit(task, parameters, Selection({}), edit, editing)
    assert all(torch.equal(task.module.state_dict()[name], t) for name, t in before.items())

    selection = select(scores, k, granularity="channel")
    after = []
    for _ in range(2):
        task.module.load_state_dict(before)
        methods.edit(task, parameters, selection, edit, editing)
        after.append({name: t.clone() for name, t in task.module.state_dict().items()})
    task.module.load_state_dict(before)
    assert all(torch.equal(after[0][name], after[1][name]) for name in before)
    for name, old in before.items():
        chosen = selection.mask(name, old)
        assert torch.equal(after[0][name][~chosen], old[~chosen])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.module.modules())


@pytest.mark.parametrize("edit", EDITS.names())
@pytest.mark.parametrize("scorer", SCORERS.names())
def test_any_scorer_with_any_edit_on_a_classifier(scorer, edit):
    hold(*classifier(), scorer, edit, 0.5)


@pytest.mark.parametrize("scorer", SCORERS.names())
def test_any_scorer_on_a_denoiser(scorer, gathered):
    edits = [edit for edit in EDITS.names() if edit != "newton"]  # which takes seconds: see the next test
    edit = edits[SCORERS.names().index(scorer) % len(edits)]
    hold(*denoiser(gathered), scorer, edit, 0.05)


@pytest.mark.parametrize("edit", EDITS.names())
def test_any_edit_on_a_denoiser(edit, gathered):
    hold(*denoiser(gathered), "random", edit, 0.05)


def test_zero_shot_is_held():
    task, _ = classifier()
    seen = DeclaredDataOnly(task, ("unseen",))
    seen.explain("forget", 0)
    for name in (
        "forget",
        "retain",
        "retain_each",
        "respond",
        "replacement",
        "relearn",
        "repair",
        "retained",
        "forgotten",
    ):
        with pytest.raises(PermissionError, match="not declared"):
            getattr(seen, name)
    for _, scorer in SCORERS:
        assert set(scorer.needs) <= {"forget", "retain", "pairs", "unseen"}
    assert SCORERS["relevance"].needs == ("unseen",)
    assert [name for name, scorer in SCORERS if scorer.zero_shot] == ["relevance"]


@pytest.mark.parametrize("registry", [SCORERS, EDITS])
def test_unknown_methods_are_named(registry):
    with pytest.raises(UserError, match=f"unknown {registry.noun} 'psychic'"):
        registry["psychic"]


def test_only_what_scores_is_selected():
    scores = {"a.weight": torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), "a.bias": torch.tensor([0.0, -1.0])}
    assert select(scores, 0.9).indices["a.weight"].tolist() == [1] and "a.bias" not in select(scores, 0.9).indices
    rows = {"a.weight": torch.tensor([[0.0, 0.0], [3.0, 3.0]]), "a.bias": torch.tensor([0.0, 3.0])}
    chosen = select(rows, 0.9, granularity="channel").indices
    assert chosen["a.weight"].tolist() == [2, 3] and chosen["a.bias"].tolist() == [1]


def test_a_share_of_every_layer():
    torch.manual_seed(0)
    scores = {"a.weight": torch.rand(10, 10), "b.weight": 100 + torch.rand(10, 10)}
    assert set(select(scores, 0.1).indices) == {"b.weight"}
    assert {n: len(rows) for n, rows in select(scores, 0.1, by_layer=True).indices.items()} == {
        "a.weight": 10,
        "b.weight": 10,
    }


def descended(optimiser: str, start: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor], steps: int, lr: float):
    """A tensor after some steps down a loss, and the loss there."""
    tensor = start.clone().requires_grad_()
    made = OPTIMISERS[optimiser]([tensor], lr)
    for _ in range(steps):
        made.zero_grad()
        loss(tensor).backward()
        made.step()
    return tensor.detach(), float(loss(tensor).detach())


def test_soap_is_adam_in_bases_of_the_gradients():
    """On a quadratic whose axes lie askew, Adam's square roots do not help and SOAP's do; a vector is Adam's."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(12, 12, generator=generator))[0] for _ in range(2))
    scales = torch.logspace(0, 1, 12)
    goal = torch.randn(12, 12, generator=generator)

    def askew(weight: torch.Tensor) -> torch.Tensor:
        return ((left.T @ (weight - goal) @ right) * scales[:, None] * scales).square().sum()

    left_over = {name: descended(name, torch.zeros(12, 12), askew, 200, 0.02)[1] for name in ("adam", "soap")}
    assert left_over["soap"] < 0.1 * left_over["adam"]
    vector = torch.tensor([1.0, -2.0])
    moved = descended("soap", vector, lambda x: (x * torch.tensor([1.0, 100.0])).square().sum(), 1, 0.1)[0]
    torch.testing.assert_close(moved, vector - 0.1 * vector.sign())


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "soap"])
def test_an_optimiser_continues_from_its_state_to_the_same_bits(optimiser):
    generator = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(96, 64, generator=generator), torch.randn(26, 96, 64, generator=generator)

    def moved(tensor: torch.Tensor, made: torch.optim.Optimizer, steps: range) -> torch.Tensor:
        for step in steps:
            tensor.grad = slopes[step] + tensor
            made.step()
        return tensor

    whole, half, other = (start.clone() for _ in range(3))
    moved(whole, OPTIMISERS[optimiser]([whole], 0.1), range(26))
    first, second = (OPTIMISERS[optimiser]([tensor], 0.1) for tensor in (half, other))
    moved(half, first, range(15))
    state = state_of({"w": half}, first)
    assert all(one.is_contiguous() for one in state.values())  # as a file restores it: products round by the layout
    restore_into({"w": other}, second, {name: one.clone() for name, one in state.items()}, 15)
    assert torch.equal(moved(other, second, range(15, 26)), whole)


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "soap"])
def test_a_repair_of_the_selection_leaves_the_rest(optimiser):
    task, parameters = classifier()
    before = copy.deepcopy(task.module.state_dict())
    selection = select(methods.score(task, parameters, "gradient", OPTIONS), 0.3)
    how = RepairSettings(6, 1e-2, 0.1, memory_every=3, optimiser=OPTIMISERS[optimiser])
    whole = Repair(task, parameters, how, only=selection)
    states: list[dict[str, torch.Tensor]] = []

    def keep(repair: Repair) -> None:
        if repair.step == 3:
            states.append({name: tensor.clone() for name, tensor in repair.state().items()})

    whole.run(keep)
    after = copy.deepcopy(task.module.state_dict())
    changed = 0
    for name, old in before.items():
        chosen = selection.mask(name, old)
        assert torch.equal(after[name][~chosen], old[~chosen])
        changed += int((after[name] != old).sum())
    assert changed > 0.9 * len(selection)
    half = Repair(task, parameters, how, only=selection)
    half.restore(states[0], 3, [])
    half.run()
    assert all(torch.equal(after[name], tensor) for name, tensor in task.module.state_dict().items())


@pytest.mark.parametrize("repair", ["retain", "anchor", "paired", "ascent", "random-label", "negative-guidance"])
@pytest.mark.parametrize("retain_loss", ["distil", "guided", "weighted", "none"])
def test_what_the_repair_wants_of_a_denoiser(repair, retain_loss, gathered):
    prepared, data = gathered
    settings = dataclasses.replace(prepared.settings, repair=repair, retain_loss=retain_loss)
    task = ErasureTask(prepared.denoiser, data, settings)
    task.teacher = prepared.denoiser.teacher(prepared.parameters)
    forget, retain = task.repair(3)
    same = task.repair(3)
    assert torch.equal(forget, same[0]) and torch.equal(retain, same[1])
    assert float(retain) == 0 if retain_loss == "none" else float(retain) < 1e-12  # both are the same yet
    if repair == "retain":
        assert float(forget) == 0
    elif repair == "ascent":
        assert float(forget) < 0
    else:
        assert float(forget) > 0


def test_negative_guidance_leads_away_from_the_concept(gathered):
    prepared, data = gathered
    task = ErasureTask(prepared.denoiser, data, dataclasses.replace(prepared.settings, repair="negative-guidance"))
    task.teacher = {}
    loss, (forget, _) = task.forget_loss, task.batches.step(0, FULL_BATCH, None)
    empty = data["empty_condition"].expand_as(forget.words)
    without, told = (task.denoiser.predict(forget.noisy, forget.t, words) for words in (empty, forget.own_words))
    [answers] = task._answers([(forget, loss.questions(forget))])
    assert torch.allclose(loss.target(forget, answers), without - (told - without), atol=1e-4)


def test_half_finished_pictures_are_what_sampling_passes_through(gathered):
    denoiser = gathered[0].denoiser
    conditions, noise = denoiser.encode(["a red heart"] * 2), torch.randn(2, 4, 8, 8)
    start, t = denoiser.half_finished(conditions, noise, steps=10, stop=0, guidance=3.0)
    assert torch.equal(start, noise) and int(t[0]) > 850
    later, t = denoiser.half_finished(conditions, noise, steps=10, stop=7, guidance=3.0)
    assert not torch.equal(later, noise) and int(t[0]) < 400


def test_all_steps_of_a_descent_are_the_pipelines_own_sampling(gathered):
    denoiser = gathered[0].denoiser
    conditions, seeds = denoiser.encode(["a red heart", "a blue star"]), [3, 4]
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    ours, _ = denoiser.half_finished(conditions, noise, steps=6, stop=6, guidance=3.0)
    torch.testing.assert_close(ours, denoiser.sample(conditions, seeds, steps=6, guidance=3.0), rtol=1e-4, atol=1e-4)


def test_how_it_stands_on_an_untouched_denoiser(gathered):
    task, _ = denoiser(gathered)
    assert task.retained() == pytest.approx(1.0) and not task.forgotten()
    assert task.share() == len(task.data["forget_latents"]) / len(task.data["retain_latents"])


def test_recipes_of_another_kind_are_refused():
    from sd_scissorhands.errors import UserError
    from sd_scissorhands.settings import ForgetSettings

    with pytest.raises(UserError, match="--recipe esd is not for this kind of model: choose scissorhands"):
        ForgetSettings(recipe="esd").resolved("classifier")
    assert EraseSettings(recipe="esd").resolved("small").repair == "negative-guidance"


@pytest.mark.parametrize("recipe", recipes_for("large"))
def test_every_recipe_runs_on_a_pipeline_of_ones_own(recipe, short, foreign, tmp_path):
    few = {"forget_count": 4, "retain_count": 8, "sampling_steps": 2, "score_draws": 2, "batch_size": 2, "steps": 2}
    asked = EraseSettings(
        concepts=("nudity",), model=str(foreign), recipe=recipe, options={"rounds": 1}, memory_every=1, verify=recipe == DEFAULT_RECIPE,
        **few,
    )  # fmt: skip
    if recipe == "scissorhands":  # whose scope is SD's own
        asked = dataclasses.replace(asked, scope="attn")
    told = erase(asked, tmp_path / "run")
    assert told.steps == 2 and (tmp_path / "run" / "model" / "model_index.json").exists()
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert ("scores" in stages) == (recipe not in UNSCORED)
