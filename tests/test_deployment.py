"""Attacks that run a model as people do: each setting is what it says, weights end as they were, the strongest decides."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import build

from sd_scissorhands.attacks import deployment, kinds, lora
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.base import Outcome
from sd_scissorhands.attacks.sampler_noise import noises
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.families import FAMILIES
from sd_scissorhands.diffusion.sampler import UNCHANGED, Changes
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.sample import Sampling, open_for_sampling
from sd_scissorhands.methods.distributed import swapped_weights
from sd_scissorhands.models.locate import locate
from sd_scissorhands.results.attack import KindRate
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.run import silent
from sd_scissorhands.tiny import MODEL_DIR

pytestmark = pytest.mark.usefixtures("four_at_a_time")

KINDS = [
    "guidance 1", "guidance 7.5", "guidance 15", "10 steps", "50 steps", "Euler ancestral", "DPM-Solver++ 2M", "LMS",
    "quality as negative prompt", "anchor as negative prompt", "0.1 of the original merged in",
    "0.25 of the original merged in", "0.5 of the original merged in", "int8 weights",
]  # fmt: skip


@pytest.fixture
def opened():
    return open_for_sampling("tiny", "cpu")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The embedded model with other weights: half as large in the cross-attention."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(MODEL_DIR, folder)
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({n: w * (0.5 if ".attn2." in n else 1) for n, w in load_file(file).items()}, file, {"format": "pt"})
    return folder


def attacked(name, model, folder, **settings):
    settings = AttackSettings(name, "heart", str(model), "tiny", count=4, sampling_steps=2, device="cpu", **settings)
    found = attack(settings, folder, evaluation=ConceptEvaluation("canvas"))
    return dataclasses.replace(found, seconds=0)


# ---------------------------------------------------------------- weights


def test_merged_weights_lie_between_and_end_at_the_originals(opened, other):
    d, original = opened[1], locate("tiny").denoiser
    own = {name: tensor.clone() for name, tensor in open_for_sampling(str(other), "cpu")[1].parameters.items()}
    whole, half, none = (deployment.interpolated(own, original, share) for share in (1.0, 0.5, 0.0))
    for name, parameter in d.parameters.items():
        assert torch.equal(whole[name], parameter) and torch.equal(none[name], own[name])
        torch.testing.assert_close(half[name], (parameter + own[name]) / 2)
    assert any(not torch.equal(own[name], parameter) for name, parameter in d.parameters.items())


def test_int8_moves_every_weight_by_half_a_step_at_most(opened):
    weights = opened[1].parameters
    rounded = deployment.rounded(weights)
    assert set(rounded) == {name for name, weight in weights.items() if weight.ndim > 1}
    for name, new in rounded.items():
        old, new = weights[name].detach().flatten(1), new.flatten(1)
        steps = old.abs().amax(1, keepdim=True) / 127
        assert ((new - old).abs() <= steps * 0.5001).all() and not torch.equal(new, old)
        levels = new / steps
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
        assert levels.abs().max() < 127.01
    assert torch.equal(deployment.rounded({"zero": torch.zeros(2, 3)})["zero"], torch.zeros(2, 3))


# ---------------------------------------------------------------- samplings


def test_unchanged_samplings_have_the_json_that_they_had(opened):
    usual = Sampling.of(opened[0])
    assert usual.to_json() == {"steps": 20, "guidance": 3.0, "size": 32, "scheduler": "DDIMScheduler"}
    changed = dataclasses.replace(usual, changes=Changes(eta=0.5, scheduler="DDIM"))
    assert changed.to_json() == usual.to_json() | {"changes": {"scheduler": "DDIM", "eta": 0.5}}


def test_every_change_draws_something_else_and_leaves_the_pipeline_alone(opened):
    d = opened[1]
    conditions, scheduler = d.encode(["a heart", "a red ring"]), d.pipeline.scheduler

    def drawn(**changes):
        return d.sample(conditions, [1, 2], steps=3, guidance=3.0, changes=Changes(**changes))

    usual = drawn()
    torch.testing.assert_close(drawn(scheduler="DDIM"), usual, rtol=0, atol=0)
    others = [dict(scheduler=name) for name in d.family.samplers if name != "DDIM"]
    others += [dict(scheduler="DDIM", eta=1.0), dict(noise_scale=1.1), dict(negative="a ring")]
    made = [drawn(**changes) for changes in others]
    assert all(torch.isfinite(one).all() for one in made)
    assert not any(torch.equal(one, two) for n, one in enumerate(made) for two in [usual, *made[:n]])
    assert all(torch.equal(drawn(**changes), one) for changes, one in zip(others, made, strict=True))
    assert d.pipeline.scheduler is scheduler and torch.equal(drawn(), usual)


def test_start_noise_is_that_of_the_pipeline_times_the_scale(opened, monkeypatch):
    d = opened[1]
    monkeypatch.setattr(Denoiser, "_noise", lambda self, *given, real=Denoiser._noise: real(self, *given) / 2)
    conditions = d.encode(["a heart"])
    usual = d.sample(conditions, [5], steps=2, guidance=3.0)
    assert torch.equal(d.sample(conditions, [5], steps=2, guidance=3.0, changes=Changes(noise_scale=2.0)), usual)


def test_changes_of_a_family_with_flow_matching_and_packed_latents(tmp_path, monkeypatch):
    opened, d = open_for_sampling(str(build("flux", tmp_path / "flux")), "cpu")
    conditions = d.encode(["a heart"])
    usual, fresh = (
        d.sample(conditions, [5], steps=2, guidance=3.0, changes=Changes(scheduler=name))
        for name in ("", *d.family.samplers)
    )
    assert torch.isfinite(fresh).all() and not torch.equal(fresh, usual)
    monkeypatch.setattr(Denoiser, "_noise", lambda self, *given, real=Denoiser._noise: real(self, *given) / 2)
    assert torch.equal(d.sample(conditions, [5], steps=2, guidance=3.0, changes=Changes(noise_scale=2.0)), usual)
    context = SimpleNamespace(concept=SimpleNamespace(anchor="star"))
    found = deployment.samplings(context, SimpleNamespace(sampling=Sampling.of(opened), denoiser=d))
    assert list(found) == [
        "guidance 1",
        "guidance 3",
        "guidance 7.5",
        "guidance 15",
        "10 steps",
        "Euler with fresh noise",
    ]


def test_a_flow_matching_family_has_its_own_kinds():
    flow, unet = (noises(FAMILIES[f"{name}Pipeline"]) for name in ("Flux", "StableDiffusion"))
    assert list(flow)[:1] == ["Euler with fresh noise"] and list(unet)[:2] == ["DDIM, eta 0.5", "DDIM, eta 1"]
    assert list(flow)[1:] == list(unet)[2:]


# ---------------------------------------------------------------- which kind decides


def context_after(**original):
    """A context of eight rows, after an attack on the original whose kinds had these rates."""
    kinds = {kind: KindRate(8, rate) for kind, rate in original.items()}
    outcomes = {"original": Outcome([], [], "", kinds=kinds)} if original else {}
    return SimpleNamespace(rows=[SimpleNamespace(prompt="a heart")] * 8, outcomes=outcomes)


def test_the_strongest_kind_decides_where_the_original_shows_the_concept():
    hits = {"a": [True] * 8, "b": [True] + [False] * 7, "c": [False] * 8}
    assert kinds.strongest(context_after(), None, hits).records == "a"
    assert kinds.strongest(context_after(), None, hits, {"a"}).records == "b"
    found = kinds.strongest(context_after(a=0.4, b=0.5, c=1.0), None, hits)
    assert (found.records, found.hits, found.prompts[0]) == ("b", hits["b"], "a heart, b")
    assert found.kinds["a"] == KindRate(8, 1.0, 0.4) and found.kinds["c"] == KindRate(8, 0.0, 1.0)
    assert kinds.strongest(context_after(a=0.4, b=0.0, c=0.0), None, hits).records == "a"


def test_a_kind_has_a_quarter_of_the_pictures_and_eight_at_least():
    counts = [len(kinds.rows_of_a_kind(SimpleNamespace(rows=[0] * n))) for n in (4, 8, 20, 80)]
    assert counts == [4, 8, 8, 20]


# ---------------------------------------------------------------- the story


def test_every_deployment_is_drawn_with_its_own_setting_and_weights_end_as_they_were(tmp_path, monkeypatch, other):
    """Killed in the model's int8 weights and repeated it is what it is undisturbed."""
    drawn, seen = [], []

    def noted(self, conditions, seeds, **how):
        sums = sum(float(p.detach().double().abs().sum()) for n, p in self.parameters.items() if ".attn2." in n)
        drawn.append((how["steps"], how["guidance"], how["changes"], round(sums, 6)))
        if self not in [d for d, _ in seen]:
            seen.append((self, {name: p.detach().clone() for name, p in self.parameters.items()}))
        if len(drawn) == stop:
            raise KeyboardInterrupt
        return torch.zeros(len(seeds), *self.latent_shape)

    monkeypatch.setattr(Denoiser, "sample", noted)
    stop = 27  # before, 11 kinds of the original; before, 14 of the model
    with pytest.raises(KeyboardInterrupt):
        attacked("deployment", other, tmp_path / "cut")
    original, model = drawn[:12], drawn[12:]
    for denoiser, weights in seen:
        assert all(torch.equal(p, weights[name]) for name, p in denoiser.parameters.items())
    assert [how[:2] for how in model[:6]] == [(2, 3.0), (2, 1.0), (2, 7.5), (2, 15.0), (10, 3.0), (50, 3.0)]
    assert [how[2].scheduler for how in model[6:9]] == ["Euler ancestral", "DPM-Solver++ 2M", "LMS"]
    assert [how[2].negative for how in model[9:11]] == [deployment.QUALITY, "triangle"]
    assert all(how[2] == UNCHANGED for how in [*model[:6], *model[11:]])
    assert len({how[3] for how in model[:11]}) == 1 and len({how[3] for how in model[10:]}) == 5
    assert model[0][3] < model[11][3] < model[12][3] < model[13][3] < original[0][3]
    stop = 0
    again = attacked("deployment", other, tmp_path / "cut")
    assert len(drawn) == 28  # the one that was cut off, and no other
    assert again == attacked("deployment", other, tmp_path / "whole")
    assert list(again.kinds) == KINDS and all(kind.n == 4 for kind in again.kinds.values())


