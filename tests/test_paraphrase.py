"""The paraphrase attack: prompts that ask for a concept in words that the erasure never saw."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from sd_scissorhands.attacks.paraphrase import KINDS, misspell, paraphrases
from sd_scissorhands.concepts import FREE_TEMPLATES, presets
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.tiny import world

PHOTOGRAPHS = DOMAINS["photographs"]

CONCEPTS = [*presets(), world_concept("heart"), world_concept("striped"), PHOTOGRAPHS.resolve("a red kite", "a cloud")]


@pytest.mark.parametrize("concept", presets(), ids=lambda c: c.name)
def test_a_presets_paraphrases_are_words_that_its_erasure_never_saw(concept):
    trained = " | ".join([*concept.words, *concept.templates]).lower()
    assert 8 <= len(set(concept.paraphrases)) == len(concept.paraphrases) <= 16
    assert not [p for p in concept.paraphrases if p.lower() in trained or p in concept.neighbours]
    assert not [(p, w) for p in concept.paraphrases for w in concept.words if w.lower() in p.lower()]
    assert all(template.count("{}") == 1 for template in concept.templates)
    assert concept.words[0] == concept.pairs[0][0]


def test_templates_filled_with_the_concepts_words_are_its_prompts():
    for concept in CONCEPTS:
        filled = {template.format(word) for template in concept.templates for word in concept.words}
        assert filled == {forget for forget, _ in concept.pairs}
    assert world_concept("disc").words == ("circle",) and world_concept("circle").paraphrases == ("disc", "dot", "ball")
    free = PHOTOGRAPHS.resolve("a red kite", "a cloud")
    assert free.templates == FREE_TEMPLATES and free.paraphrases == ()


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda c: c.name)
def test_paraphrases_are_shared_out_new_and_repeat_with_the_seed(concept):
    made = paraphrases(concept, count=60, seed=3)
    kinds = KINDS if concept.paraphrases else KINDS[1:]
    assert Counter(kind for kind, _ in made) == dict.fromkeys(kinds, 60 // len(kinds))
    assert len({prompt for _, prompt in made}) == 60
    assert not {prompt for _, prompt in made} & {forget for forget, _ in concept.pairs}
    assert made == paraphrases(concept, count=60, seed=3) and made[:20] == paraphrases(concept, count=20, seed=3)
    assert made != paraphrases(concept, count=60, seed=4)


@pytest.mark.parametrize("name", [c for concepts in world.CATEGORIES.values() for c in concepts])
def test_in_the_world_each_kind_says_what_it_should(name):
    concept = world_concept(name)
    sentences = {tuple(sorted(forget.replace(",", " ").split())) for forget, _ in concept.pairs}
    for kind, prompt in paraphrases(concept, count=90, seed=0):
        said = world.read(prompt).get(concept.kind)
        assert said == (None if kind == "misspelling" else name), prompt
        assert (name in prompt.split()) == (kind == "order")
        assert kind != "order" or tuple(sorted(prompt.split())) in sentences
        assert kind != "misspelling" or len(set(prompt.split()) - set(world.words())) == 1, prompt


def test_a_reordered_prompt_keeps_the_concepts_words_together():
    church = next(c for c in presets() if c.name == "church")
    for kind, prompt in paraphrases(church, count=90, seed=1):
        assert kind != "order" or any(word in prompt for word in church.words)


@pytest.mark.parametrize("name", ["heart", "Van Gogh", "a church", "ox", "é", "1812"])
def test_a_misspelling_is_one_slip_away(name):
    made = [misspell(name, np.random.default_rng(seed)) for seed in range(200)]
    for spelled in made:
        assert spelled and spelled != name and abs(len(spelled) - len(name)) <= 1
        same = sum(a == b for a, b in zip(spelled, name, strict=False))
        assert len(spelled) != len(name) or len(name) - same in (1, 2)
        assert spelled.lower() not in world.words()
    assert len(set(made)) > 10 or len(name) < 6


def test_a_concept_of_few_words_is_said_twice_rather_than_never():
    short = PHOTOGRAPHS.resolve("é", "a cloud")
    assert len(paraphrases(short, count=3_000, seed=0)) == 3_000


def test_the_attack_needs_no_diffusers():
    code = "import sys, sd_scissorhands.attacks.paraphrase; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False False"
