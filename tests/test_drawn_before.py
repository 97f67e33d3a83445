"""What a model drew before is taken from the cache, whole and unchanged, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sd_scissorhands import drawn_before
from sd_scissorhands.cli import app
from sd_scissorhands.disk import read_tensors
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError

FACTS = {"prompts": ["a red heart"], "seeds": [1], "steps": 2, "model": {"weights_sha256": "0" * 64}}
LATENTS = torch.arange(8.0).view(2, 1, 2, 2)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache that is switched on."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv(drawn_before.SWITCH, "on")
    return tmp_path / "hf" / "sd_scissorhands" / "drawn"


def stages(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())["stages"]


def test_latents_are_read_under_the_very_facts_alone(cache):
    assert drawn_before.read(FACTS, LATENTS.shape) is None
    drawn_before.write(FACTS, LATENTS, "tiny")
    assert torch.equal(drawn_before.read(FACTS, LATENTS.shape), LATENTS)
    for name, other in {"prompts": ["a blue heart"], "seeds": [2], "steps": 3, "model": {}}.items():
        assert drawn_before.read(FACTS | {name: other}, LATENTS.shape) is None


@pytest.mark.parametrize("damage", ["shape", "value", "facts", "bytes"])
def test_what_a_file_of_the_cache_holds_is_not_trusted(cache, damage):
    drawn_before.write(FACTS, LATENTS, "tiny")
    (file,) = cache.iterdir()
    metadata = read_tensors(file)[1]
    if damage == "bytes":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage != "shape":
        changed = {"latents": LATENTS + (damage == "value")}
        save_file(changed, file, metadata | ({"facts": "{}"} if damage == "facts" else {}))
    with pytest.raises(UserError, match="delete it and run again"):
        drawn_before.read(FACTS, (3, 1, 2, 2) if damage == "shape" else LATENTS.shape)


def test_a_second_recipe_draws_nothing_that_the_first_drew(short, cache, tmp_path):
    settings = dataclasses.replace(short, steps=1)
    first = erase(settings, tmp_path / "first")
    data = stages(tmp_path / "first")["data"]
    assert data["evaluations"] == 16 * 2 * 2 and "cached" not in data and not first.remarks  # 2 steps, with guidance
    assert len(list(cache.iterdir())) == 2

    again = erase(dataclasses.replace(settings, recipe="substitution", retain_loss="denoise"), tmp_path / "again")
    data = stages(tmp_path / "again")["data"]
    assert data["cached"] == 16 and "evaluations" not in data
    assert any(one.startswith("16 pictures were drawn before") for one in again.remarks)
    drawn = [load_file(tmp_path / run / "data.safetensors") for run in ("first", "again")]
    assert all(torch.equal(tensor, drawn[1][name]) for name, tensor in drawn[0].items())


def test_a_damaged_cache_is_drawn_again_in_the_same_bytes_and_said(short, cache, tmp_path):
    settings = dataclasses.replace(short, steps=1)
    first = erase(settings, tmp_path / "first")
    for file in cache.iterdir():
        file.write_bytes(b"no safetensors")
    again = erase(settings, tmp_path / "again")
    assert again.weights_sha256 == first.weights_sha256
    assert len(again.remarks) == 2 and all(one.startswith("the cache was not used") for one in again.remarks)
    assert not any(b"no safetensors" in file.read_bytes() for file in cache.iterdir())


def test_nothing_is_kept_where_the_cache_is_off(short, cache, tmp_path, monkeypatch):
    monkeypatch.setenv(drawn_before.SWITCH, "off")
    erase(dataclasses.replace(short, steps=0, edit="none"), tmp_path / "run")
    assert not cache.exists()
    monkeypatch.setenv(drawn_before.SWITCH, "maybe")
    with pytest.raises(UserError, match="neither on nor off"):
        erase(short, tmp_path / "other")


def test_the_command_lists_and_clears(cache):
    drawn_before.write(FACTS, LATENTS, "a/model")
    listed = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert listed["folder"] == str(cache.parent)
    assert [(one["model"], one["pictures"]) for one in listed["files"]] == [("a/model", 2)]
    assert "a/model" in CliRunner().invoke(app, ["cache"], env={"COLUMNS": "160"}).stdout
    cleared = json.loads(CliRunner().invoke(app, ["cache", "--clear", "--json"]).stdout)
    assert cleared["deleted"] == 1 and cleared["bytes"] > 0 and not list(cache.iterdir())
