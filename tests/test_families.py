"""Every family behind the one denoiser: its pipeline's own pictures, its noise, its scopes, and an erasure from end to end."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import json
import math
import shutil

import pytest
import small_pipelines
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import BUILDERS, SIDE, build

from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.learn import Target, learn_embedding, learn_tokens, start_embedding
from sd_scissorhands.diffusion import slots as words
from sd_scissorhands.diffusion.conditions import ConceptSlot, Mixture
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.families.flux import Flux
from sd_scissorhands.diffusion.families.sd3 import StableDiffusion3
from sd_scissorhands.diffusion.noise_process import Discrete
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation import concept as room
from sd_scissorhands.evaluation.judge_set import open_judges
from sd_scissorhands.evaluation.sample import Sampling
from sd_scissorhands.models import locate
from sd_scissorhands.models.apply import apply_delta
from sd_scissorhands.models.diff import difference
from sd_scissorhands.models.export import export
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.models.tensor_files import hash_tensors
from sd_scissorhands.models.verify import verify
from sd_scissorhands.preparation import _fitted
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.run import Run

CANVAS = DOMAINS["canvas"]

PROMPTS = ["a red heart on white", "a blue star"]
FLOWS = ("sd3", "flux")
TOKENS = 20  # for T5, in these tests
LENGTHS = StableDiffusion3.t5_length, Flux.t5_length


@pytest.fixture(scope="module", params=BUILDERS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    """A pipeline that passes for one of the embedded world, so that its judge can look at the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name, builder in EPSILON.items():
            patch.setitem(BUILDERS, name, builder)
        return build(family, tmp_path_factory.mktemp(family) / "base", world=True)


@pytest.fixture(scope="module")
def opened(folder):
    return open_pipeline(str(folder))


@pytest.fixture
def denoiser(opened) -> Denoiser:
    return Denoiser(opened.pipeline)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Few tokens for T5, pictures of 32 pixels for FLUX, whose configs do not say how large they are, and two at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flux, "side", SIDE)
        for family in (StableDiffusion3, Flux):
            patch.setattr(family, "t5_length", TOKENS)
        patch.setattr("sd_scissorhands.evaluation.batch_size.LANE", 2)
        yield


def test_lengths_of_t5_are_the_pipelines_own():
    import diffusers

    lengths = {"StableDiffusion3Pipeline": LENGTHS[0], "FluxPipeline": LENGTHS[1]}
    for name, length in lengths.items():
        parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
        assert parameters["max_sequence_length"].default == length


def own(denoiser: Denoiser, prompts: list[str], **changes):
    """What the pipeline itself draws for prompts, as latents (B, c, h, w)."""
    p, size = denoiser.pipeline, denoiser.picture_size
    how = dict(num_inference_steps=3, guidance_scale=4.0, height=size, width=size, output_type="latent") | changes
    if type(p).__name__ in ("StableDiffusion3Pipeline", "FluxPipeline"):
        how["max_sequence_length"] = TOKENS
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    drawn = p(prompt=prompts, generator=generators, **how).images
    return p._unpack_latents(drawn, size, size, p.vae_scale_factor) if drawn.ndim == 3 else drawn


# ---------------------------------------------------------------- the pipeline's own


def test_a_sample_is_what_the_pipeline_draws_for_the_same_words(denoiser):
    ours = denoiser.sample(denoiser.encode(PROMPTS), [0, 1], steps=3, guidance=4.0)
    torch.testing.assert_close(ours, own(denoiser, PROMPTS), rtol=1e-4, atol=1e-4)
    apart = [own(denoiser, PROMPTS[::-1]), own(denoiser, PROMPTS, guidance_scale=2.0)]
    assert all((ours - other).abs().max() > 1e-2 for other in apart)  # words and guidance are seen


def captured(denoiser: Denoiser):
    """What the pipeline gave its denoiser for `PROMPTS` call by call, and what that said."""
    calls = []

    def keep(module, args, kwargs, out):
        calls.append((args, kwargs, out[0]))

    handle = denoiser.module.register_forward_hook(keep, with_kwargs=True)
    try:
        own(denoiser, PROMPTS, guidance_scale=3.5 if denoiser.family.part == "transformer" else 1.0)
    finally:
        handle.remove()
    return calls


