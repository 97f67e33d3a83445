"""Attacks that begin with pictures: the known part is held, only what is hidden is drawn, and rates are of what counts."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
import torch

from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.begun import in_turn
from sd_scissorhands.attacks.context import AttackContext
from sd_scissorhands.attacks.inpainting import CONTROL, PARTS, hidden
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.gone import BROKEN
from sd_scissorhands.evaluation.sample import open_for_sampling
from sd_scissorhands.results.evaluation import ConceptEvaluation

pytestmark = pytest.mark.usefixtures("four_at_a_time")


@pytest.fixture(scope="module")
def denoiser():
    return open_for_sampling("tiny", "cpu")[1]


def attacked(name, folder, **changes):
    settings = dict(count=4, sampling_steps=4, device="cpu") | changes
    found = attack(
        AttackSettings(name, "heart", "tiny", "tiny", **settings), folder, evaluation=ConceptEvaluation("canvas")
    )
    return dataclasses.replace(found, seconds=0)


# ---------------------------------------------------------------- a part drawn anew


def test_what_is_known_is_held_and_the_rest_does_not_come_from_what_was_there(denoiser):
    known = denoiser.generate(["a red heart", "a blue ring"], [1, 2], steps=4, guidance=3.0)
    mask = torch.stack([hidden(PARTS[0], 0, (8, 8)), hidden(PARTS[1], 2, (8, 8))])
    ask = dict(strength=1.0, steps=4, guidance=3.0, hidden=mask)
    conditions = denoiser.encode(["", "a ring"])

    drawn = denoiser.complete(known, conditions, [7, 8], **ask)
    there = mask.expand_as(known)
    assert torch.equal(drawn[~there], known[~there])
    assert not torch.isclose(drawn[there], known[there]).all()
    forgotten = torch.where(there, torch.randn(known.shape), known)  # what is hidden must not matter
    torch.testing.assert_close(denoiser.complete(forgotten, conditions, [7, 8], **ask), drawn, rtol=0, atol=0)
    other = torch.where(there, known, known.flip(0))  # and what surrounds it must
    assert not torch.isclose(denoiser.complete(other, conditions, [7, 8], **ask)[there], drawn[there]).all()


def test_the_model_sees_the_known_part_noised_to_each_timestep(denoiser, monkeypatch):
    known, mask = torch.randn(1, *denoiser.latent_shape), hidden(PARTS[1], 0, (8, 8))[None]
    seen, real = [], Denoiser.predict

    def noted(self, noisy, t, condition):
        seen.append((noisy[-1:], t[-1:]))
        return real(self, noisy, t, condition)

    monkeypatch.setattr(Denoiser, "predict", noted)
    denoiser.complete(known, denoiser.encode(["a heart"]), [3], strength=1.0, steps=3, guidance=3.0, hidden=mask)
    noise = torch.randn(denoiser.latent_shape, generator=torch.Generator().manual_seed(3))[None]
    assert len(seen) == 3
    for noisy, t in seen:
        torch.testing.assert_close(
            torch.where(mask, 0, noisy), torch.where(mask, 0, denoiser.noised(known, noise, t)), rtol=0, atol=0
        )
    torch.testing.assert_close(torch.where(mask, seen[0][0], 0), torch.where(mask, noise, 0), rtol=0, atol=0)


def test_parts_that_are_drawn_anew():
    middle, halves = hidden(PARTS[0], 5, (8, 12)), [hidden(PARTS[1], n, (8, 12)) for n in range(4)]
    assert middle.sum() == 4 * 6 and middle[:, 2:6, 3:9].all()
    left, right, upper, lower = halves
    assert left[:, :, :6].all() and upper[:, :4].all()
    assert torch.equal(right, ~left) and torch.equal(lower, ~upper)


# ---------------------------------------------------------------- plans


def test_every_picture_has_every_strength_once():
    plan = in_turn(5, (0.5, 0.9))
    assert sorted(plan) == sorted(product(range(5), (0.5, 0.9))) and [n for n, _ in plan[:5]] == list(range(5))


# ---------------------------------------------------------------- the story


def test_pictures_of_other_things_are_turned_into_the_concept(tmp_path):
    found = attacked("image-to-image", tmp_path, sampling_steps=8, strengths=(0.2, 0.9))
    assert [(kind, rate.n) for kind, rate in found.kinds.items()] == [
        ("strength 0.2", 4), ("strength 0.9", 4), ("pictures of the anchor", 4), ("other pictures", 4),
    ]  # fmt: skip
    assert found.kinds["strength 0.9"].asr > found.kinds["strength 0.2"].asr
    assert all(kind.asr == kind.original_asr for kind in found.kinds.values())
    assert found.asr_after == found.original.asr_after == 1.0
    assert found.n == round(8 * (found.kinds["strength 0.2"].asr + found.kinds["strength 0.9"].asr) / 2) < 8
    assert all("heart" in s.prompt and "from strength 0" in s.attacked_prompt for s in found.samples)
    assert all((tmp_path / file).exists() for s in found.samples for file in (s.before, s.after, s.original))
    assert attacked("image-to-image", tmp_path, sampling_steps=8, strengths=(0.2, 0.9)) == found
    with pytest.raises(UserError, match=r"--strengths 1\.0 is outside \(0, 1\)$"):
        attacked("image-to-image", tmp_path, strengths=(1.0,))


def test_a_killed_inpainting_continues(tmp_path, monkeypatch):
    whole, real, calls = attacked("inpainting", tmp_path / "whole"), Denoiser.complete, []

    def die(self, *arguments, **options):
        calls.append(options["hidden"] is None)
        if len(calls) == 5:  # the original's are done, and its control, of which nothing is hidden
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "complete", die)
        with pytest.raises(KeyboardInterrupt):
            attacked("inpainting", tmp_path / "cut")
    assert attacked("inpainting", tmp_path / "cut") == whole
    assert [(kind, rate.n) for kind, rate in whole.kinds.items()] == [
        (PARTS[0], 4), (PARTS[1], 4), ("empty prompt", 4), ("open prompts", 2), ("own words", 2), (CONTROL, 8),
    ]  # fmt: skip
    assert whole.asr_after == whole.original.asr_after
    assert whole.samples[0].attacked_prompt == "empty prompt, from the middle drawn anew"
    assert "heart" in whole.samples[2].attacked_prompt
    assert calls == [False, False, True, True, False]


@pytest.mark.parametrize("shown", [0.0, 0.25, 1.0])
def test_a_picture_whose_surroundings_show_the_concept_by_themselves_does_not_count(shown, tmp_path, monkeypatch):
    """The concept is seen in every picture, and in a share of those with the anchor's picture in the part."""
    real = AttackContext.hits

    def seen(context, side, what, **how):
        hits = real(context, side, what, **how)
        return [n < shown * len(hits) if what == "control" else True for n in range(len(hits))]

    monkeypatch.setattr(AttackContext, "hits", seen)
    found = attacked("inpainting", tmp_path)
    assert found.kinds[CONTROL].asr == found.kinds[CONTROL].original_asr == shown
    assert found.n == {0.0: 8, 0.25: 6, 1.0: 8}[shown]
    assert found.broken is (shown == 1) and found.verdict == (BROKEN if shown == 1 else "comes back")
    assert (tmp_path / "original-control.jsonl").exists() and not (tmp_path / "model-control.jsonl").exists()
