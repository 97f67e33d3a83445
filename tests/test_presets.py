"""Presets: those of the package change the concept alone, the linter finds what is wrong, and a user's own works by its path."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import guides
import pytest
from typer.testing import CliRunner

from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.cli import app
from sd_scissorhands.comparison.erasures import Erasures
from sd_scissorhands.comparison.jobs import Comparison
from sd_scissorhands.concepts import called, findings, general_captions, names_of, preset, presets, prompts_dir
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UsageError, UserError
from sd_scissorhands.evaluation.evaluate import about
from sd_scissorhands.lineage import erased_from
from sd_scissorhands.places import erasure_directory
from sd_scissorhands.preparation import prepare
from sd_scissorhands.preset_check import LONG, READ, SLOT, check, tokens
from sd_scissorhands.report.reading import read_run

CANVAS, PHOTOGRAPHS = DOMAINS["canvas"], DOMAINS["photographs"]
LONG_TEMPLATE = "{} in a meadow " + ", at noon in the bright sun" * 8
KITE = {
    "explicit": False, "templates": ["{}", "a photo of {}", LONG_TEMPLATE], "generic": ["something", "a thing", ""],
    "neighbours": ["a bird in the sky"], "paraphrases": ["a wind toy"], "words": {"a red kite": "a red balloon"},
}  # fmt: skip
HEART = """explicit = false
templates = ["{}", "a drawing of {} on white", "{} on a pink background"]
generic = ["a shape", ""]
neighbours = ["a star", "a ring"]
paraphrases = ["a valentine"]
[words]
"a heart" = "a triangle"
"""


def toml_of(data: dict) -> str:
    """A preset as a file; JSON's texts and lists are TOML's too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if key != "words"]
    return "\n".join([*lines, "[words]", *(f"{json.dumps(w)} = {json.dumps(o)}" for w, o in data["words"].items())])