def test_a_prediction_is_what_the_pipeline_s_module_said_in_its_place(family, denoiser):
    for args, given, said in captured(denoiser):
        if family in FLOWS:
            noisy, said, t = (
                given["hidden_states"][-2:],
                said[-2:],
                torch.tensor([700, 700]),
            )  # behind the empty prompt's
            denoiser.process.sigmas[700] = given["timestep"][0] / (1 if family == "flux" else 1000)
        else:
            noisy, t = args[0], args[1].expand(2)
        if family == "flux":
            noisy, said = (denoiser.pipeline._unpack_latents(one, 32, 32, 4) for one in (noisy, said))
        ours = denoiser.predict(noisy, t, denoiser.encode(PROMPTS))
        torch.testing.assert_close(ours, said, rtol=1e-4, atol=1e-4)


def test_every_row_of_a_condition_is_seen(denoiser):
    noisy, t = torch.randn(1, *denoiser.latent_shape), torch.tensor([500])
    condition = denoiser.encode(PROMPTS[:1])
    said = denoiser.predict(noisy, t, condition)
    for row in (0, -2, -1):
        other = condition.clone()
        other[:, row, :8] += 1
        assert (denoiser.predict(noisy, t, other) - said).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_pipeline_without_t5_or_without_guidance_as_an_input_draws_its_own(tmp_path, kind):
    """SD 3 may leave out its T5; FLUX schnell takes no guidance and its sigmas are shifted alike for every size."""
    folder = build(kind, tmp_path / "m", without=True)
    d = Denoiser(open_pipeline(str(folder)).pipeline)
    condition = d.encode(PROMPTS)
    torch.testing.assert_close(
        d.sample(condition, [0, 1], steps=2, guidance=4.0), own(d, PROMPTS, num_inference_steps=2)
    )
    said = d.predict(torch.randn(2, *d.latent_shape), torch.tensor([100, 900]), condition)
    assert said.shape == (2, 4, SIDE, SIDE) and said.isfinite().all()


# ---------------------------------------------------------------- words


def word_of(denoiser: Denoiser, text: str) -> list[torch.Tensor]:
    """A word's vectors, (own width, d) a group."""
    return words.looked_up(words.vocabularies(denoiser), words.tokens_of(denoiser, text))


@pytest.mark.parametrize("text", ["heart", "van gogh"])
def test_a_word_s_own_vectors_in_its_place_give_its_prompt(family, denoiser, text):
    own = word_of(denoiser, text)
    assert len(own) == 1 + (family in FLOWS) and (text == "heart" or len({*map(len, own)}) == len(own))
    free = words.slotted(denoiser, ["a red {} on white", "a {}"], width=[*map(len, own)])
    vectors = words.side_by_side(own)
    wanted = denoiser.encode([f"a red {text} on white", f"a {text}"])
    torch.testing.assert_close(words.encode(denoiser, free, vectors), wanted, rtol=1e-5, atol=1e-5)
    vectors = (vectors + 1).requires_grad_()
    (gradient,) = torch.autograd.grad(words.encode(denoiser, free, vectors).square().sum(), [vectors])
    assert gradient.abs().amax(0).min() > 0  # every number of them counts


def test_every_encoder_s_part_of_a_condition_follows_its_own_vectors(family, denoiser):
    """Those of a group move what comes of its encoders, and nothing else."""
    free, own = words.slotted(denoiser, ["a red {} on white"], width=1), word_of(denoiser, "heart")
    before = words.encode(denoiser, free, words.side_by_side([part[:1] for part in own]))
    rows = torch.arange(before.shape[1])
    clips = {"sd3": (rows < 24) | (rows == rows[-1]), "flux": rows == rows[-1]}.get(family, rows >= 0)
    for group, theirs in enumerate([clips, ~clips][: len(own)]):
        vectors = [part[:1] + (at == group) * torch.randn_like(part[:1]) for at, part in enumerate(own)]
        change = (words.encode(denoiser, free, words.side_by_side(vectors)) - before).abs().amax((0, 2))
        assert change[theirs].max() > 1e-3 and not change[~theirs].any()


