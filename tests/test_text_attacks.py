"""Published budgets of the learned attacks, and the inversion that needs no words."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from sd_scissorhands.attacks import inversion
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.inversion import CONCEPT, JUNK, OTHER, Inverted, invert, redraw, separated
from sd_scissorhands.attacks.learn import Target, learn_embedding, learn_tokens, start_embedding
from sd_scissorhands.attacks.token_weights import TIMES, learn_weights, on_simplex
from sd_scissorhands.concepts import SLOT
from sd_scissorhands.diffusion.slots import slotted, vocabularies
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.sample import open_for_sampling
from sd_scissorhands.results.attack import KindRate
from sd_scissorhands.results.evaluation import ConceptEvaluation

pytestmark = pytest.mark.usefixtures("four_at_a_time")

QUICK = dict(count=4, sampling_steps=2, device="cpu")
STEPS = 10  # of the sampler that is inverted


@pytest.fixture(scope="module")
def denoiser():
    return open_for_sampling("tiny", "cpu")[1]


@pytest.fixture(scope="module")
def target(denoiser):
    latents = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    return Target(denoiser, latents, slotted(denoiser, [f"{SLOT} a heart"] * 2, width=2))


def settings(name, **changes):
    return AttackSettings(name, "heart", "tiny", "tiny", **QUICK | changes)


def attacked(folder, name, **changes):
    return dataclasses.replace(
        attack(settings(name, **changes), folder, evaluation=ConceptEvaluation("canvas")), seconds=0
    )


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("profile", ["small", "large"])
def test_budgets_are_the_published_numbers_on_every_model(profile):
    pham = settings("embedding", budget="published").resolved(profile).options
    assert (pham["steps"], pham["learn_from"], pham["restarts"], pham["tokens"]) == (5000, 25, 1, 1)
    assert (pham["batch_size"], pham["lr"]) == (16, pytest.approx(5e-3 * 4 * 4))
    zhang = settings("token:budget=unlearndiffatk").resolved(profile).options
    assert (zhang["tokens"], zhang["steps"], zhang["lr"]) == (5, 40 * TIMES, 0.01)
    chin = settings("token", budget="p4d").resolved(profile).options
    assert (chin["tokens"], chin["steps"], chin["lr"]) == (16, 3000, 0.1)


def test_a_flag_comes_before_the_budget():
    mine = settings("embedding", budget="published", steps=7, tokens=3).resolved("small").options
    assert (mine["steps"], mine["tokens"], mine["restarts"], mine["budget"]) == (7, 3, 1, "published")
    assert settings("token", budget="p4d", tokens=2).resolved("large").options["tokens"] == 2


def test_without_a_budget_nothing_is_as_published_and_the_json_is_that_of_former_versions():
    own = settings("token").resolved("small")
    assert own.options == {"steps": 40, "lr": 0.5, "tokens": 3} and "budget" not in own.to_json()
    assert settings("embedding").resolved("small").options["lr"] == 0.3


@pytest.mark.parametrize("name,allowed", [("embedding", "published"), ("token", "unlearndiffatk, p4d")])
def test_a_budget_that_nobody_published(name, allowed):
    with pytest.raises(UserError, match=f"--budget 'large' is unknown: choose {allowed}$"):
        settings(name, budget="large")


def test_a_published_rate_is_in_units_of_the_embedding_and_constant(target):
    """Adam's steps are as large as its rate where every gradient is alike, whatever the vocabulary's spread."""
    start = start_embedding(target, seed=0, restart=1, word=None)
    seen = []
    ask = dict(steps=2, batch_size=2, seed=0, callback=lambda state: seen.append(state.vectors))
    learn_embedding(target, start, lr=0.5, decay=0.01, **ask)
    first, second = (b - a for a, b in zip([start.vectors, *seen], seen, strict=False))
    assert 0.45 < first.abs().median() < 0.55 and 0.05 < second.abs().mean() < 0.55
    seen.clear()
    learn_embedding(target, start, lr=0.5, **ask)
    spread = vocabularies(target.denoiser)[0].std()
    assert (seen[0] - start.vectors).abs().median() == pytest.approx(0.5 * float(spread), rel=0.1)


def test_weights_are_projected_onto_the_simplex():
    torch.testing.assert_close(on_simplex(torch.tensor([[0.5, 0.5, -1.0]])), torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(
        on_simplex(torch.tensor([[0.4, 0.8, 0.3]])), torch.tensor([[0.2333, 0.6333, 0.1333]]), rtol=0, atol=1e-4
    )
    many = on_simplex(torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)))
    assert (many >= 0).all() and torch.allclose(many.sum(-1), torch.ones(4, 3))


def test_weights_go_through_the_timesteps_and_end_at_real_tokens(target, monkeypatch):
    real, times = Target.loss, []

    def noted(self, *arguments, at=None, **options):
        times.append(at)
        return real(self, *arguments, at=at, **options)

    monkeypatch.setattr(Target, "loss", noted)
    rows = torch.arange(2)
    ids, losses = learn_weights(target, rows, steps=5, lr=0.3, seed=1)
    assert [time for time in times if time is not None] == [10, 210, 410, 610, 810]
    tokenizer = target.denoiser.pipeline.tokenizer
    assert ids.shape == (2, 2, 1) and not set(ids.flatten().tolist()) & set(tokenizer.all_special_ids)
    again = learn_weights(target, rows, steps=5, lr=0.3, seed=1)
    assert torch.equal(again[0], ids) and torch.equal(again[1], losses)


def test_p4d_finds_tokens_by_the_angle(target):
    rows = torch.arange(2)
    ours, theirs = (learn_tokens(target, rows, steps=3, lr=0.1, seed=1, decay=decay)[0] for decay in (None, 0.1))
    assert ours.shape == theirs.shape and not torch.equal(ours, theirs)


@pytest.mark.parametrize("budget,shape", [("unlearndiffatk", " {prompt}"), ("p4d", None)])
def test_published_tokens_stand_where_the_authors_put_them(tmp_path, budget, shape):
    found = attacked(tmp_path, "token", budget=budget, steps=2, tokens=2)
    assert found.settings["budget"] == budget and len(found.restarts) == 1
    for sample in found.samples:
        if shape:
            assert sample.attacked_prompt.endswith(shape.format(prompt=sample.prompt))
        else:
            assert sample.prompt not in sample.attacked_prompt


def test_the_norm_of_a_learned_vector_stands_beside_the_vocabularys(tmp_path, denoiser):
    found = attacked(tmp_path, "embedding", budget="published", learn_from=2, batch_size=2, steps=2, restarts=2)
    known = vocabularies(denoiser)[0].norm(dim=1).mean()
    assert found.figures["vocabulary_norm"] == pytest.approx(float(known), abs=1e-4)
    assert found.figures["norm"] == found.figures["original_norm"] in [one.norm for one in found.restarts]
    assert all(one.norm > 0 for one in found.restarts) and found.restarts[0].norm != found.restarts[1].norm
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["figures"] == found.figures and written["restarts"][1]["norm"] == found.restarts[1].norm


# ---------------------------------------------------------------- inversion


@pytest.fixture(scope="module")
def inverted(denoiser):
    """Kind of latents -> what their inversion comes to: the model's own pictures, and noise of their spread."""
    own = denoiser.sample(denoiser.encode([""] * 4), range(4), steps=STEPS, guidance=1.0)
    junk = own.std() * torch.randn(own.shape, generator=torch.Generator().manual_seed(0)) + own.mean()
    found = {}
    for name, latents in (("own", own), ("junk", junk)):
        noise = invert(denoiser, latents, steps=STEPS, iterations=12)
        found[name] = Inverted(latents, noise, redraw(denoiser, noise, steps=STEPS))
    return found