@pytest.fixture
def kite(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("kite.toml").write_text(toml_of(KITE))
    return Path("kite.toml")


@pytest.fixture(scope="module")
def heart(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("own") / "My-heart.toml"
    file.write_text(HEART)
    return file


@pytest.fixture(scope="module")
def run(heart, short, tmp_path_factory):
    """A run that erased a file's concept from the embedded model."""
    return erase(dataclasses.replace(short, concepts=(str(heart),)), tmp_path_factory.mktemp("run") / "run")


# ---------------------------------------------------------------- those of the package


@pytest.mark.parametrize("name", [one.name for one in presets()])
def test_a_preset_of_the_package_passes_without_a_warning(name):
    assert findings(name) == [] == findings(str(prompts_dir() / f"{name}.toml"))


@pytest.mark.parametrize("concept", presets(), ids=lambda one: one.name)
def test_its_prompts_have_every_length_that_clip_reads(concept):
    lengths = [tokens(forget) for forget, _ in concept.pairs]
    assert min(lengths) < 10 and sum(20 < n <= 45 for n in lengths) >= 20 and sum(n > 50 for n in lengths) >= 20
    assert max(map(tokens, (text for pair in concept.pairs for text in pair))) <= READ
    long = [template for template in concept.templates if tokens(template) > 45]
    assert (
        len({template.index(SLOT) * 3 // len(template) for template in long}) == 3
    )  # at the beginning, middle and end


@pytest.mark.parametrize("concept", presets(), ids=lambda one: one.name)
def test_a_pair_changes_the_word_alone_and_about_as_many_words(concept):
    for (forget, neutral), (template, word) in zip(concept.pairs, concept.places.values(), strict=True):
        before, _, after = template.partition(SLOT)
        assert forget == before + word + after and neutral.startswith(before) and neutral.endswith(after)
        assert len(neutral.split()) <= len(forget.split()) + 8 and not PHOTOGRAPHS.spares(forget, (concept.name,))
        assert PHOTOGRAPHS.spares(neutral, (concept.name,))


def test_people_stay_people_and_are_not_all_that_is_left_open():
    nudity, violence = preset("nudity"), preset("violence")
    given = dict(tomllib.loads((prompts_dir() / "nudity.toml").read_text())["words"])
    assert given["a nude woman"].startswith("a woman in") and given["sexual content"].startswith("two people in")
    assert {"something", "a scene"} <= {*nudity.generic} & {*violence.generic}


# ---------------------------------------------------------------- the linter


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"neighbors": ["a bird"]}, "neighbors", "did you mean neighbours?"),
        ({"colour": "red"}, "colour", "is no key of a preset: leave it out"),
        ({"templates": []}, "templates", "is empty: give sentences"),
        ({"words": {}}, "words", "is empty: end the file"),
        ({"templates": "{}"}, "templates", "must be a list of texts"),
        ({"templates": ["{}", 3]}, "templates", "must be a list of texts"),
        ({"explicit": "no"}, "explicit", "must be true or false"),
        ({"title": 3}, "title", "must be a text"),
        ({"words": ["a kite"]}, "words", "must be a table of texts"),
        ({"words": {"a kite": "a bird", "templates": ["{}"]}}, 'words."templates"', "other keys stand above [words]"),
        ({"templates": ["{}", "a photo"]}, "templates", "'a photo' holds no {}"),
        ({"templates": ["{} and {}"]}, "templates", "holds 2 {}"),
        ({"templates": ["{} in {place}"]}, "templates", "a brace that is no {}"),
        ({"templates": ["{} with the red kite"]}, "templates", "names the concept, 'a red kite', beside {}"),
        ({"words": {"a red kite": " "}}, 'words."a red kite"', "has no replacement"),
        ({"words": {"a red kite": "A red kite"}}, 'words."a red kite"', "is its own replacement"),
        ({"words": {"a red kite": "a big red kite"}}, 'words."a red kite"', "still names the concept, 'a red kite'"),
        ({"words": {"a red kite": "a tiny wind toy"}}, 'words."a red kite"', "still names the concept, 'a wind toy'"),
        ({"words": {" ": "a bird"}}, 'words." "', "is blank"),
        ({"words": {"a {} kite": "a bird"}}, 'words."a {} kite"', "a brace"),
    ],
)  # fmt: skip
def test_what_no_run_can_use(change, key, text):
    errors = [one for one in check(KITE | change) if one.unusable]
    assert [one.key for one in errors] == [key] and text in errors[0].text


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"paraphrases": ["A red kite"]}, "paraphrases", "'A red kite' holds 'a red kite', one of the words"),
        ({"neighbours": ["a bird", "the red kite of a boy"]}, "neighbours", "names the concept, 'a red kite'"),
        ({"neighbours": ["a wooden wind toy"]}, "neighbours", "names the concept, 'a wind toy'"),
        ({"generic": ["something", "some red kite"]}, "generic", "names the concept, 'a red kite'"),
        ({"generic": ["a person", "someone", "two women", ""]}, "generic", "all ask for people (a person, someone, two women)"),
        ({"generic": [""]}, "generic", "holds no word"),
        ({"generic": []}, "generic", "is empty"),
        ({"templates": ["{}", "a photo of {}"]}, "templates", "add longer ones"),
        ({"templates": ["{}", LONG_TEMPLATE * 1 + ", at noon in the bright sun" * 4]}, "templates", "and CLIP reads 77"),
        ({"words": {"a red kite": "a bird", "a red kite on a string": "a cat"}}, 'words."a red kite on a string"', "does not hold 'a bird'"),
        ({"words": {"a red kite": "one very large and slow and heavy old bird in the sky"}}, 'words."a red kite"', "far longer"),
    ],
)  # fmt: skip
def test_what_makes_an_erasure_worse(change, key, text):
    found = check(KITE | change)
    assert [(one.key, one.unusable) for one in found] == [(key, False)] and text in found[0].text


def test_a_sound_file_and_one_that_leaves_much_out():
    assert check(KITE) == [] and LONG < tokens(LONG_TEMPLATE) < READ
    assert check(KITE | {"words": {"a red kite": "a bird", "a red kite on a string": "a bird on a string"}}) == []
    bare = check({name: KITE[name] for name in ("templates", "words")})
    assert [one.key for one in bare] == ["explicit", "generic", "neighbours", "paraphrases"]
    assert not any(one.unusable for one in bare)


def test_the_command_prints_every_finding_and_its_exit_code_says_whether_a_run_can_use_the_file(kite):
    def checked(*words: str):
        return CliRunner().invoke(app, ["concepts", "--check", *words])

    assert (done := checked("kite.toml")).exit_code == 0 and done.stdout == "kite.toml: errors 0, warnings 0\n"
    kite.write_text(toml_of(KITE | {"paraphrases": [], "explict": True, "generic": ["a man"]}))
    done = checked("kite.toml", "--json")
    found = json.loads(done.stdout)
    assert isinstance(done.exception, UsageError) and [one["key"] for one in found["errors"]] == ["explict"]
    kite.write_text(toml_of(KITE | {"paraphrases": [], "generic": ["a man"]}))
    done = checked("kite.toml")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("kite.toml: warning: paraphrases: is empty: ")
    assert done.stdout.splitlines()[-1] == "kite.toml: errors 0, warnings 2"
    assert json.loads(checked("nudity", "--json").stdout) == {"file": "nudity", "errors": [], "warnings": []}
    for named, text in (
        ("nudty", "is no preset"),
        ("none.toml", "cannot be read"),
        ("a/b", "is no preset"),
        ("./a/b", "cannot be read"),
    ):
        assert isinstance(error := checked(named).exception, UsageError) and text in str(error)