def test_conditions_of_a_mixture_replace_the_word_in_every_encoder(family, denoiser):
    mixture = Mixture(denoiser, [ConceptSlot("a red {} on white", "van gogh", ())])
    assert all(torch.equal(*pair) for pair in zip(mixture.words[0], word_of(denoiser, "van gogh"), strict=True))
    named, nothing = denoiser.encode(["a red van gogh on white", "a red on white"])
    drawn = mixture.draw(torch.zeros(24, dtype=torch.long), torch.Generator().manual_seed(0))
    free = [
        one
        for one in drawn
        if (one - named).abs().max() > 1e-4 and (one - denoiser.unconditional(1)).abs().max() > 1e-4
    ]
    assert 4 < len(free) < 20 and drawn.isfinite().all()
    parts = {"sd3": (slice(24), slice(24, -1), slice(-1, None)), "flux": (slice(-1), slice(-1, None))}
    for part in parts.get(family, (slice(None),)):
        assert all((one - other)[part].abs().max() > 1e-4 for one in free for other in (named, nothing))


def test_an_attacker_s_vectors_begin_at_the_word_and_are_learned_in_every_encoder(denoiser):
    prompts, own = words.slotted(denoiser, ["a red {} on white", "a {}"], width=2), word_of(denoiser, "van gogh")
    target = Target(denoiser, torch.randn(2, *denoiser.latent_shape), prompts)
    start = start_embedding(target, seed=0, restart=0, word=own)
    assert torch.equal(start.vectors, words.side_by_side([word[:2] for word in own]))
    ended = learn_embedding(target, start, steps=1, lr=0.3, batch_size=2, seed=3)
    moved = words.by_group(denoiser, (ended.vectors - start.vectors).abs())
    for part, known in zip(moved, words.vocabularies(denoiser), strict=True):  # by a share of its own spread
        assert part.min() > 0 and float(part.max() / known.std()) == pytest.approx(0.3, rel=1e-2)


def test_an_attacker_s_tokens_are_of_every_encoder_s_vocabulary(denoiser):
    prompts = words.slotted(denoiser, ["a red {}", "a {}", "a {} on white"], width=3)
    target, rows = Target(denoiser, torch.randn(3, *denoiser.latent_shape), prompts), torch.arange(3)
    ids, losses = learn_tokens(target, rows, steps=2, lr=0.5, seed=1)
    assert ids.shape == (3, 3, len(denoiser.family.groups))
    for own, plain in zip(ids.unbind(-1), words.plain_tokens(denoiser), strict=True):
        assert {*own.flatten().tolist()} <= {*plain}
    assert words.spelled(denoiser, ids[0].tolist()).count(" | ") == ids.shape[2] - 1
    vectors = words.side_by_side(words.looked_up(words.vocabularies(denoiser), ids.unbind(-1)))
    every = words.encode(denoiser, prompts, vectors)
    each = torch.cat([words.encode(denoiser, prompts[row : row + 1], vectors[row]) for row in range(3)])
    torch.testing.assert_close(every, each, rtol=1e-5, atol=1e-5)  # a row reads its own
    assert losses.isfinite().all()


def test_what_guidance_leads_away_from_is_the_pipeline_s(family, denoiser):
    empty = denoiser.unconditional(2)
    assert empty.shape == denoiser.encode(PROMPTS).shape
    assert bool(empty.any()) == (family != "sdxl")  # whose pipeline has zeros there


# ---------------------------------------------------------------- noise