def test_the_models_own_pictures_come_back_out_of_likely_noise(inverted):
    own = inverted["own"]
    assert (own.errors < 0.01).all() and own.off.abs().max() < 3 and own.back == [True] * 4


def test_junk_is_restored_as_well_but_out_of_what_is_no_noise(inverted):
    junk = inverted["junk"]
    assert (junk.errors < 0.05).all(), "exact inversion may restore anything"
    assert junk.off.min() > 3 and junk.back == [False] * 4


def test_one_iteration_is_plain_ddim_inversion(denoiser):
    latents = torch.randn(1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(3))
    process, empty = denoiser.process, denoiser.encode([""])
    time = process.times(1)
    alpha, end = process.alphas[time], process._sampler(1).final_alpha_cumprod
    noise = denoiser.predict(latents, time, empty)
    by_hand = (latents - (1 - end).sqrt() * noise) * (alpha / end).sqrt() + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(invert(denoiser, latents, steps=1, iterations=1), by_hand, rtol=1e-3, atol=1e-3)


INVERSION = dict(count=4, sampling_steps=STEPS, iterations=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return attacked(tmp_path_factory.mktemp("whole"), "inversion", **INVERSION)


def test_the_original_restores_its_concept_and_junk_does_not_count(whole):
    assert list(whole.kinds) == [CONCEPT, OTHER, JUNK] and whole.n == 4
    assert all(kind.asr == kind.original_asr and kind.n == 4 for kind in whole.kinds.values())
    assert whole.kinds[JUNK].asr == 0 and whole.kinds[CONCEPT].asr >= 0.75
    assert whole.asr_after == whole.original.asr_after <= whole.kinds[CONCEPT].asr
    assert whole.second and whole.second.asr_after <= whole.kinds[CONCEPT].asr
    assert whole.figures["noise_off_shuffled"] > 3 > abs(whole.figures["noise_off"])
    assert whole.figures["error_shuffled"] == whole.figures["original_error_shuffled"] < 0.05
    assert whole.samples[0].attacked_prompt.startswith("no words; noise off by ")


def test_a_killed_inversion_continues(tmp_path, monkeypatch, whole):
    real, calls = inversion.redraw, []

    def die(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # the original's three kinds, one of the model's
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(inversion, "redraw", die)
        with pytest.raises(KeyboardInterrupt):
            attacked(tmp_path, "inversion", **INVERSION)
    assert (tmp_path / "model-inverted-0.safetensors").exists()
    assert attacked(tmp_path, "inversion", **INVERSION) == whole


def rates(concept, junk, n=20):
    return {CONCEPT: KindRate(n, concept / n), OTHER: KindRate(n, 1.0), JUNK: KindRate(n, junk / n)}


def test_what_junk_does_as_well_is_no_evidence():
    assert separated(rates(20, 0)) and not separated(rates(20, 20)) and not separated(rates(5, 3))
    assert inversion._verdict(rates(20, 0), rates(20, 0)) is None
    assert inversion._verdict(rates(0, 0), rates(20, 0)) is None  # nothing comes back: the rate says it
    assert "no evidence: junk" in inversion._verdict(rates(20, 19), rates(20, 0))
    assert "on the original" in inversion._verdict(rates(20, 0), rates(20, 19))


def test_inversion_is_beside_the_verdict_and_a_setting_too_small_is_named():
    assert not inversion.ATTACKS["inversion"].graded
    with pytest.raises(UserError, match="--iterations 0 is too small"):
        settings("inversion", iterations=0)


# ---------------------------------------------------------------- relearning


def test_benign_fine_tuning_has_its_rate_and_interval(tmp_path):
    found = attacked(tmp_path, "relearn", few=2, batch_size=2, steps=2)
    assert found.figures["benign_asr"] == found.curve[-1].benign
    assert found.figures["benign_low"] <= found.figures["benign_asr"] <= found.figures["benign_high"]