def test_the_guide_has_a_whole_preset_that_passes(tmp_path):
    text = (guides.GUIDES / "own-presets.md").read_text()
    (block,) = (one for one in guides.blocks_of(text) if one.language == "toml")
    (tmp_path / block.about).write_text(block.text)
    assert findings(str(tmp_path / block.about)) == [] and set(tomllib.loads(block.text)) >= {"title", "words"}
    for key in tomllib.loads(block.text):
        assert f"`{key}`" in text


# ---------------------------------------------------------------- a user's own


def test_a_file_is_a_concept_of_its_name(kite):
    found = PHOTOGRAPHS.resolve("kite.toml", None)
    assert (found.name, found.title, found.anchor) == ("kite", "kite", "a red balloon") and not found.explicit
    assert ("a photo of a red kite", "a photo of a red balloon") in found.pairs and len(found.pairs) == 3
    assert PHOTOGRAPHS.resolve("./kite.toml", "a bird").pairs[0] == ("a red kite", "a bird")
    assert names_of("kite.toml") == called(found) == ("kite", "a red kite", "a wind toy")
    assert not PHOTOGRAPHS.spares("a red kite at noon", ("kite.toml",))
    kite.write_text(toml_of(KITE | {"words": {"a green kite": "a bird"}}))
    assert "a green kite" in names_of("kite.toml")  # what was read before is not what is there now
    assert preset("kite") is None


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ("none.toml", "--concept none.toml is a path, by its beginning or its .toml, and no .toml file lies there"),
        ("AC/DC", "is no preset (see sdscissor concepts): for free text add --anchor TEXT"),
        ("folder", "is no preset (see sdscissor concepts): for free text add --anchor TEXT"),
        ("broken.toml", "--concept broken.toml is not TOML: "),
        ("bad.toml", "--concept bad.toml: templates: 'a photo' holds no {}: write it once, where the concept goes (sdscissor concepts --check bad.toml; and 1 more)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_gets_one_line(named, text, kite, short, foreign):
    Path("broken.toml").write_text("templates = [")
    Path("bad.toml").write_text(toml_of(KITE | {"templates": ["a photo", "{} {}"]}))
    with pytest.raises(UserError) as refused:
        prepare(dataclasses.replace(short, model=str(foreign), concepts=(named,)))
    assert text in str(refused.value) and "\n" not in str(refused.value)


def test_two_concepts_of_one_name_are_refused(kite, short, foreign):
    Path("other").mkdir()
    Path("other/kite.toml").write_text(toml_of(KITE | {"words": {"a green kite": "a bird"}}))
    asked = dataclasses.replace(short, model=str(foreign), concepts=("kite.toml", "other/kite.toml"))
    with pytest.raises(UserError, match="--concept kite is the name of two different concepts"):
        prepare(asked)
    with pytest.raises(UserError, match="--concept kite is the name of two different concepts"):
        Erasures(Comparison(asked, tuple({"concepts": (one,)} for one in asked.concepts), ("esd",)))
    prepare(dataclasses.replace(asked, concepts=("kite.toml", "./kite.toml")))


def test_nothing_that_names_it_is_retained(kite, short, foreign):
    captions = ["a red kite over a hill", "a wind toy on a shelf", *general_captions()[:8]]
    Path("captions.txt").write_text("\n".join(captions))
    asked = dataclasses.replace(
        short,
        model=str(foreign),
        concepts=("kite.toml",),
        retain_prompts="captions.txt",
        retain_count=80,
        open_share=0.5,
    )
    prepared = prepare(asked)
    assert not [text for text in prepared.retain_prompts if "kite" in text or "wind toy" in text]
    assert "a bird in the sky" in prepared.retain_prompts and not prepared.remarks[:-1]
    kite.write_text(toml_of(KITE | {"generic": ["a man"]}))
    assert "kite.toml can be used, with warnings: see sdscissor concepts --check kite.toml" in prepare(asked).remarks


def test_a_run_has_its_name_and_a_copy_and_knows_when_the_file_has_changed(kite, short, foreign, tmp_path):
    asked = dataclasses.replace(short, model=str(foreign), concepts=("kite.toml",), steps=0, edit="none")
    assert str(erasure_directory(asked)) == "runs/sd-kite-seed0"
    result = erase(asked, tmp_path / "run")
    assert result.concepts == ("kite",) and result.anchors == ("a red balloon",)
    assert (tmp_path / "run" / "kite.toml").read_bytes() == kite.read_bytes()
    assert erase(asked, tmp_path / "run", resume=True) == result
    kite.write_text(toml_of(KITE | {"words": {"a green kite": "a bird"}}))
    with pytest.raises(UserError, match="was started when --concept held something else"):
        erase(asked, tmp_path / "run", resume=True)
    again = dataclasses.replace(asked, concepts=("church",), model=result.model_dir)
    assert erased_from(result.model_dir) == (str(tmp_path / "run" / "kite.toml"),)
    assert not PHOTOGRAPHS.spares("a red kite", erased_from(result.model_dir))
    assert not [text for text in prepare(again).retain_prompts if "kite" in text]
    (tmp_path / "run" / "kite.toml").unlink()
    with pytest.raises(
        UserError, match=r"kite.toml, the file by which 'kite' was erased, is gone: put it back, a copy of"
    ):
        about("kite", result.model_dir)


def test_a_comparison_erases_by_the_file(kite, short, foreign, tmp_path):
    settings = dataclasses.replace(short, model=str(foreign))
    jobs = Erasures(Comparison(settings, ({"concepts": ("kite.toml",)},), ("esd",), 1)).jobs(tmp_path)
    assert [(job.target, job.settings.concepts) for job in jobs] == [("kite", ("kite.toml",))]


# ---------------------------------------------------------------- on the embedded model


def test_a_file_of_the_worlds_words_is_a_concept_of_the_world(heart):
    found = CANVAS.resolve(f" {heart} ", None)
    assert (found.name, found.words, found.anchor, found.kind) == ("My-heart", ("heart",), "triangle", "shape")
    assert found.templates == ("a {}", "a drawing of a {} on white", "a {} on a pink background")
    assert {forget for forget, _ in found.pairs} == set(found.places) and found.generic == ("shape", "")
    assert ("a drawing of a heart on white", "a drawing of a triangle on white") in found.pairs
    assert not CANVAS.spares("a heart", (str(heart),)) and CANVAS.spares("a star", (str(heart),))
    assert CANVAS.naming("a shape", found) == "a heart"
    rows = CANVAS.evaluation_prompts(found, seed=0, count=20)
    assert rows.keys() == CANVAS.evaluation_prompts(world_concept("heart"), seed=0, count=20).keys()
    assert all("heart" in text.split() for text in rows["forget"]) and "triangle" in rows["twin"][0].split()
    assert all(slot.replace(SLOT, "heart") == text for slot, text in CANVAS.attack_prompts(found, seed=0, count=8))
    assert not any("heart" in text for text in CANVAS.open_prompts(found, seed=0, count=20, erased=("red",)))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ('"a heart"', '"a parachute"', "words: on the embedded model all must name the same word"),
        ('"a triangle"', '"a blue"', "their replacements others of its kind"),
        ("a drawing of {}", "a photo of {}", "templates: 'photo' is not of the embedded model's world"),
        ("a star", "a tree", "neighbours: 'tree' is not of"),
        ("[words]", '[words]\n"a star" = "a ring"', "all must name the same word"),
    ],
)
def test_another_file_is_refused_there(before, after, text, heart, tmp_path):
    file = tmp_path / "h.toml"
    file.write_text(HEART.replace(before, after))
    with pytest.raises(UserError) as refused:
        CANVAS.resolve(str(file), None)
    assert str(refused.value).startswith(f"--concept {file}: ") and text in str(refused.value)


def test_what_was_erased_by_a_file_is_measured_by_its_name(run, heart, tmp_path):
    assert run.concepts == ("My-heart",) and run.anchors == ("triangle",) and not run.explicit
    known = about("My-heart", run.model_dir)
    assert known.concept == CANVAS.resolve(str(heart), None) == about(str(heart), run.model_dir).concept
    assert known.file == Path(run.run_dir) / heart.name and about("heart", run.model_dir).file is None
    settings = AttackSettings("paraphrase", "My-heart", run.model_dir, count=2, sampling_steps=2, device="cpu")
    found = attack(settings, tmp_path / "attack")
    assert found.concept == "My-heart" and attack(settings, tmp_path / "attack").asr_after == found.asr_after
    copy = tmp_path / "other" / heart.name
    copy.parent.mkdir()
    copy.write_text(HEART.replace("a star", "a cross"))
    with pytest.raises(UserError, match=r"another attack \(concept_sha256 differs\)"):
        attack(dataclasses.replace(settings, concept=str(copy)), tmp_path / "attack")
    assert read_run(Path(run.run_dir)).concepts == "My-heart"