def test_noise_is_the_scheduler_s_in_float64(family, denoiser):
    scheduler, process = denoiser.pipeline.scheduler, denoiser.process
    generator = torch.Generator().manual_seed(0)
    shape = (6, *denoiser.latent_shape)
    clean, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1, 20, 300, 500, 800, 999])
    noisy, wanted = process.noised(clean, noise, t), process.target(clean, noise, t)
    if family in FLOWS:
        sigma = (shifted(family, (t.double() + 1) / 1000)).view(-1, 1, 1, 1)
        kept, spread, expected = 1 - sigma, sigma, noise - clean
        torch.testing.assert_close(process.time(t).double(), 1000 * sigma.view(-1), rtol=1e-5, atol=1e-5)
    else:
        alpha = scheduler.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        kept, spread = alpha.sqrt(), (1 - alpha).sqrt()
        expected = kept * noise - spread * clean if family == "sd2" else noise
        assert torch.equal(process.time(t), t)
    torch.testing.assert_close(noisy, kept * clean + spread * noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wanted, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.clean(noisy, wanted, t), clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(process.leading_to(clean, noisy, t), wanted, rtol=1e-4, atol=1e-4)


def shifted(family, share):
    """The sigmas of SD 3 with shift 3; those of FLUX with exp(mu), mu linear from .5 at 256 patches to 1.15 at 4096."""
    shift = 3.0 if family == "sd3" else math.exp(0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256))
    return shift * share / (1 + (shift - 1) * share)


def test_sigmas_do_not_depend_on_what_was_drawn_before(family, denoiser):
    if family in FLOWS:
        own(denoiser, PROMPTS)
        assert torch.equal(Denoiser(denoiser.pipeline).process.sigmas, denoiser.process.sigmas)


def test_forgetting_weighs_against_keeping_by_the_noise_alone(denoiser):
    """min(1, 1 / SNR) of an error that the retain term would count whole, whatever the module outputs."""
    process, t = denoiser.process, torch.tensor([1, 100, 400, 700, 998, 999])
    signal, spread = (
        process.noised(torch.ones(6, 1, 1, 1), torch.zeros(1), t),
        process.noised(torch.zeros(1), torch.ones(6, 1, 1, 1), t),
    )
    snr = (signal / spread).square().view(-1)
    torch.testing.assert_close(process.pair_weight(t), (1 / snr).clamp_max(1), rtol=1e-4, atol=1e-9)


def test_what_is_retained_weighs_by_the_root_of_an_error_of_the_velocity(denoiser):
    """Halfway between an error of the noise and that of the velocity it amounts to; a velocity's own has weight 1."""
    process, t = denoiser.process, torch.arange(denoiser.timesteps)
    weight = process.retain_weight(t)
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    signal = process.noised(torch.ones(len(t), 1, 1, 1), torch.zeros(1), t).view(-1)
    ratio = torch.ones_like(t).float() if getattr(process, "velocity", True) else 1 / signal
    torch.testing.assert_close(weight / weight[0], ratio / ratio[0], rtol=1e-3, atol=1e-6)


def test_a_wrong_picture_costs_little_more_than_its_own_error(denoiser):
    process, t = denoiser.process, torch.arange(1, 1000, 37)
    clean, noise = torch.randn(2, len(t), *denoiser.latent_shape, dtype=torch.float64)
    wrong, noisy = clean + 0.1 * torch.randn_like(clean), process.noised(clean, noise, t)
    error = process.leading_to(wrong, noisy, t) - process.leading_to(clean, noisy, t)
    cost = process.pair_weight(t) * error.square().mean((1, 2, 3))
    assert (cost <= 4.01 * (wrong - clean).square().mean((1, 2, 3))).all()


def test_a_picture_is_left_half_finished(denoiser):
    noise, conditions = torch.randn(2, *denoiser.latent_shape), denoiser.encode(PROMPTS)
    start, first = denoiser.half_finished(conditions, noise, steps=4, stop=0, guidance=3.0)
    assert torch.equal(start, noise)
    noisy, t = denoiser.half_finished(conditions, noise, steps=4, stop=2, guidance=3.0)
    assert noisy.shape == noise.shape and not torch.equal(noisy, noise) and 0 < int(t[0]) < int(first[0])


def test_a_sampling_may_begin_at_any_of_its_steps(denoiser):
    process, noise = denoiser.process, torch.randn(2, *denoiser.latent_shape)
    times, predict = process.times(5), denoiser._guided(denoiser.encode(PROMPTS), 3.0)
    with torch.no_grad():
        half, t = process.descend(predict, noise, steps=5, stop=3)
        rest, _ = process.descend(predict, half, steps=5, start=3, stop=5)
        whole, _ = process.descend(predict, noise, steps=5, stop=5)
    torch.testing.assert_close(rest, whole, rtol=0, atol=0)
    assert len(times) == 5 and int(t[0]) == int(times[3])