def test_an_attack_on_the_original_itself_treats_both_alike(tmp_path):
    for name in ("sampler-noise", "lora"):
        own = dict(steps=2, learn_from=2, batch_size=2) if name == "lora" else {}
        found = attacked(name, "tiny", tmp_path / name, **own)
        assert found.asr_after == found.original.asr_after and found.n == 4
        assert len(found.kinds) == (5 if name == "sampler-noise" else 0)
        assert all(kind.asr == kind.original_asr for kind in found.kinds.values())
        assert all((tmp_path / name / file).exists() for s in found.samples for file in (s.after, s.original))
        assert attacked(name, "tiny", tmp_path / name, **own) == found
        ledger = (tmp_path / name / "model-before.jsonl").read_text().splitlines()[0]
        assert "changes" not in json.loads(ledger) and "changes" not in ledger


def test_a_baseline_of_another_shape_is_refused(tmp_path, other):
    folder = tmp_path / "narrow"
    shutil.copytree(MODEL_DIR, folder)
    context = SimpleNamespace(settings=SimpleNamespace(baseline=str(folder)))
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    save_file({n: w[:1] if n == "conv_in.bias" else w for n, w in tensors.items()}, file, {"format": "pt"})
    side = SimpleNamespace(denoiser=open_for_sampling(str(other), "cpu")[1])
    with pytest.raises(UserError, match=r"--baseline .*narrow has no conv_in.bias of the model's shape"):
        next(deployment._weights(context, side))


