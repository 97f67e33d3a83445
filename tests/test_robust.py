"""The paired target, the conditions it is taken under, the look ahead, channels, and several concepts at once."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from test_unlearn import Regression

from sd_scissorhands import concepts as catalogue
from sd_scissorhands.declaration import choices
from sd_scissorhands.diffusion import conditions
from sd_scissorhands.diffusion import slots as words
from sd_scissorhands.diffusion.conditions import SHARES, WIDTHS, ConceptSlot, Mixture
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.erasure_task import ErasureTask
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.lineage import base_of, erased_from
from sd_scissorhands.methods.adversary import EPISODE, Adversary
from sd_scissorhands.methods.distributed import FULL_BATCH, BatchSlice, swapped_weights
from sd_scissorhands.methods.losses import Answers, Loss, OwnError, Questions
from sd_scissorhands.methods.method import Options, declared_settings
from sd_scissorhands.methods.objectives import OBJECTIVES, Objective, loss_of
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.methods.retain_losses import RETAIN_LOSSES, RetainLoss
from sd_scissorhands.methods.samples import ConceptSamples
from sd_scissorhands.methods.scorers import activation
from sd_scissorhands.methods.selection import count_for, select_channels
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.preparation import prepare
from sd_scissorhands.recipes import COMMON, DEFAULT_RECIPE, RECIPES
from sd_scissorhands.report.commands import repeat_command
from sd_scissorhands.report.reading import read_run
from sd_scissorhands.run import Run
from sd_scissorhands.settings import LEFT_OPEN, EraseSettings
from sd_scissorhands.tiny import world

PHOTOGRAPHS = DOMAINS["photographs"]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(open_pipeline("tiny", device=torch.device("cpu")).pipeline)


@pytest.fixture(params=["noise", "velocity"])
def either(request, denoiser) -> Denoiser:
    """The same denoiser seen as a predictor of noise and of velocity."""
    other = Denoiser(denoiser.pipeline)
    other.process.velocity = request.param == "velocity"
    return other


def some(denoiser: Denoiser, count: int = 6, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 4, 8, 8)
    t = torch.randint(denoiser.timesteps, (count,), generator=generator)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), t


# ---------------------------------------------------------------- the paired target


def test_the_output_that_leads_to_a_picture_is_the_one_it_was_made_with(either):
    clean, noise, t = some(either)
    noisy = either.noised(clean, noise, t)
    assert torch.allclose(either.process.leading_to(clean, noisy, t), either.target(clean, noise, t), atol=2e-4)
    output = torch.randn_like(clean)
    assert torch.allclose(
        either.process.leading_to(either.process.clean(noisy, output, t), noisy, t), output, atol=2e-3
    )


def test_a_pair_weighs_the_same_against_what_is_kept_as_noise_and_as_velocity(either):
    clean, noise, t = some(either)
    alpha = either.process.alphas[t]
    assert torch.allclose(either.process.pair_weight(t), ((1 - alpha) / alpha).clamp_max(1))
    noisy, wrong = either.noised(clean, noise, t), clean + 0.1 * torch.randn_like(clean)
    cost = (
        (either.process.leading_to(wrong, noisy, t) - either.process.leading_to(clean, noisy, t))
        .square()
        .mean((1, 2, 3))
    )
    error = (wrong - clean).square().mean((1, 2, 3))  # its own, where noise is low
    assert (either.process.pair_weight(t) * cost <= 2.01 * error).all()


def task_of(denoiser: Denoiser, short: EraseSettings, **changes) -> ErasureTask:
    settings = dataclasses.replace(short, recipe=DEFAULT_RECIPE, batch_size=5, **changes).resolved("small")
    generator = torch.Generator().manual_seed(3)
    data = {f"{side}_latents": torch.randn(4, 4, 8, 8, generator=generator) for side in ("forget", "anchor", "retain")}
    for name, prompt in (("forget", "a red heart"), ("anchor", "a red triangle"), ("retain", "a blue star")):
        data[f"{name}_condition"] = denoiser.encode([prompt] * 4)
    data["empty_condition"] = denoiser.encode([""])[0]
    place, which = ConceptSlot("a red {}", "heart", ("thing",)), settings.conditions
    mixture = None if which == "name" else Mixture(denoiser, [place] * 4)
    task = ErasureTask(denoiser, data, settings, mixture)
    task.teacher = denoiser.teacher(denoiser.scope("full"))
    return task


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_paired_forget_term_equals_a_plain_reimplementation(either, short, share):
    task = task_of(either, short, conditions="name", anchor_share=share)
    rows, _, t, noise, *_ = task.batches.draw("forget", "repair", 11)
    alpha = either.process.alphas[t].view(-1, 1, 1, 1).double()
    pair, start = task.data["anchor_latents"][rows].double(), task.data["forget_latents"][rows].double()
    start = pair if share else start
    x_t = alpha.sqrt() * start + (1 - alpha).sqrt() * noise
    x_pair = alpha.sqrt() * pair + (1 - alpha).sqrt() * noise
    with torch.no_grad():
        told = either.predict(x_pair.float(), t, task.data["anchor_condition"][rows], task.teacher).double()
        said = either.predict(x_t.float(), t, task.data["forget_condition"][rows]).double()
    if either.process.velocity:  # as noise
        told, said = (alpha.sqrt() * v + (1 - alpha).sqrt() * x for v, x in ((told, x_pair), (said, x_t)))
    x_0 = (x_pair - (1 - alpha).sqrt() * told) / alpha.sqrt()
    wanted = (x_t - alpha.sqrt() * x_0) / (1 - alpha).sqrt()
    weight = torch.clamp((1 - alpha) / alpha, max=1).view(-1)
    if either.process.velocity:  # whose error is larger than that of the noise
        weight = weight / alpha.view(-1)
    expected = (weight * (said - wanted).square().mean((1, 2, 3))).mean()
    assert float(task.repair(11)[0]) == pytest.approx(float(expected), rel=2e-3)


def test_a_pair_of_equals_asks_for_nothing_new(denoiser, short):
    task = task_of(denoiser, short, conditions="name", anchor_share=0.0)
    task.data["forget_latents"], task.data["forget_condition"] = (
        task.data["anchor_latents"],
        task.data["anchor_condition"],
    )
    assert float(task.repair(0)[0].detach()) < 1e-8


@pytest.mark.parametrize("changes", [
    {"repair": "paired"}, {"repair": "anchor"}, {"repair": "random-label"}, {"repair": "ascent"},
    {"repair": "paired", "conditions": "name"},
])  # fmt: skip
def test_parts_average_to_the_batch_and_a_step_in_two_adds_up_to_it(denoiser, short, changes):
    task = task_of(denoiser, short, **{"conditions": "name"} | changes)  # batches of five
    task.teacher = {name: 0.9 * weight for name, weight in (task.teacher or {}).items()}
    with torch.no_grad():
        whole = torch.stack(task.repair(2))
        parts = torch.stack([torch.stack(task.repair(2, BatchSlice(n, 3))) for n in range(3)])
        halves = torch.stack([torch.stack(task.repair(2, adversary=ahead)) for ahead in (True, False)])
        thin = [torch.stack(task.repair(2, BatchSlice(n, 4), ahead)) for n in range(4) for ahead in (True, False)]
        attack = torch.stack([task.relearn(2, BatchSlice(n, 2)) for n in range(2)]).mean()
    torch.testing.assert_close(parts.mean(0), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(halves.sum(0), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.stack(thin).sum(0) / 4, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attack, task.relearn(2).detach(), rtol=1e-4, atol=1e-6)
    assert halves[0, 1] == 0 and whole.abs().min() > 0


def test_at_the_adversarys_weights_half_of_the_forget_term_is_taken_under_the_concepts_name(denoiser, short):
    named, mixed = (task_of(denoiser, short, conditions=which) for which in ("name", "mixture"))
    with torch.no_grad():
        ahead, rest = (torch.stack(mixed.repair(0, adversary=which)) for which in (True, False))
        under_the_name, whole = named.repair(0, adversary=True)[0], torch.stack(mixed.repair(0))
    assert ahead[1] == 0
    torch.testing.assert_close(ahead[0], under_the_name, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rest[1], whole[1], rtol=1e-4, atol=1e-6)
    assert abs(whole[0] / (ahead + rest)[0] - 1) > 0.01  # which the mixture's words are not


@pytest.mark.parametrize(("share", "seen"), [(0.0, (0.85, 0.95)), (0.5, (0.5, 0.65)), (1.0, (0.15, 0.3))])
def test_what_is_kept_is_asked_for_under_its_own_words_but_for_the_share_of_others_and_of_none(
    denoiser, short, share, seen
):
    rows, told = torch.arange(1000) % 4, {}
    for loss in ("distil", "guided", "weighted"):
        task = task_of(denoiser, short, conditions="name", other_words=share, retain_loss=loss)
        task.data["retain_condition"] = torch.arange(1.0, 5).view(4, 1, 1)  # a row's words are its number
        task.data["empty_condition"] = torch.zeros(1, 1)
        told[loss] = task.batches._retain_words(rows, torch.Generator().manual_seed(0)).view(-1)
    empty, own = told["distil"] == 0, told["distil"] == rows + 1
    assert 0.05 < float(empty.double().mean()) < 0.15
    assert seen[0] < float(own.double().mean()) < seen[1]  # of four rows, another is the same at times
    assert torch.equal(told["guided"][~empty], told["distil"][~empty])
    assert (
        torch.equal(told["weighted"], told["guided"]) and (told["guided"] > 0).all()
    )  # half of a batch is shown without words beside them


@pytest.mark.parametrize("loss", ["guided", "weighted"])
def test_what_guidance_makes_of_the_answers_with_and_without_words_is_kept(denoiser, short, loss):
    plain, guided = (task_of(denoiser, short, conditions="name", retain_loss=one) for one in ("distil", loss))
    guided.teacher = plain.teacher = {
        name: 1.1 * weight for name, weight in plain.teacher.items()
    }  # so that they differ
    _, kept = guided.batches.step(3, FULL_BATCH, None)
    first = kept.take(torch.arange(2))  # half of the batch of five
    x_t, empty = denoiser.noised(first.latents, first.noise, first.t), guided.data["empty_condition"].expand(2, -1, -1)
    with torch.no_grad():
        sampled = []
        for weights in (None, guided.teacher):
            told, without = (denoiser.predict(x_t, first.t, words, weights) for words in (first.words, empty))
            sampled.append(without + guided.batches.settings.guidance * (told - without))
        weight = (denoiser.process.retain_weight(kept.t) if loss == "weighted" else torch.ones(5))[:, None, None, None]
        expected = (weight[:2] * ((sampled[0] - sampled[1]) / guided.batches.settings.guidance).square()).mean()
        everything = denoiser.noised(kept.latents, kept.noise, kept.t)
        own = [denoiser.predict(everything, kept.t, kept.words, weights) for weights in (None, guided.teacher)]
        distilled = (weight * (own[0] - own[1]).square()).mean()
        (forget, retain), (same, _) = guided.repair(3), plain.repair(3)
        parts = torch.stack([torch.stack(guided.repair(3, BatchSlice(n, 4))) for n in range(4)])
        halves = [guided.repair(3, adversary=which)[1] for which in (True, False)]
    assert float(expected) > 0.1 * float(distilled) and guided.batches.settings.guidance == 3
    torch.testing.assert_close(retain - distilled, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(forget, same)
    torch.testing.assert_close(parts.mean(0), torch.stack([forget, retain]), rtol=1e-4, atol=1e-6)
    assert halves[0] == 0
    torch.testing.assert_close(halves[1], retain, rtol=1e-4, atol=1e-6)


def test_where_the_student_says_what_the_teacher_says_nothing_of_guidance_is_lost(denoiser, short):
    task = task_of(denoiser, short, conditions="name", retain_loss="guided")
    assert 0 <= float(task.repair(3)[1]) < 1e-10


@pytest.mark.parametrize("name", ["other_words", "anchor_share"])
def test_a_share_beyond_the_whole_is_refused(name):
    with pytest.raises(UserError, match=rf"{name} 1.5 is outside \[0, 1\]"):
        EraseSettings(**{name: 1.5})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sampling_steps": 0}, "sampling_steps 0 is too small"),  # as a file names it: no flag says it
        ({"batch_size": 0}, "--batch-size 0 is too small"),
        ({"retain_sampling_steps": -1}, "retain_sampling_steps -1 is negative"),
    ],
)
def test_pictures_cannot_be_drawn_in_no_steps(values, says):
    with pytest.raises(UserError, match=f"^{says}"):
        EraseSettings(**values)


def test_other_weights_stand_in_for_a_pass_forward_and_back(denoiser):
    parameters = {n: p.requires_grad_(True) for n, p in denoiser.module.named_parameters() if n.startswith("conv_out")}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    doubled = {name: 2 * tensor for name, tensor in before.items()}
    clean, _, t = some(denoiser)
    words = denoiser.encode(["a red heart"] * len(t))
    plain = denoiser.predict(clean, t, words)
    with swapped_weights(parameters, doubled):
        twice = denoiser.predict(clean, t, words)
        twice.square().sum().backward()
    torch.testing.assert_close(twice, 2 * plain)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    bias = parameters["conv_out.bias"].grad
    torch.testing.assert_close(bias, 2 * twice.detach().sum((0, 2, 3)))
    with pytest.raises(ZeroDivisionError), swapped_weights(parameters, doubled):
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    for parameter in parameters.values():
        parameter.requires_grad_(False).grad = None


# ---------------------------------------------------------------- conditions


def test_vectors_of_several_widths_are_encoded_as_each_alone(denoiser):
    prompts = ["a {} on white", "one red {}"]
    vectors = [torch.randn(width, words.vocabularies(denoiser)[0].shape[1]) for width in (1, 3)]
    alone = [words.slotted(denoiser, [p], width=len(v)) for p, v in zip(prompts, vectors, strict=True)]
    both = words.Slotted(torch.cat([s.ids for s in alone]), torch.cat([s.free for s in alone]))
    expected = torch.cat([words.encode(denoiser, s, v) for s, v in zip(alone, vectors, strict=True)])
    assert torch.allclose(words.encode(denoiser, both, vectors), expected, atol=1e-5)


def test_a_mixture_draws_its_kinds_in_their_shares_and_repeats_with_its_generator(denoiser):
    mixture = Mixture(
        denoiser, [ConceptSlot(text, "red", ("bright",)) for text in ("a {} heart", "a {} star on white")]
    )
    rows = torch.arange(2).repeat(300)
    drawn = mixture.draw(rows, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, mixture.draw(rows, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, mixture.draw(rows, torch.Generator().manual_seed(1)))
    own = denoiser.encode(["a red heart", "a red star on white"])[rows]
    less = torch.stack(
        [denoiser.encode([a, b])[rows] for a, b in (("a bright heart", "a bright star on white"), ("", ""))]
    )
    named = (drawn - own).abs().amax((1, 2)) < 1e-6
    generic = ((drawn - less).abs().amax((2, 3)) < 1e-6).any(0)
    assert float(named.float().mean()) == pytest.approx(SHARES["name"], abs=0.06)
    assert float(generic.float().mean()) == pytest.approx(SHARES["generic"], abs=0.06)
    assert drawn.isfinite().all() and sum(SHARES.values()) == pytest.approx(1)


def test_a_mixture_equals_a_plain_reimplementation(denoiser):
    places = [ConceptSlot(text, "red", ("bright",)) for text in ("a {} heart", "a {} star on white")]
    mixture, rows = Mixture(denoiser, places), torch.arange(2).repeat(20)
    assert EraseSettings().resolved("small").conditions == "mixture"
    generator, plain = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    drawn = mixture.draw(rows, generator)
    lots = torch.multinomial(torch.tensor([0.45, 0.25, 0.15, 0.15]), len(rows), True, generator=plain).tolist()
    for at, (row, lot) in enumerate(zip(rows.tolist(), lots, strict=True)):
        text, prompt = places[row].template, places[row].filled("red")
        if lot == 3:
            prompt = [places[row].filled("bright"), ""][int(torch.randint(2, (1,), generator=plain))]
        wanted = denoiser.encode([prompt])
        if lot == 1:  # near: noise, or up to the whole way to another word
            (word,), (known,), share = mixture.words[row], mixture.known, torch.rand(1, generator=plain)
            if torch.rand(1, generator=plain) < 0.5:
                moved = word + 1.5 * share * known.std(0) * torch.randn(word.shape, generator=plain)
            else:
                other = known[torch.randint(len(known), (len(word),), generator=plain)]
                moved = word + share * (other - word)
            wanted = words.encode(denoiser, words.slotted(denoiser, [text], width=len(word)), moved)
        if lot == 2:
            (vectors,) = conditions.arbitrary(mixture.known, plain)
            wanted = words.encode(denoiser, words.slotted(denoiser, [text], width=len(vectors)), vectors)
        assert torch.allclose(drawn[at], wanted[0], atol=1e-5), lot
    assert set(lots) == {0, 1, 2, 3} and torch.equal(generator.get_state(), plain.get_state())


def test_each_row_has_the_generic_words_of_its_own_concept(denoiser):
    mixture = Mixture(
        denoiser, [ConceptSlot("a red {}", "heart", ("shape", "thing")), ConceptSlot("a {} star", "blue", ("",))]
    )
    told = [["a red shape", "a red thing", ""], ["a star", ""]]
    for own, prompts in zip(mixture.generic, told, strict=True):
        assert torch.allclose(torch.stack(own), denoiser.encode(prompts), atol=1e-5)


def test_near_keeps_the_words_place_and_arbitrary_has_every_width(denoiser):
    (known,), generator = words.vocabularies(denoiser), torch.Generator().manual_seed(0)
    word = known[5:7]
    near = torch.stack([conditions.near(word, known, generator) for _ in range(200)])
    assert near.shape[1:] == word.shape
    distance = (near - word).norm(dim=-1).mean(1) / (known - known.mean(0)).norm(dim=-1).mean()
    assert float(distance.min()) < 0.2 and 0.4 < float(distance.mean()) < 1.2
    every = [conditions.arbitrary([known], generator)[0] for _ in range(300)]
    assert {len(v) for v in every} == set(WIDTHS)
    spread = (
        torch.stack([(v - known.mean(0)).norm(dim=1).mean() for v in every])
        / (known - known.mean(0)).norm(dim=1).mean()
    )
    assert float(spread.max()) > 2.5 and float(spread.min()) < 1


# ---------------------------------------------------------------- the look ahead


class Forgetful(Regression):
    """The small network with an attacker."""

    def relearn(self, draw: int, part: BatchSlice = FULL_BATCH) -> torch.Tensor:
        return part.mean(self._errors(0, draw, part), 8)


def test_a_relearner_over_still_weights_is_adam():
    task, copy = Forgetful(dtype=torch.float64), Forgetful(dtype=torch.float64)
    relearner, adam = Adversary(task.parameters, 1e-2), torch.optim.Adam(copy.module.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in task.parameters.items()}
    for draw in range(7):
        weights = relearner.advance(task, draw)
        adam.zero_grad()
        copy.forget(draw).backward()
        adam.step()
    assert all(torch.equal(p, before[name]) for name, p in task.parameters.items())
    assert all(torch.allclose(weights[name], p, rtol=1e-8, atol=1e-12) for name, p in copy.parameters.items())


@pytest.mark.parametrize("protect", [False, True])
def test_half_of_the_forget_gradient_is_that_at_the_relearnt_weights(protect):
    task, there, here = (Forgetful(dtype=torch.float64) for _ in range(3))
    sgd = lambda tensors, lr: torch.optim.SGD(tensors, lr)  # noqa: E731
    how = RepairSettings(3, 1e-2, 0.7, relearn_every=1, optimiser=sgd, protect_retained=protect)
    repair = Repair(task, task.parameters, how)
    ahead = Adversary(task.parameters, 0.1).advance(task, 0)
    with torch.no_grad():
        for name, parameter in there.parameters.items():
            parameter.copy_(ahead[name])
    before = {name: p.detach().clone() for name, p in task.parameters.items()}
    repair._descend(None, Adversary(task.parameters, 0.1))
    (0.7 * there.repair(0, adversary=True)[0]).backward()
    loss = here.repair(0, adversary=False)
    (0.7 * loss[0]).backward(retain_graph=True)
    forget = {name: there.parameters[name].grad + p.grad for name, p in here.parameters.items()}
    retain = dict(zip(forget, torch.autograd.grad(loss[1], list(here.parameters.values())), strict=True))
    inner = sum(float((forget[name] * retain[name]).sum()) for name in forget)
    share = inner / sum(float(g.square().sum()) for g in retain.values()) if protect else 0
    assert inner < 0
    for name, parameter in task.parameters.items():
        wanted = before[name] - 1e-2 * (forget[name] + (1 - share) * retain[name])
        torch.testing.assert_close(parameter.detach(), wanted)


def test_a_repair_that_looks_ahead_resumes_as_uninterrupted_and_starts_its_attacker_again():
    how = RepairSettings(14, 1e-2, 0.1, memory_every=7, relearn_every=1)
    make = lambda task: Repair(task, task.parameters, how)  # noqa: E731
    whole, cut, fresh = Forgetful(), Forgetful(), Forgetful()
    one = make(whole)
    one.run()
    state: dict = {}

    def stop(repair):
        if repair.step == 7:
            state.update({name: tensor.clone() for name, tensor in repair.state().items()})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(cut).run(stop)
    two = make(fresh)
    two.restore(state, 7, one.history[:7])
    two.run()
    assert two.history == one.history and 7 % EPISODE
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), fresh.module.parameters(), strict=True))
    blind = Repair(other := Forgetful(), other.parameters, RepairSettings(14, 1e-2, 0.1, memory_every=7))
    blind.run()
    assert blind.history[2]["forget"] != one.history[2]["forget"]


# ---------------------------------------------------------------- channels


@pytest.mark.parametrize("k", [0.05, 0.3, 0.9])
def test_channels_are_whole_rows_in_the_order_of_their_means(k):
    generator = torch.Generator().manual_seed(int(100 * k))
    shapes = {"a.weight": (6, 5), "a.bias": (6,), "b.weight": (4, 3, 2, 2), "c.weight": (7, 9)}
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    chosen = select_channels(scores, k)
    rows = sorted(
        (
            (float(scores[name][row].mean()), name, row)
            for name in shapes
            if "weight" in name
            for row in range(shapes[name][0])
        ),
        reverse=True,
    )
    left, expected = count_for(k, sum(s.numel() for s in scores.values())), {}
    for _, name, row in rows:
        size = scores[name][row].numel() + (name == "a.weight")
        if size > left:
            break
        left -= size
        expected.setdefault(name, set()).update(
            range(row * scores[name][row].numel(), (row + 1) * scores[name][row].numel())
        )
        if name == "a.weight":
            expected.setdefault("a.bias", set()).add(row)
    assert {name: set(rows.tolist()) for name, rows in chosen.indices.items()} == expected


class Pairs(Regression):
    """The small network with a replacement for what it is to forget."""

    def replacement(self, draw: int) -> torch.Tensor:
        rows = torch.randint(40, (8,), generator=torch.Generator().manual_seed(draw))
        return self.module(self.x[0, rows] + torch.tensor([1.0, 0, 0, 0, 0])).square().mean()


def test_activation_scores_equal_a_plain_reimplementation():
    task = Pairs()
    scores = activation.score(task, task.parameters, Options(draws=3))
    layer = task.module[0]
    apart, usual = torch.zeros(7), torch.zeros(7)
    for draw in range(3):
        rows = torch.randint(40, (8,), generator=torch.Generator().manual_seed(draw))
        apart += (layer(task.x[0, rows]) - layer(task.x[0, rows] + torch.tensor([1.0, 0, 0, 0, 0]))).abs().mean(0)
        usual += layer(task.x[1, rows]).abs().mean(0)
    expected = (apart / usual).detach()
    assert torch.allclose(scores["0.weight"], expected[:, None].expand(7, 5), rtol=1e-5)
    assert torch.allclose(scores["0.bias"], expected, rtol=1e-5)
    assert not any(module._forward_hooks for module in task.module.modules())


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("profile", ["small", "large"])
def test_every_recipe_leaves_nothing_open(name, profile):
    settings = EraseSettings(recipe=name).resolved(profile)
    left = {field for field in LEFT_OPEN if getattr(settings, field) is None}
    assert left == ({"lr"} if settings.relative_lr else set())  # which goes by the weights
    recipe = RECIPES[name]
    assert {f for values in (recipe.values, *recipe.profiles.values()) for f in values} <= LEFT_OPEN | set(
        declared_settings()
    )


def test_what_was_given_wins_over_the_recipe_and_that_over_the_profile():
    settings = EraseSettings(recipe="scissorhands", top_k=0.02).resolved("large")
    assert (settings.top_k, settings.scorer, settings.projection, settings.guidance) == (0.02, "plain", "paper", 7.5)
    with pytest.raises(UserError, match="--recipe 'psychic' is unknown"):
        EraseSettings(recipe="psychic")


def test_the_default_is_what_the_published_figures_were_made_with():
    settings = EraseSettings(concepts=("disc", "red"), model="tiny", device="cpu")
    for asked in (settings, dataclasses.replace(settings, concepts=("Disc",))):
        found = prepare(asked).settings
        assert (found.conditions, found.forget_weight, EPISODE) == ("mixture", 0.15, 5)
        assert (found.retain_loss, found.retain_count, found.retain_sampling_steps) == ("weighted", 480, 6)
        assert (found.recipe, found.open_share, found.optimiser) == (
            "scissorhands-open",
            0.5,
            "soap",
        ) and found.calibrate
        steps = 280 + 140 * (len(asked.concepts) - 1)  # half as many again for every further concept
        assert (found.scope, found.steps, found.lr) == ("full", steps, 4e-4)
        assert (
            found.other_words == 0 and prepare(dataclasses.replace(asked, other_words=0.5)).settings.other_words == 0.5
        )


def test_own_pictures_have_no_pairs(short, tmp_path, foreign):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    asked = dataclasses.replace(short, recipe=DEFAULT_RECIPE, forget_images=str(tmp_path))
    with pytest.raises(UserError, match="--repair anchor"):
        prepare(asked)


# ---------------------------------------------------------------- several concepts


def test_concepts_erased_together_do_not_keep_each_other_alive(short):
    prepared = prepare(dataclasses.replace(short, concepts=("heart", "Blue", "blue", "triangle"), retain_count=64))
    assert [c.name for c in prepared.concepts] == ["heart", "blue", "triangle"]
    assert not {c.anchor for c in prepared.concepts} & {"heart", "blue", "triangle"}
    erased = {"heart", "blue", "triangle"}
    assert len(prepared.pairs) == 3 * short.forget_count
    for forget, twin in prepared.pairs:
        assert erased & set(forget.split()) and not erased & set(twin.split())
    for prompt in prepared.retain_prompts:
        named = world.read(prompt)
        assert {"shape", "colour"} <= set(named) and not erased & set(named.values())


def test_an_anchor_that_is_erased_too_is_refused():
    both = [catalogue.free_text("a red fox", "a cat"), catalogue.free_text("a cat", "a dog")]
    with pytest.raises(UserError, match=r"--concept a red fox: all that takes its place \(a cat\) is erased too"):
        catalogue.without_conflicts(both)


def test_presets_erased_together_keep_their_pairs():
    both = [PHOTOGRAPHS.resolve(name, None) for name in ("nudity", "violence")]
    assert [len(c.pairs) for c in catalogue.without_conflicts(both)] == [len(c.pairs) for c in both]
    assert not PHOTOGRAPHS.spares("A church, at night", ["church"])
    assert PHOTOGRAPHS.spares("searching", ["arch"])


def test_every_pair_has_its_place():
    for concept in [*catalogue.presets(), world_concept("blue"), PHOTOGRAPHS.resolve("x y", "z")]:
        assert {forget for forget, _ in concept.pairs} <= set(concept.places)
        assert "" in concept.vague and not any("{}" in prompt for prompt in concept.vague)


def test_a_run_on_a_runs_result_knows_what_went_before(short, tmp_path):
    first = erase(dataclasses.replace(short, steps=0, edit="none"), tmp_path / "one")
    second = dataclasses.replace(short, concepts=("blue",), model=first.model_dir, steps=0, edit="none")
    result = erase(second, tmp_path / "two")
    assert erased_from(result.model_dir) == ("blue", "heart") and base_of(result.model_dir) == "tiny"
    for prompt in prepare(second).retain_prompts:
        named = world.read(prompt)
        assert "shape" in named and "heart" not in named.values() and "blue" not in named.values()
    assert erased_from("tiny") == () and base_of("tiny") is None


# ---------------------------------------------------------------- from end to end


@pytest.mark.parametrize("projection", ["none", "both"])
def test_a_killed_robust_run_continues_to_the_same_weights(projection, short, tmp_path, monkeypatch):
    asked = dataclasses.replace(short, recipe=DEFAULT_RECIPE, edit="none", relearn_every=1, projection=projection)
    whole = erase(asked, tmp_path / "whole")
    finish = Run.finish

    def die(self, name, stage, result=None):
        finish(self, name, stage, result)
        if stage.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            erase(asked, tmp_path / "cut")
    assert erase(asked, tmp_path / "cut", resume=True).weights_sha256 == whole.weights_sha256
    stages = json.loads((tmp_path / "whole" / "run.json").read_text())["stages"]
    assert tuple(stages) == ("data", "repair", "model")


def test_a_former_versions_run_is_read_without_the_settings_that_are_gone(short, tmp_path):
    asked = dataclasses.replace(short, concepts=("blue",), recipe=DEFAULT_RECIPE, edit="none", steps=1)
    made, file = erase(asked, tmp_path / "run"), tmp_path / "run" / "run.json"
    manifest = json.loads(file.read_text())
    manifest["settings"] |= {"ahead": "name", "episode": 20, "memories": 2, "conditions": "longer"}
    del manifest["settings"]["other_words"]
    file.write_text(json.dumps(manifest))
    lines = repeat_command(read_run(tmp_path / "run"))
    assert not any(word in lines for word in ("ahead", "episode", "memories", "longer")) and "other_words" in lines
    settings = EraseSettings.from_json(Run.read(tmp_path / "run").manifest.settings)
    assert settings.conditions == "mixture" and settings.other_words == COMMON["other_words"]
    asked = dataclasses.replace(asked, other_words=COMMON["other_words"])
    assert erase(asked, tmp_path / "run", resume=True).weights_sha256 == made.weights_sha256


class NegativePreference(Loss[ConceptSamples]):
    """2 / b log(1 + (L / L_0)^b) as descended by NPO (Zhang et al. 2024), of the denoising losses of student and original."""

    def questions(self, x: ConceptSamples) -> Questions:
        return [(x.noisy, x.words)]

    def loss(self, x: ConceptSamples, prediction: torch.Tensor, answers: Answers) -> torch.Tensor:
        return x.mean(2 * torch.nn.functional.softplus(x.own_errors(answers[0]) - x.own_errors(prediction)))


def test_a_forget_loss_and_a_retain_loss_of_ones_own_are_a_few_lines(short, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES._added, "preference", Objective("not this", diffusion=NegativePreference()))
    monkeypatch.setitem(RETAIN_LOSSES._added, "own", RetainLoss("the loss it was trained with", OwnError()))
    assert {"preference", "own"} <= {*choices(EraseSettings)["repair"], *choices(EraseSettings)["retain_loss"]}
    asked = dataclasses.replace(short, repair="preference", retain_loss="own", edit="none", projection="none")
    erase(asked, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "repair" / "history.json").read_text())
    assert history[0]["forget"] == pytest.approx(2 * math.log(2), rel=1e-4)  # student and original are the same yet
    assert history[-1]["forget"] < history[0]["forget"] and all(record["retain"] > 0 for record in history)
    with pytest.raises(UserError, match="--repair preference is for diffusion models: choose ascent"):
        loss_of("preference", "classifier")


@pytest.mark.parametrize("scorer", ["activation", "contrast"])
def test_channels_are_trimmed_whole_under_the_mixture(short, tmp_path, scorer):
    asked = dataclasses.replace(
        short, recipe=DEFAULT_RECIPE, edit="reinitialise", scorer=scorer, granularity="channel", top_k=0.05, steps=0
    )
    result = erase(asked, tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert 0 < chosen["trimmed"] <= 0.05 * result.scope_size
    from safetensors.torch import load_file

    rows = load_file(tmp_path / "run" / "selection.safetensors")
    sizes = {name: p[0].numel() for name, p in prepare(asked).parameters.items()}
    assert all(len(own) % sizes[name] == 0 for name, own in rows.items())


def test_erasing_moves_concept_latents_towards_their_pairs(denoiser, short):
    """Some steps of the repair at work: the forget term falls under words that were never the concept's name."""
    task = task_of(denoiser, short)
    parameters = {n: p for n, p in denoiser.module.named_parameters() if ".attn" in n}
    with swapped_weights(parameters, denoiser.teacher(parameters)):
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        before = sum(float(task.repair(1000 + n)[0].detach()) for n in range(6))
        Repair(task, parameters, RepairSettings(25, 1e-3, 1.0)).run()
        after = sum(float(task.repair(1000 + n)[0].detach()) for n in range(6))
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    assert after < 0.8 * before


@pytest.mark.parametrize("concept", ["nudity", "van-gogh"])
def test_a_preset_is_erased_by_pairs_from_a_pipeline_that_is_not_of_the_embedded_world(
    short, foreign, tmp_path, concept
):
    asked = dataclasses.replace(
        short, recipe=DEFAULT_RECIPE, model=str(foreign), concepts=(concept,), edit="none", relearn_every=1, steps=2
    )
    result = erase(asked, tmp_path / "run")
    assert result.steps == 2 and result.weights_sha256 != prepare(asked).opened.weights_sha256