def test_a_completion_begins_at_the_nearest_step_and_goes_by_its_seeds(denoiser, monkeypatch):
    begun, real = [], denoiser.process.descend

    def descend(predict, noisy, **how):
        begun.append((noisy, int(denoiser.process.times(how["steps"])[how["start"]])))
        return real(predict, noisy, **how)

    monkeypatch.setattr(denoiser.process, "descend", descend)
    latents, how = torch.randn(2, *denoiser.latent_shape), dict(steps=20, guidance=3.0)
    conditions = denoiser.encode(PROMPTS)
    ends = [denoiser.complete(latents, conditions, seeds, strength=0.35, **how) for seeds in ([1, 2], [1, 3], [1, 2])]
    assert abs(begun[0][1] - 350) <= 25 and ends[0].shape == latents.shape and torch.equal(ends[0], ends[2])
    assert torch.equal(begun[0][0][0], begun[1][0][0]) and not torch.equal(begun[0][0][1], begun[1][0][1])


# ---------------------------------------------------------------- scopes

INSIDE = {
    "unet": {
        "xattn": ({"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"}, {"attn1", "ff", "conv"}),
        "attn": ({"attn1.to_q", "attn2.to_k"}, {"ff", "conv", "proj_in"}),
    },
    "flow": {
        "xattn": ({"attn.add_k_proj", "attn.add_v_proj"}, {"attn.to_", "attn2", "add_q_proj", "ff", "proj_mlp"}),
        "attn": ({"attn.to_q", "attn.add_k_proj", "attn.to_out.0"}, {"ff", "proj_mlp", "linear", "proj_out"}),
    },
}


@pytest.mark.parametrize("scope", ["xattn", "attn", "full"])
def test_scopes_mean_the_right_modules(family, denoiser, scope):
    found = denoiser.scope(scope)
    assert all(type(module_of(denoiser, name)).__name__ not in ("GroupNorm", "LayerNorm", "RMSNorm") for name in found)
    if scope == "full":
        norms = ("norm", "group_norm")
        rest = {name for name in denoiser.parameters if name not in found}
        assert rest and all(any(norm in name for norm in norms) for name in rest)
        return
    inside, outside = INSIDE["flow" if family in FLOWS else "unet"][scope]
    assert all(any(f".{part}." in name for name in found) for part in inside)
    assert not any(f".{part}" in name for name in found for part in outside)


def module_of(denoiser, name):
    return denoiser.module.get_submodule(name.rpartition(".")[0])


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def settings(short, folder):
    """Two steps of everything that the default recipe has but the attacker."""
    return dataclasses.replace(
        short, model=str(folder), steps=2, memory_every=1, forget_count=2, retain_count=8, batch_size=2, repair="paired",
        conditions="mixture", sampling_steps=1, scope="attn",
    )  # fmt: skip


@pytest.fixture(scope="module")
def erased(settings, tmp_path_factory):
    run = tmp_path_factory.mktemp("erased") / "run"
    return run, erase(settings, run)


def test_plain_diffusers_loads_an_erased_model_with_every_tensor(folder, opened, erased):
    import diffusers

    run, result = erased
    loaded = getattr(diffusers, type(opened.pipeline).__name__).from_pretrained(run / "model")
    part = opened.family.part
    assert hash_tensors(getattr(loaded, part).state_dict().items()) == result.weights_sha256 != opened.weights_sha256
    for name in {*opened.family.texts, "vae"}:
        ours, theirs = getattr(opened.pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    inside = set(Denoiser(opened.pipeline).scope("attn"))
    before, after = opened.denoiser.state_dict(), getattr(loaded, part).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= inside


def test_a_killed_erasure_continues_to_the_same_weights(settings, erased, tmp_path, monkeypatch):
    finish = Run.finish

    def die(self, name, stage, result=None):
        finish(self, name, stage, result)
        if stage.step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "finish", die)
        erase(settings, tmp_path / "run")
    assert erase(settings, tmp_path / "run", resume=True).weights_sha256 == erased[1].weights_sha256


