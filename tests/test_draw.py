"""`sdscissor draw`: both models under the same seeds as one PNG; RUN stands for RUN/model everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.cli import app
from sd_scissorhands.cli.draw import seeds_of
from sd_scissorhands.drawing import GAP, LINE, SIDE, draw
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings


@pytest.mark.parametrize(("text", "seeds"), [("0-3", (0, 1, 2, 3)), ("5,7", (5, 7)), ("2", (2,)), ("1-2,9", (1, 2, 9))])
def test_seeds_are_lists_and_ranges(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-9999", "-1", "1,,2"])
def test_other_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        seeds_of(text)


def test_a_model_against_another_has_equal_pictures_for_equal_weights(tmp_path):
    drawn = draw("tiny", ["a red heart"], (3, 4), against="tiny", output=tmp_path / "both.png", steps=2)
    sheet = np.asarray(Image.open(drawn.picture))
    assert sheet.shape == (2 * (LINE + SIDE + GAP) + GAP, 2 * (SIDE + GAP) + GAP, 3) and not drawn.blurred
    row = LINE + SIDE + GAP
    first, second = (sheet[GAP + LINE + at : GAP + LINE + at + SIDE, GAP:-GAP] for at in (0, row))
    assert (first == second).all() and (first[:, :SIDE] != first[:, SIDE + GAP :]).any()
    alone = draw("tiny", ["a red heart"], (3, 4), output=tmp_path / "alone.png", steps=2)
    assert (np.asarray(Image.open(alone.picture))[GAP + LINE : GAP + LINE + SIDE, GAP:-GAP] == first).all()


def test_no_seed_and_no_model_are_errors(tmp_path):
    with pytest.raises(UserError, match="--seeds"):
        draw("tiny", [""], ())
    with pytest.raises(UserError, match="nowhere"):
        draw(str(tmp_path / "nowhere"), [""], (0,))


def test_the_command_prints_one_object(tmp_path):
    words = ["draw", "tiny", "--seeds", "1", "--steps", "2", "--output", str(tmp_path / "a.png"), "--json", "--quiet"]
    result = CliRunner().invoke(app, words)
    assert json.loads(result.stdout)["seeds"] == [1] and (tmp_path / "a.png").exists()
    two = CliRunner().invoke(app, [*words, "--prompt", "a heart", "--prompt", "a ring"])
    assert json.loads(two.stdout)["prompts"] == ["a heart", "a ring"]
    assert Image.open(tmp_path / "a.png").height == 2 * (LINE + SIDE + GAP) + GAP


def test_a_run_stands_for_the_model_in_it(tmp_path):
    (tmp_path / "model").mkdir()
    assert EvaluateSettings(model=str(tmp_path), i2p=True).model == str(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    inside = str(tmp_path / "model")
    assert EvaluateSettings(model=str(tmp_path), baseline=str(tmp_path), i2p=True).model == inside
    assert AttackSettings("embedding", "heart", str(tmp_path)).model == inside
