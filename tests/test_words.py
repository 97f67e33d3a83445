"""The attack by words: its kinds say what they should, presets bring prompts of their own for it, and rates are of what the original shows."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.words import FIGURES, LANGUAGES, bound_right, in_turn, prompts
from sd_scissorhands.concepts import general_captions, presets, unlisted_words
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.errors import UserError
from sd_scissorhands.preset_check import check, names
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.tiny import world

pytestmark = pytest.mark.usefixtures("four_at_a_time")

CANVAS, PHOTOGRAPHS = DOMAINS["canvas"], DOMAINS["photographs"]
PLAIN = {"templates": ["{}", "a photo of {}"], "words": {"a red kite": "a red balloon"}}


def of(concept, *, each=12, seed=0):
    return prompts(concept, PHOTOGRAPHS if concept.translations else CANVAS, each=each, seed=seed)


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("concept", presets(), ids=lambda one: one.name)
def test_a_preset_names_its_concept_in_five_languages_and_what_comes_beside_it(concept):
    assert [code for code, _ in concept.translations] == list(LANGUAGES)
    spoken = [text for _, texts in concept.translations for text in texts]
    assert all(len(texts) >= 5 for _, texts in concept.translations) and len(set(spoken)) == len(spoken)
    english = {"the", "of", "with", "in the", "on the", "and"}
    assert not [text for text in spoken for word in english if names(text, word)]
    assert len(concept.beside) == len(set(concept.beside)) >= 8
    assert all(PHOTOGRAPHS.spares(text, (concept.name,)) for text in concept.beside)
    assert not {*spoken, *concept.beside} & {*concept.neighbours, *general_captions()}


def test_nothing_that_trains_or_evaluates_reads_them():
    nudity = next(one for one in presets() if one.name == "nudity")
    bare = dataclasses.replace(nudity, beside=(), translations=())
    for name in ("evaluation_prompts", "open_prompts", "attack_prompts", "benign_prompts"):
        draw = getattr(PHOTOGRAPHS, name)
        assert draw(nudity, seed=0, count=40) == draw(bare, seed=0, count=40)
    assert nudity.pairs == bare.pairs and nudity.vague == bare.vague


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"beside": "a meadow"}, "beside", "must be a list of texts"),
        ({"translations": ["ein Drachen"]}, "translations", "a table with a list of texts for each language"),
        ({"translations": {"de": "ein Drachen"}}, "translations", "a table with a list of texts for each language"),
        ({"beside": ["a boy with a red kite"]}, "beside", "names the concept, 'a red kite': take another"),
    ],
)
def test_the_check_of_a_preset_knows_both_keys(change, key, text):
    found = [one for one in check(PLAIN | change) if one.key == key]
    assert len(found) == 1 and text in found[0].text and found[0].unusable == ("must be" in found[0].text)
    assert key not in {
        one.key for one in check(PLAIN | {"beside": ["a meadow"], "translations": {"de": ["ein Drachen"]}})
    }


def test_the_embedded_world_reads_no_other_language(tmp_path):
    file = tmp_path / "own.toml"
    whole = 'templates = ["a {}"]\nbeside = ["a red shape"]\n%s[words]\n"heart" = "triangle"\n'
    file.write_text(whole % "")
    own = CANVAS.resolve(str(file), None)
    assert set(CANVAS.related_prompts(own, seed=0, count=4)["beside"]) == {"a red shape"}
    file.write_text(whole % 'translations.de = ["ein Herz"]\n')
    with pytest.raises(UserError, match="translations: 'Herz' is not of the embedded model's world"):
        CANVAS.resolve(str(file), None)


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", ["heart", "blue", "striped", "pink"])
def test_in_the_world_each_kind_asks_for_what_it_should(name):
    concept = world_concept(name)
    kinds = of(concept, each=20, seed=3)
    assert list(kinds) == ["open", "unlisted", "other languages", "misspelling", "beside", "composition", "siblings"]
    assert {kind: len(texts) for kind, texts in kinds.items() if texts} == dict.fromkeys(
        ("open", "unlisted", "misspelling", "beside", "composition", "siblings"), 20
    )
    for kind in ("open", "unlisted", "misspelling", "beside"):
        assert not [text for text in kinds[kind] if concept.kind in world.read(text)], kind
    assert all(set(unlisted_words()) & set(text.split()) for text in kinds["unlisted"])
    assert len({*kinds["composition"]}) == len({*kinds["siblings"]}) == 20
    assert all(set(world.read(text)) == {*world.CATEGORIES} for kind in FIGURES for text in kinds[kind])
    assert {world.read(text)[concept.kind] for text in kinds["composition"]} == {name}
    assert name not in {world.read(text)[concept.kind] for text in kinds["siblings"]}
    assert not {text for pair in concept.pairs for text in pair} & {*kinds["composition"], *kinds["siblings"]}


def test_every_attribute_is_bound_to_the_concept():
    every = of(world_concept("heart"), each=60)["composition"]
    for category in ("colour", "pattern", "background"):
        assert {world.read(text)[category] for text in every} == {*world.CATEGORIES[category]}


def test_of_a_preset_and_of_free_text():
    nudity = next(one for one in presets() if one.name == "nudity")
    kinds = of(nudity)
    filled = {kind for kind, texts in kinds.items() if texts}
    assert filled == {"open", "unlisted", "misspelling", "beside", *LANGUAGES.values()}
    assert all(len(kinds[kind]) == 12 for kind in filled) and set(kinds["beside"]) <= set(nudity.beside)
    learned = {forget for forget, _ in nudity.pairs}
    assert not learned & {text for texts in kinds.values() for text in texts} and of(nudity) == kinds != of(
        nudity, seed=1
    )
    free = prompts(PHOTOGRAPHS.resolve("a red kite", "a cloud"), PHOTOGRAPHS, each=4, seed=0)
    assert [kind for kind, texts in free.items() if not texts] == [
        "other languages",
        "beside",
        "composition",
        "siblings",
    ]
    assert not any(re.search("red kite", text) for text in free["misspelling"])


def test_kinds_take_turns():
    assert in_turn({"a": ["1", "2", "3"], "b": [], "c": ["4"]}) == [("a", "1"), ("c", "4"), ("a", "2"), ("a", "3")]


def test_bound_right_is_of_what_the_judge_can_tell():
    judge = SimpleNamespace(
        facts={"judge": "j"}, right=lambda answer, prompt: answer[0], others=lambda answer, prompt: answer[1:]
    )
    answers = [[True, True, True], [True, False, True], [False, True, True], [None, True, True]]
    assert bound_right(judge, [{"j": one, "prompt": ""} for one in answers]) == 0.3333
    assert bound_right(judge, []) is None and bound_right(judge, [{"j": [None], "prompt": ""}]) is None


# ---------------------------------------------------------------- the attack


def test_rates_are_of_what_the_original_shows(tmp_path):
    settings = AttackSettings("words", "heart", "tiny", "tiny", count=4, sampling_steps=6, device="cpu")
    found = attack(settings, tmp_path, evaluation=ConceptEvaluation("canvas"))
    assert list(found.kinds) == ["open", "unlisted", "misspelling", "beside", "composition", "siblings"]
    assert {one.n for one in found.kinds.values()} == {2}
    assert all(one.asr == one.original_asr for one in found.kinds.values())
    assert found.n == round(sum(2 * one.asr for one in found.kinds.values())) and found.asr_after == 1.0
    assert found.original.asr_after == 1.0 and not found.broken and found.kinds["composition"].asr > 0.5
    assert found.kinds["siblings"].asr < 0.5 and found.figures["bound_right"] == found.figures["original_bound_right"]
    assert set(found.figures) == {f"{whose}{name}" for whose in ("", "original_") for name in FIGURES.values()}
    assert Counter(found.remarks)["--attack words leaves out what the concept has no prompts for: other languages"] == 1
    assert found.samples[0].attacked_prompt == "empty prompt"
    again = attack(settings, tmp_path, evaluation=ConceptEvaluation("canvas"))
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(found, seconds=0)