def test_an_erased_model_is_verified_compared_and_exported(family, folder, erased, tmp_path):
    run, result = erased
    assert verify(run).holds
    told = difference(str(folder), str(run))
    assert not told.identical and {row.name.partition(".")[0] for row in told.rows} == {family_part(run)}
    for to, output in (("unet-only", tmp_path / "one.safetensors"), ("diffusers", tmp_path / "all")):
        assert export(run, to, output=output).weights_sha256 == result.weights_sha256
    assert open_pipeline(str(tmp_path / "all")).weights_sha256 == result.weights_sha256
    assert hash_tensors(load_file(tmp_path / "one.safetensors").items()) == result.weights_sha256
    if family in FLOWS:
        with pytest.raises(UserError, match="has a transformer"):
            export(run, "single-file", output=tmp_path / "no.safetensors")


def family_part(run) -> str:
    return open_pipeline(str(run / "model")).family.part


def test_an_erased_model_is_evaluated(folder, erased, tmp_path):
    heart = world_concept("heart")
    told = room.evaluate(
        str(erased[0] / "model"), str(folder), heart, tmp_path, judges=open_judges(heart, domain=CANVAS),
        request=room.ConceptRequest(count=2, steps=1, device="cpu"),
    ).to_json()  # fmt: skip
    assert 0 <= told["figures"]["UA"] <= 1 and told["weights_sha256"] == erased[1].weights_sha256


@pytest.mark.parametrize("name", ["embedding", "token"])
def test_an_erased_model_is_attacked(folder, erased, tmp_path, name):
    own = {"embedding": dict(learn_from=2, steps=2, restarts=1, batch_size=2), "token": dict(steps=2)}[name]
    model = str(erased[0] / "model")
    asked = AttackSettings(name, "heart", model, str(folder), count=2, sampling_steps=1, device="cpu", **own)
    found = attack(
        asked,
        tmp_path,
        evaluation=ConceptEvaluation("canvas", figures=dict(IRA=1.0, CRA=1.0), original=dict(IRA=1.0, CRA=1.0)),
    )
    assert found.n == 2 and 0 <= found.asr_after <= 1 and found.restarts[0].loss > 0


def test_pictures_are_completed(folder, tmp_path):
    own = dict(count=3, sampling_steps=4, device="cpu", strengths=(0.3, 0.7))
    asked = AttackSettings("completion", "heart", str(folder), str(folder), **own)
    found = attack(asked, tmp_path, evaluation=ConceptEvaluation("canvas"))
    assert [kind.n for kind in found.kinds.values()] == [
        3,
        3,
        2,
        2,
        2,
        3,
    ] and found.asr_after == found.original.asr_after
    assert found.n in range(1, 7)


@pytest.mark.parametrize("family", ["sdxl", "flux"], indirect=True, scope="module")
def test_other_recipes_and_little_memory(family, settings, folder, tmp_path):
    few = dataclasses.replace(settings, steps=1, memory_every=1, score_draws=1, repair=None, conditions=None)
    changes = {
        "esd": {"recipe": "esd", "scope": "xattn"},
        "l-codec": {"recipe": "l-codec", "options": {"rounds": 1}, "score_draws": 8},
        "low": {"recipe": "scissorhands", "memory": "low", "mixed_precision": "bf16", "train": "selection"},
        "lra-npp": {"recipe": "lra-npp", "scorer": None},
    }
    made = {"the base"}
    for name, change in changes.items():
        if name == "lra-npp" and family in FLOWS:
            with pytest.raises(UserError, match="--scorer relevance has rules for UNets alone"):
                erase(dataclasses.replace(few, **change), tmp_path / name)
            continue
        made.add(erase(dataclasses.replace(few, **change), tmp_path / name).weights_sha256)
    assert len(made) == 5 - (family in FLOWS)
    told = apply_delta(
        settings.model, tmp_path / "low" / "delta.safetensors", output_dir=tmp_path / "again", device="cpu"
    )
    assert told.weights_sha256 in made


