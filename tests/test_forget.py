"""`sdscissor forget` from end to end: the digits, a transformers directory, an interrupted run, bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sd_scissorhands import forgetting as room
from sd_scissorhands.classifier.load import open_classifier
from sd_scissorhands.classifier.measure import measure
from sd_scissorhands.cli import app
from sd_scissorhands.errors import UserError
from sd_scissorhands.forgetting import forget, prepare
from sd_scissorhands.recipes import recipes_for
from sd_scissorhands.settings import ForgetSettings

CLASS = ForgetSettings(forget_class="3", steps=40)
runner = CliRunner()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the digits' classifiers lie, trained once."""
    return tmp_path_factory.mktemp("shared")


def test_a_class_is_forgotten_and_the_rest_is_kept(shared, tmp_path):
    asked = ForgetSettings(forget_class="3", recipe="lra-npp")
    told = forget(asked, tmp_path / "run", shared=shared)
    figures, retrained = told.figures, told.retrained
    assert figures["forget_accuracy"] <= 0.01 and abs(figures["test_accuracy"] - retrained["test_accuracy"]) <= 0.02
    assert told.original["forget_accuracy"] > 0.99 and retrained["forget_accuracy"] == 0
    assert retrained["gap"] == 0 and figures["gap"] < told.original["gap"]
    assert told.steps == 0 and 0 < told.trimmed < 40
    assert set(told.n) == set(figures) == set(told.intervals) and told.n["forget_accuracy"] > 100
    before, after = open_classifier("digits", cache_dir=shared), open_classifier(told.model_dir)
    assert told.weights_sha256 == after.weights != before.weights
    changed = [n for n, t in before.model.state_dict().items() if not torch.equal(t, after.model.state_dict()[n])]
    assert len(changed) == 1 and changed[0].endswith("weight")
    rows = (before.model.state_dict()[changed[0]] != after.model.state_dict()[changed[0]]).any(1).nonzero().view(-1)
    assert rows.tolist() == [3], "only the target's path is zeroed"


def test_what_every_recipe_is_held_against_is_measured_once(tmp_path, shared, monkeypatch):
    asked, measured = ForgetSettings(forget_class="3", recipe="lra-npp"), []
    first = forget(asked, tmp_path / "first", shared=shared)
    monkeypatch.setattr(room, "measure", lambda *a, **k: measured.append(a) or measure(*a, **k))
    again = forget(dataclasses.replace(asked, top_k=0.4), tmp_path / "again", shared=shared)
    assert len(measured) == 1
    assert (again.original, again.retrained) == (first.original, first.retrained)
    assert again.intervals_beside == first.intervals_beside


def test_l_codec_forgets_a_class(shared, tmp_path):
    told = forget(ForgetSettings(forget_class="3", recipe="l-codec"), tmp_path / "run", shared=shared)
    assert told.figures["forget_accuracy"] <= 0.01
    assert abs(told.figures["test_accuracy"] - told.retrained["test_accuracy"]) <= 0.02


def test_the_same_seed_gives_the_same_weights_and_a_killed_run_continues(shared, tmp_path, monkeypatch):
    whole = forget(CLASS, tmp_path / "whole", shared=shared)

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(room, "save_classifier", killed)
        with pytest.raises(Killed):
            forget(CLASS, tmp_path / "cut", shared=shared)
    assert not (tmp_path / "cut" / "model").exists()
    assert (tmp_path / "cut" / "repair" / "step-40.safetensors").exists()
    (tmp_path / "cut" / "repair" / "step-40.safetensors").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="add --resume"):
        forget(CLASS, tmp_path / "cut", shared=shared)
    again = forget(CLASS, tmp_path / "cut", shared=shared, resume=True)
    assert again.weights_sha256 == whole.weights_sha256 and again.figures == whole.figures
    assert forget(CLASS, tmp_path / "cut", shared=shared, resume=True) == again
    with pytest.raises(UserError, match=r"other settings .--seed 0 there, 1 here"):
        forget(dataclasses.replace(CLASS, seed=1), tmp_path / "cut", shared=shared, resume=True)


@pytest.mark.parametrize("recipe", recipes_for("classifier"))
def test_every_recipe_forgets_random_pictures(recipe, shared, tmp_path):
    settings = ForgetSettings(
        forget_random=0.1, recipe=recipe, score_draws=2, options={"rounds": 1}, steps=4, memory_every=2
    )
    prepared = prepare(settings, shared)
    assert len(prepared.split.forget) == 126 and prepared.target == "random 0.1"
    assert all(getattr(prepared.settings, name) is not None for name in ("scorer", "edit", "repair", "optimiser"))
    if recipe == "gradient-ascent":
        told = forget(dataclasses.replace(settings, projection="both"), tmp_path / "run", shared=shared)
        assert told.conflict_rate and told.mean_correction > 0
    if recipe in ("scissorhands", "salun"):
        told = forget(settings, tmp_path / "run", shared=shared)
        assert told.forget == "random 0.1" and told.figures["forget_accuracy"] > 0.1
        assert (told.conflict_rate is None) == (recipe == "salun")