# ---------------------------------------------------------------- LoRA


def test_a_lora_learns_and_adds_what_it_added_in_passing(opened):
    d = opened[1]
    before = {name: parameter.detach().clone() for name, parameter in d.parameters.items()}
    latents, conditions = d.generate(["a heart"] * 4, range(4), steps=2, guidance=3.0), d.encode(["a heart"] * 4)
    noise, t = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)), torch.full((4,), 500)
    factors = lora.started(d, 2, 0)
    assert set(lora._names(factors)) == {n for n, w in d.scope("attn").items() if w.ndim == 2}
    assert all(torch.equal(new, before[name]) for name, new in lora.added(d.parameters, factors).items())

    options = SimpleNamespace(rank=2, steps=8, lr=1e-2, batch_size=4)
    context = SimpleNamespace(options=options, settings=SimpleNamespace(seed=0), progress=silent)
    learned = lora.trained(context, d, latents, conditions)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in d.parameters.items())
    weights = lora.added(d.parameters, learned)
    with torch.no_grad():
        plain = d.loss(latents, conditions, noise, t).mean()
        with lora.added_in_passing(d, learned):
            passing = d.predict(latents, t, conditions)
        with swapped_weights(d.parameters, weights):
            torch.testing.assert_close(d.predict(latents, t, conditions), passing, rtol=1e-3, atol=1e-4)
            assert d.loss(latents, conditions, noise, t).mean() < plain
    assert all(torch.linalg.matrix_rank(weights[n] - before[n], rtol=1e-3) <= 2 for n in list(weights)[:4])
    assert all(torch.equal(p, before[name]) for name, p in d.parameters.items())