def test_guidance_is_the_family_s_own_where_nobody_says_otherwise(family, folder, short, tmp_path):
    shutil.copytree(folder, tmp_path / "m", ignore=lambda _, names: {"world.json"} & set(names))
    foreign = open_pipeline(str(tmp_path / "m"))
    expected = {"sdxl": 5.0, "sd3": 7.0, "flux": 3.5}.get(family, 7.5)
    assert _fitted(dataclasses.replace(short, guidance=None), foreign, "cpu").guidance == expected
    assert _fitted(dataclasses.replace(short, guidance=2.0), foreign, "cpu").guidance == 2.0
    assert Sampling.of(foreign).guidance == expected and Sampling.of(foreign).size == 32


def test_only_what_is_needed_is_fetched_and_the_index_first(family, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(locate, "fetch", lambda model, revision, wanted: asked.append(wanted) or folder)
    assert locate.locate("somebody/something@main") == PipelineDirectory(folder)

    def comes(name, wanted):
        return any(fnmatch.fnmatch(name, pattern) for pattern in wanted)

    here = [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.name != "judge.safetensors"
    ]
    assert all(comes(name, asked[1]) for name in here)
    assert not any(comes(name, asked[0]) for name in here if name.endswith(".safetensors"))
    part = PipelineDirectory(folder).family.part
    shard = f"{part}/diffusion_pytorch_model-00001-of-00002"
    assert comes(f"{shard}.safetensors", asked[1]) and comes(
        f"{part}/diffusion_pytorch_model.safetensors.index.json", asked[1]
    )
    for other in (f"{shard}.fp16.safetensors", f"{part}/diffusion_pytorch_model.bin", "model.safetensors", "x.ckpt"):
        assert not comes(other, asked[1])


# ---------------------------------------------------------------- Stable Diffusion that predicts noise


def sd2_epsilon():
    """Stable Diffusion 2 base, which differs from 2 by what is predicted alone."""
    pipeline = BUILDERS["sd2"]()
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    return pipeline


def sd1():
    """Stable Diffusion 1: convolutions around the attention, CLIP's own activation and padding."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=small_pipelines.vae(), text_encoder=small_pipelines.clip(16), tokenizer=small_pipelines.tokenizer(), unet=unet,
        scheduler=DDIMScheduler(**small_pipelines.SCALED), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


EPSILON = {"sd1": sd1, "sd2-epsilon": sd2_epsilon}
of_epsilon = pytest.mark.parametrize("family", EPSILON, indirect=True, scope="module")


@of_epsilon
def test_epsilon_is_reloaded(folder, opened, erased):
    test_plain_diffusers_loads_an_erased_model_with_every_tensor(folder, opened, erased)


@of_epsilon
def test_epsilon_is_resumed(settings, erased, tmp_path, monkeypatch):
    test_a_killed_erasure_continues_to_the_same_weights(settings, erased, tmp_path, monkeypatch)


@of_epsilon
def test_epsilon_is_exported(family, folder, erased, tmp_path):
    test_an_erased_model_is_verified_compared_and_exported(family, folder, erased, tmp_path)


@of_epsilon
def test_epsilon_is_evaluated(folder, erased, tmp_path):
    test_an_erased_model_is_evaluated(folder, erased, tmp_path)


@of_epsilon
def test_epsilon_is_attacked(folder, erased, tmp_path):
    test_an_erased_model_is_attacked(folder, erased, tmp_path, "embedding")


# ---------------------------------------------------------------- one file


def in_one_file(folder, run, to, home, monkeypatch):
    """What was erased comes back out of a single file, weight by weight, with the texts' encoders as they were."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(home))
    told = export(run, "single-file", output=to)
    back = open_pipeline(str(to), config=str(folder))
    assert back.weights_sha256 == told.weights_sha256 == open_pipeline(str(run / "model")).weights_sha256
    here = open_pipeline(str(folder)).pipeline
    for part in (*back.family.texts, "vae"):
        ours, theirs = (dict(getattr(pipeline, part).named_parameters()) for pipeline in (here, back.pipeline))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_erased_comes_back_out_of_one_file(family, folder, erased, tmp_path, monkeypatch):
    if family in FLOWS:  # of which none is written, and none is read
        with pytest.raises(
            UserError, match="has a transformer, and a single file is written of models with a UNet alone"
        ):
            export(erased[0], "single-file", output=tmp_path / "one.safetensors")
        key = {"sd3": "joint_blocks.0.x", "flux": "double_blocks.0.x"}[family]
        save_file({f"model.diffusion_model.{key}": torch.zeros(1)}, tmp_path / "theirs.safetensors")
        with pytest.raises(UserError, match="single files are read of Stable Diffusion 1, 2 and SDXL"):
            open_pipeline(str(tmp_path / "theirs.safetensors"))
        return
    in_one_file(folder, erased[0], tmp_path / "one.safetensors", tmp_path / "home", monkeypatch)


@of_epsilon
def test_epsilon_comes_back_out_of_one_file(folder, erased, tmp_path, monkeypatch):
    in_one_file(folder, erased[0], tmp_path / "one.safetensors", tmp_path / "home", monkeypatch)


# ---------------------------------------------------------------- refusals


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "m")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", ["StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline", "WanPipeline"])
def test_other_pipelines_are_refused_with_what_is_supported(copy, kind):
    change(copy / "model_index.json", _class_name=kind)
    with pytest.raises(
        UserError, match=f"is a {kind}: supported is StableDiffusionPipeline, StableDiffusionXLPipeline"
    ):
        open_pipeline(str(copy))