def test_a_transformers_directory_and_an_npz(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    labels = {0: "a", 1: "b", 2: "c"}
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    rng = np.random.default_rng(0)
    parts = {"": 60, "val_": 30, "test_": 30}
    arrays = {f"{part}labels": np.arange(count) % 3 for part, count in parts.items()}
    arrays |= {f"{part}pictures": rng.random((count, 16, 16), dtype=np.float32) for part, count in parts.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "rows").write_text("0\n5\n17\n20\n33\n41\n")
    asked = ForgetSettings(
        model=str(tmp_path / "resnet"), data=str(tmp_path / "data.npz"), forget_indices=str(tmp_path / "rows"),
        steps=3, batch_size=4, memory_every=2, score_draws=2, top_k=0.01,
    )  # fmt: skip
    told = forget(asked, tmp_path / "run")
    assert told.forget == "6 samples" and told.retrained is None and "gap" not in told.figures
    after = open_classifier(told.model_dir)
    assert type(after.model).__name__ == "ResNetForImageClassification" and after.names == ("a", "b", "c")
    beside = dataclasses.replace(asked, retrained=str(tmp_path / "resnet"))
    assert forget(beside, tmp_path / "beside").figures["gap"] is not None
    assert forget(asked, tmp_path / "run", resume=True) == told
    (tmp_path / "rows").write_text("0\n5\n17\n20\n33\n42\n")
    with pytest.raises(UserError, match="--forget-indices held something else"):
        forget(asked, tmp_path / "run", resume=True)
    (tmp_path / "rows").write_text("0\n5\n17\n20\n33\n41\n")
    np.savez(tmp_path / "data.npz", **arrays | {"pictures": arrays["pictures"] * 0.5})
    with pytest.raises(UserError, match="--data held something else"):
        forget(asked, tmp_path / "run", resume=True)
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "resnet", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"from another model|held something else"):
        forget(beside, tmp_path / "beside", resume=True)


def test_a_torch_module_of_ones_own_is_left_as_it_is(tmp_path):
    from safetensors.torch import load_file

    from sd_scissorhands.classifier.data import Dataset, Parts
    from sd_scissorhands.classifier.load import wrap

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = [Dataset(torch.randn(n, 1, 4, 4), torch.arange(n) % 2, ("cat", "dog")) for n in (40, 20, 20)]
    asked = ForgetSettings(forget_class="cat", steps=3, batch_size=4, memory_every=2, score_draws=2, top_k=0.1)
    told = forget(asked, tmp_path / "run", own=wrap(module, ("cat", "dog"), name="mine"), parts=Parts(*data))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert set(after) == set(before) and any(not torch.equal(after[name], before[name]) for name in before)
    assert told.forget == "class cat" and told.retrained is None


def test_the_command_line(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "open_classifier", lambda *a, **k: open_classifier(*a, **k | {"cache_dir": shared}))
    line = ["forget", "--forget-class", "3", "--recipe", "l-codec", "--output-dir", "run"]
    done = runner.invoke(app, [*line, "--json", "--config", "few.toml"])
    assert done.exit_code == 1
    (tmp_path / "few.toml").write_text("rounds = 1\nscore_draws = 4\n")
    done = runner.invoke(app, [*line, "--json", "--config", "few.toml"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["recipe"] == "l-codec" and 0 <= told["forget_accuracy"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Forgot class 3" in page and "retrained without it" in page
    assert "--forget-class 3" in page and page.count("<script") == 1 and "rounds = 1" in page
    again = runner.invoke(app, ["report", "run", "--json"])
    assert json.loads(again.stdout)["report"] == "run/report.html"
    shown = runner.invoke(app, [*line, "--config", "few.toml", "--resume"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0 and "forget_accuracy" in shown.stderr and not shown.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "say what to forget with one of --forget-class"),
        ({"forget_class": "3", "forget_random": 0.1}, "say what to forget with one of"),
        ({"forget_class": "psychic"}, "--forget-class: the model has no class 'psychic'"),
        ({"forget_random": 1.5}, r"--forget-random 1.5 is outside \(0, 1\)"),
        ({"forget_indices": "no/such"}, "--forget-indices no/such cannot be read"),
        ({"forget_class": "3", "model": "no/such/model"}, "--data is missing"),
        ({"forget_class": "3", "model": "./none", "data": "x.npz"}, "--model ./none does not exist"),
        ({"forget_class": "3", "data": "none.npz"}, "--data none.npz does not exist"),
        ({"forget_class": "3", "repair": "paired"}, "--repair paired is for diffusion models"),
        ({"forget_class": "3", "recipe": "esd"}, "--recipe esd is not for this kind of model"),
        ({"forget_class": "3", "relearn_every": 2}, "--relearn-every is for diffusion models"),
        ({"forget_class": "3", "scope": "nowhere"}, "--scope 'nowhere' matches no weight of the classifier"),
        ({"forget_class": "3", "device": "cuda:99"}, "--device cuda:99 cannot be used"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line_before_any_work(changes, says, shared, tmp_path):
    with pytest.raises(UserError, match=says) as refused:
        forget(ForgetSettings(**changes), tmp_path / "run", shared=shared)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
