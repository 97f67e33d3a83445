"""What an earlier measurement made of an original is taken over whole and unchanged, and nothing else is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from sd_scissorhands import AttackSettings, EvaluateSettings, evaluate, measured_before
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.drawn_before import SWITCH
from sd_scissorhands.evaluation import recorder
from sd_scissorhands.machine import Processes
from sd_scissorhands.tiny import MODEL_DIR

FACTS = {"judges": ["canvas"], "seed": 0}
OTHER = {
    "folder",
    "report",
    "seconds",
    "remarks",
    "model",
    "baseline",
    "judging_share",
    "settings",
}  # of a result, beside its figures


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache that is switched on."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv(SWITCH, "on")
    return tmp_path / "hf" / "sd_scissorhands" / "measured"


@pytest.fixture
def measured(tmp_path):
    """Measure in a folder: what was there when it began, and the remarks."""

    def measure(folder: str, facts: dict = FACTS) -> tuple[list[str], list[str]]:
        place, remarks = tmp_path / folder, dict[str, None]()
        about = dict(device=torch.device("cpu"), processes=Processes(), remarks=remarks)
        with measured_before.once(place, facts, "a/model", **about):
            there = sorted(file.name for file in place.rglob("*.*") if file.name != measured_before.BEGUN)
            (place / "samples").mkdir(parents=True, exist_ok=True)
            for name in ("original.jsonl", "model.jsonl", "samples/0-original.png", "samples/0-model.png"):
                (place / name).write_text(f"{name}\na picture\n")
        return there, list(remarks)

    return measure


def test_the_original_is_measured_once_under_the_very_facts(measured, cache, monkeypatch):
    assert measured("first") == ([], [])
    assert measured("second") == (["0-original.png", "original.jsonl"], [measured_before.TAKEN])
    assert measured("other", FACTS | {"seed": 1}) == ([], [])
    monkeypatch.setattr(measured_before, "_code", lambda: "changed")
    assert measured("by other code") == ([], [])
    monkeypatch.setenv(SWITCH, "off")
    assert measured("off") == ([], [])


def test_what_was_damaged_is_measured_again(measured, cache):
    measured("first")
    (place,) = cache.iterdir()
    (place / "original.jsonl").write_text("something else")
    there, (remark,) = measured("second")
    assert there == [] and remark.startswith(f"the cache was not used: {place} does not hold")
    assert measured("third")[0] == ["0-original.png", "original.jsonl"]


def test_a_half_that_was_begun_is_not_mixed_with_another(measured, tmp_path, cache):
    measured("first")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "original.jsonl").write_text("original.jsonl\n")
    assert measured("begun") == (["original.jsonl"], [])


def test_a_repeated_measurement_says_whether_it_was_taken_over(measured, monkeypatch, cache):
    measured("first")
    measured("second")
    assert measured("first")[1] == [] and measured("second")[1] == [measured_before.TAKEN]
    monkeypatch.setenv(SWITCH, "off")
    assert measured("second")[1] == [measured_before.TAKEN]


def test_a_half_that_was_begun_by_other_code_is_not_handed_on(measured, monkeypatch, cache):
    monkeypatch.setattr(measured_before, "_code", lambda: "before")
    measured("first")
    monkeypatch.setattr(measured_before, "_code", lambda: "now")
    measured("first")
    assert len(list(cache.iterdir())) == 1 and measured("second") == ([], [])


def test_prompts_are_part_of_the_code(monkeypatch, tmp_path):
    found = set()
    for text in ("a", "b"):
        (tmp_path / "nudity.toml").write_text(text)
        monkeypatch.setattr(measured_before, "prompts_dir", lambda: tmp_path)
        found.add(measured_before._code.__wrapped__())
    assert len(found) == 2


def test_what_other_packages_declare_is_measured_each_time():
    assert measured_before.declared_here(attack, DOMAINS["photographs"], recorder.Recorder)
    assert not measured_before.declared_here(attack, figures) and not measured_before.declared_here(attack, object())


def test_a_picture_of_a_model_with_the_original_merged_in_is_none_of_the_original(tmp_path):
    names = ("3-model-0.1-of-the-original-merged-in.png", "3-original-after.png", "3-original.png")
    for name in names:
        (tmp_path / "from" / "samples" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / "samples" / name).touch()
    assert measured_before.copy_original(tmp_path / "from", tmp_path / "to") == [
        f"samples/{name}" for name in names[1:]
    ]


def test_what_was_added_to_the_cache_is_not_taken(measured, cache):
    measured("first")
    (place,) = cache.iterdir()
    (place / "original-more.jsonl").touch()
    assert measured("second")[0] == []


def test_a_cache_that_cannot_be_read_is_a_remark(measured, tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "on")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / ("long" * 99)))
    there, (remark,) = measured("first")
    assert there == [] and remark == "the cache was not used: File name too long"


def test_two_processes_may_store_the_same(measured, cache, tmp_path, monkeypatch):
    shown, copy = [], measured_before.copy_original

    def copy_late(source: Path, folder: Path) -> list[str]:
        """Then another process stores it, under the same temporary name."""
        monkeypatch.setattr(measured_before, "copy_original", copy)
        copied = copy(source, folder)
        shown.extend(measured("second")[1])
        return copied

    monkeypatch.setattr(measured_before, "copy_original", copy_late)
    assert measured("first")[1] == shown == []
    assert measured("third")[1] == [measured_before.TAKEN]


def test_what_a_folder_has_is_left_alone(measured, tmp_path, cache):
    measured("first")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "original.jsonl").write_text("own")
    measured_before.copy_original(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "second" / "original.jsonl").read_text() == "own"


def test_it_is_listed_and_cleared(measured, cache):
    measured("first")
    (entry,) = measured_before.entries()
    assert (entry.model, entry.what, entry.pictures) == ("a/model", "measurement", 1) and entry.bytes > 0
    assert measured_before.clear() == (1, entry.bytes) and not measured_before.entries()


def test_of_a_link_in_the_cache_the_link_alone_is_deleted(cache, tmp_path):
    cache.mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (cache / "link").symlink_to(tmp_path / "own")
    assert measured_before.clear() == (1, 0) and not measured_before.entries() and (tmp_path / "own").exists()


def figures(result) -> dict:
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in OTHER}


@pytest.mark.parametrize("what", ["evaluation", "embedding", "relearn"])
def test_a_second_model_draws_nothing_with_the_original(what, cache, tmp_path, monkeypatch):
    drawn: list[str] = []
    record = recorder.Recorder._judged
    monkeypatch.setattr(
        recorder.Recorder, "_judged", lambda own, name, pictures: (drawn.append(name), record(own, name, pictures))[1]
    )

    def measure(folder: str):
        about = dict(
            concept="heart", model=str(shutil.copytree(MODEL_DIR, tmp_path / folder / "copy")), baseline="tiny"
        )
        drawn.clear()
        if what == "evaluation":
            asked = EvaluateSettings(**about, limit=4, steps=2, device="cpu")
            return evaluate(asked, tmp_path / folder / "eval")
        few = {
            "embedding": dict(learn_from=4, restarts=1, batch_size=2, steps=2),
            "relearn": dict(few=2, batch_size=2, steps=3),
        }
        asked = AttackSettings(what, **about, count=4, sampling_steps=2, device="cpu", **few[what])
        return attack(asked, tmp_path / folder / "attack", measure_rest=False)

    first = measure("first")
    assert any(name.startswith("original") for name in drawn)
    second = measure("second")
    assert drawn and not any(name.startswith("original") for name in drawn)
    assert measured_before.TAKEN in second.remarks and figures(second) == figures(first)