def test_quantised_and_unfused_models_are_refused(opened, copy):
    part = copy / opened.family.part
    file = part / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    save_file({**whole, "block.to_k.lora_A.default.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"holds a LoRA beside the weights: fuse_lora"):
        open_pipeline(str(copy))
    change(part / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UserError, match=f"{opened.family.part} is quantised"):
        open_pipeline(str(copy))


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"in_channels": 9}, "made for inpainting"), ({"in_channels": 8}, "8 input"), ({"time_cond_proj_dim": 256}, "distilled")],
)  # fmt: skip
def test_unets_for_something_else_are_refused(family, opened, copy, values, reason):
    if opened.family.part != "unet":
        pytest.skip("no UNet")
    change(copy / "unet" / "config.json", **values)
    with pytest.raises(UserError, match=reason):
        open_pipeline(str(copy))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"_class_name": "IPNDMScheduler"}, "its noise goes by IPNDMScheduler, not by discrete steps"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "goes by CMStochasticIterativeScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "goes by ScoreSdeVeScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "goes by EDMEulerScheduler"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "set rescale_betas_zero_snr to false"),
        ({"prediction_type": "epsilon", "trained_betas": [0.1, 1.0]}, "zero terminal SNR"),
    ],
)  # fmt: skip
def test_noise_that_no_step_can_go_by_is_refused_at_once(family, opened, copy, values, reason):
    if opened.family.part != "unet":
        pytest.skip("flow matching")
    change(copy / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(UserError, match=reason) as caught:
        PipelineDirectory(copy).check_configs()
    assert "\n" not in str(caught.value) and "--lr" not in str(caught.value)


def test_velocity_from_zero_snr_is_opened(family, opened, copy):
    if opened.family.part != "unet":
        pytest.skip("flow matching")
    file = copy / "scheduler" / "scheduler_config.json"
    change(file, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    PipelineDirectory(copy).check_configs()


def test_latents_are_clipped_only_where_the_scheduler_does():
    from diffusers import EulerDiscreteScheduler

    process = Discrete(EulerDiscreteScheduler(beta_schedule="scaled_linear"), torch.device("cpu"))
    noise = 30 * torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noisy, _ = process.descend(lambda noisy, t: torch.zeros_like(noisy), noise, steps=2, stop=2)
    assert noisy.abs().max() > 30


def test_a_sharded_denoiser_is_opened_and_a_missing_shard_named(opened, copy):
    part = copy / opened.family.part
    (part / "diffusion_pytorch_model.safetensors").unlink()
    opened.denoiser.save_pretrained(part, max_shard_size="20KB")
    shards = sorted(part.glob("*-of-*.safetensors"))
    assert len(shards) > 1 and open_pipeline(str(copy)).weights_sha256 == opened.weights_sha256
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name} is missing"):
        open_pipeline(str(copy))


def test_a_pipeline_without_a_text_encoder_is_refused(opened, copy):
    change(copy / "model_index.json", text_encoder=[None, None])
    with pytest.raises(UserError, match="has no text_encoder"):
        open_pipeline(str(copy))
