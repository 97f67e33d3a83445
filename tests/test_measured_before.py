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
            there = sorted(file.name for file in place.rglob("*.*"))
            (place / "samples").mkdir(parents=True, exist_ok=True)
            for name in ("original.jsonl", "model.jsonl", "samples/0-original.png", "samples/0-model.png"):
                (place / name).write_text(f"{name}\n")
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


def test_what_a_folder_has_is_left_alone(measured, tmp_path, cache):
    measured("first")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "original.jsonl").write_text("own")
    measured_before.copy(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "second" / "original.jsonl").read_text() == "own"


def test_it_is_listed_and_cleared(measured, cache):
    measured("first")
    (entry,) = measured_before.entries()
    assert (entry.model, entry.what, entry.pictures) == ("a/model", "measurement", 1) and entry.bytes > 0
    assert measured_before.clear() == (1, entry.bytes) and not measured_before.entries()


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
