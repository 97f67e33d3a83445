"""Prompts that leave the concept open: those that an erasure learns from, and those that no training reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sd_scissorhands import concepts
from sd_scissorhands.concepts import general_captions, presets, unlisted_words
from sd_scissorhands.diffusion.dataset import gather
from sd_scissorhands.diffusion.probes import shows
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.preparation import prepare
from sd_scissorhands.tiny import world

CANVAS, PHOTOGRAPHS = DOMAINS["canvas"], DOMAINS["photographs"]


@pytest.fixture(scope="module")
def prepared(short):
    return prepare(dataclasses.replace(short, retain_count=12, open_share=0.5, conditions="name"))


def test_no_training_reads_the_unlisted_words(monkeypatch, short):
    words = set(unlisted_words())
    known = [word for one in presets() for text, twin in one.pairs for word in f"{text} {twin}".split()]
    known += [
        word for one in presets() for text in (*one.neighbours, *one.generic, *one.paraphrases) for word in text.split()
    ]
    assert len(words) >= 40 and not words & {*known, *" ".join(general_captions()).split(), *world.words()}

    def refuse() -> list[str]:
        raise AssertionError("the unlisted words are for evaluations alone")

    monkeypatch.setattr(concepts, "unlisted_words", refuse)
    monkeypatch.setattr("sd_scissorhands.domains.canvas.unlisted_words", refuse)
    assert prepare(dataclasses.replace(short, retain_count=12, open_share=0.5)).open_prompts


@pytest.mark.parametrize(("name", "category"), [("heart", "shape"), ("blue", "colour")])
def test_open_prompts_of_the_world_name_nothing_of_the_category(name, category):
    concept = CANVAS.resolve(name, None)
    texts = CANVAS.open_prompts(concept, seed=3, count=30, erased=("star",))
    assert texts == CANVAS.open_prompts(concept, seed=3, count=30, erased=("star",)) and len(texts) == 30
    assert texts != CANVAS.open_prompts(concept, seed=4, count=30) and 10 <= texts.count("") <= 14
    assert all(category not in world.read(text) and "star" not in text.split() for text in texts)
    assert not {word for text in texts for word in text.split()} & set(unlisted_words())
    assert all(name in CANVAS.naming(text, concept).split() for text in texts)


def test_open_prompts_of_a_preset_spare_it():
    concept = PHOTOGRAPHS.resolve("church", None)
    texts = PHOTOGRAPHS.open_prompts(concept, seed=0, count=30, erased=("Dog",))
    assert len(texts) == 30 and "" in texts and all(PHOTOGRAPHS.spares(text, ("church", "Dog")) for text in texts)
    assert PHOTOGRAPHS.naming("", concept) == concept.words[0]
    assert PHOTOGRAPHS.naming("a photo", concept) == f"a photo, {concept.words[0]}"


def test_a_denoiser_says_which_pictures_show_a_concept(prepared):
    denoiser = prepared.denoiser
    texts = ["a heart"] * 12 + ["a star"] * 12
    latents = denoiser.generate(texts, range(24), steps=8, guidance=3.0, batch_size=24, tick=lambda n: None)
    own, named = (denoiser.encode([text] * 24) for text in ("a shape", "a heart"))
    found = shows(denoiser, latents, own, named, seed=0)
    assert found.dtype == torch.bool and found[:12].sum() >= 10 and found[12:].sum() <= 2
    assert torch.equal(found, shows(denoiser, latents, own, named, seed=0))


def test_pictures_of_open_prompts_that_show_the_concept_are_left_out(prepared):
    """Half of the retain set leaves the shape open; under prompts that name the concept all pictures of it go."""
    assert prepared.retain_prompts[-6:] == prepared.open_prompts and len(prepared.retain_prompts) == 12
    hearts = [*prepared.retain_prompts[:6], *["a heart"] * 6]
    named = [["a heart"] * 6]
    both = [
        gather(prepared.denoiser, prepared.settings, prepared.pairs, hearts, of, tick=lambda n: None)
        for of in ((), named)
    ]
    whole, spared = (data["retain_latents"] for data in both)
    assert len(whole) == 12 and len(spared) == len(both[1]["retain_condition"]) == 6
    assert torch.equal(whole[:6], spared)
