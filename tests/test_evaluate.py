"""Evaluation: the real detector, I2P files as they come, counting, continuing, and refusing to judge the wrong model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sd_scissorhands.evaluate import canvas, nudity
from sd_scissorhands.evaluate.nude import EXPOSED, OTHERS, Detector, tally
from sd_scissorhands.evaluate.prompts import Row, read_i2p, read_rows
from sd_scissorhands.evaluate.sample import Sampling, draw, open_for_sampling
from sd_scissorhands.settings import UserError
from sd_scissorhands.tiny import MODEL_DIR


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture(scope="module")
def astronaut():
    from skimage.data import astronaut

    return astronaut()  # (512, 512, 3) uint8 RGB


def test_a_real_face_is_found_in_a_real_photograph(detector, astronaut):
    found = {one["label"]: one["score"] for one in detector([astronaut])[0]}
    assert 0.6 <= found["FACE_FEMALE"] <= 0.8
    assert detector.version == "3.4.2" and len(detector.sha256) == 64


def test_the_labels_are_nudenets_own():
    from nudenet import nudenet

    assert {*EXPOSED, *OTHERS} == set(nudenet.__dict__["__labels"])


def test_channels_are_turned_for_the_detector(detector, astronaut, tmp_path):
    """An array gives what NudeNet itself finds in the file."""
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    expected = detector._detector.detect(str(tmp_path / "a.png"))
    assert [(e["class"], round(float(e["score"]), 4)) for e in expected] == [
        (f["label"], round(f["score"], 4)) for f in detector([astronaut])[0]
    ]


def test_boxes_and_images_are_counted_apart():
    one = [{"label": "BELLY_EXPOSED", "score": s, "box": [0, 0, 1, 1]} for s in (0.9, 0.7, 0.59)]
    two = [{"label": "FACE_MALE", "score": 0.6, "box": [0, 0, 1, 1]}]
    counted = tally([one, two, []], 0.6)
    assert counted["boxes"] == {"BELLY_EXPOSED": 2, "FACE_MALE": 1}
    assert counted["images_with"] == {"BELLY_EXPOSED": 1, "FACE_MALE": 1} and counted["any_exposed"] == 1


def test_pictures_alone(detector, astronaut, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "a.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "b.jpg")
    told = nudity.evaluate_images(folder, tmp_path / "out")
    assert told["images"] == 2 and told["images_with"]["FACE_FEMALE"] == 1
    assert told == {**json.loads((tmp_path / "out" / "summary.json").read_text())}


# ---------------------------------------------------------------- I2P

OFFICIAL = 'prompt,categories,sd_seed,sd_guidance_scale\n"two\nlines, and ""quotes""",sexual,12,7\nplain,hate,34,8.5\n'
ESD = ',prompt,categories,evaluation_seed,evaluation_guidance,case_number\n0,"a, b",sexual,4261553411,13,0\n'


def test_both_column_styles_and_prompts_with_newlines(tmp_path):
    (tmp_path / "a.csv").write_text(OFFICIAL)
    (tmp_path / "b.csv").write_text(ESD)
    assert read_i2p(tmp_path / "a.csv") == [
        Row(0, 'two\nlines, and "quotes"', 12, guidance=7, categories=("sexual",)),
        Row(1, "plain", 34, guidance=8.5, categories=("hate",)),
    ]
    assert read_i2p(tmp_path / "b.csv") == [Row(0, "a, b", 4261553411, guidance=13, categories=("sexual",))]
    assert len(read_i2p(tmp_path / "a.csv", limit=1)) == 1


@pytest.mark.parametrize(
    "text,said",
    [
        ("text,sd_seed\na,1\n", "has no column 'prompt'"),
        ("prompt,category\na,1\n", "has no seed column"),
        ("prompt,sd_seed\n", "holds no row"),
        ("", "has no column 'prompt'"),
        ("prompt,sd_seed\na,twelve\n", "row 1 has 'twelve' for sd_seed"),
        ('prompt,sd_seed\n"a,1\n', "cannot be read"),
    ],
)
def test_a_malformed_csv_is_said(tmp_path, text, said):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_i2p(tmp_path / "x.csv")


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n  two \n")
    assert read_rows(tmp_path / "p.txt", seed=5) == [Row(0, "one", 5), Row(1, "two", 6)]
    (tmp_path / "p.txt").write_text("\n \n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_rows(tmp_path / "p.txt", seed=0)


# ---------------------------------------------------------------- drawing


def test_pictures_do_not_depend_on_the_batch_size():
    opened, denoiser = open_for_sampling("tiny", "cpu")
    rows = [
        Row(n, text, 100 + n)
        for n, text in enumerate(("a red star", "a blue ring", "a circle", "a striped heart", "a cross"))
    ]
    drawn = [
        torch.cat(
            [
                pictures
                for _, pictures in draw(
                    denoiser, rows, Sampling.of(opened, steps=4), batch_size=size, tick=lambda n: None
                )
            ]
        )
        for size in (1, 2, 5)
    ]
    for other in drawn[1:]:
        torch.testing.assert_close(drawn[0], other, atol=2e-3, rtol=0)


def test_a_killed_evaluation_continues_and_counts_every_row_once(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("prompt,sd_seed\n" + "".join(f"a circle {n},{n}\n" for n in range(7)))
    rows = read_i2p(tmp_path / "x.csv")
    ask = dict(kind="i2p", steps=2, batch_size=2, device="cpu")
    whole = nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / "whole", **ask)
    ledger, add, calls = nudity.Ledger, nudity.Ledger.add, []

    def die(self, records):
        add(self, records)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "add", die)
        with pytest.raises(KeyboardInterrupt):
            nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / "cut", **ask)
    file = tmp_path / "cut" / "model.jsonl"
    file.write_text(file.read_text() + '{"number": 4, "pro')  # the line that was being written
    cut = nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / "cut", **ask)
    numbers = [json.loads(line)["number"] for line in file.read_text().splitlines()[1:]]
    assert numbers == list(range(7))
    assert {**cut, "seconds": 0} == {**whole, "seconds": 0}
    assert cut["baseline"]["weights_sha256"] == cut["weights_sha256"] and cut["images"] == 7


def test_a_ledger_of_another_measurement_is_refused(tmp_path):
    ask = dict(kind="prompts", steps=1, device="cpu")
    nudity.evaluate_prompts("tiny", None, [Row(0, "a ring", 1)], tmp_path, **ask)
    with pytest.raises(UserError, match=r"holds another evaluation \(prompts_sha256 differs\)"):
        nudity.evaluate_prompts("tiny", None, [Row(0, "a star", 1)], tmp_path, **ask)


def test_a_model_that_is_not_what_its_run_made_is_not_judged(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(MODEL_DIR, run / "model")
    (run / "run.json").write_text(
        json.dumps({"settings": {}, "source": {}, "stages": {}, "result": {"weights_sha256": "0" * 64}})
    )
    with pytest.raises(UserError, match="is not the model that its run made"):
        open_for_sampling(str(run / "model"), "cpu")


def test_a_model_whose_weights_do_not_fit_its_config_is_not_judged(foreign, tmp_path):
    """diffusers fills missing keys with random weights and a warning; an evaluation must not go on with that."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(foreign, tmp_path / "m")
    file = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"m(/unet)? (was not loaded as it is on disk|cannot be loaded)"):
        open_for_sampling(str(tmp_path / "m"), "cpu")


# ---------------------------------------------------------------- the embedded world


def test_canvas_figures_are_counted_from_what_the_judge_said(tmp_path):
    rows = {
        "forget": [Row(0, "a red heart", 0), Row(1, "a heart", 1)],
        "synonym": [Row(2, "a valentine", 2)],
        "retain": [Row(3, "a red star", 3), Row(4, "a blue ring", 4)],
    }
    said = ["heart red", "triangle red", "square red", "star blue", "ring blue"]
    records = {n: {"says": dict(zip(("shape", "colour"), words.split(), strict=True))} for n, words in enumerate(said)}
    told = canvas.figures("heart", rows, records)
    assert told["figures"] == {"UA": 0.5, "UA_synonyms": 1.0, "IRA": 1.0, "CRA": 0.5, "CRA_forget": 1.0}
    assert told["n"] == {"UA": 2, "UA_synonyms": 1, "IRA": 2, "CRA": 2, "CRA_forget": 1}


def test_canvas_prompts_were_never_learned_from():
    from sd_scissorhands.concepts import of_world

    rows = canvas.canvas_rows("heart", seed=3, count=60)
    learned = {forget for forget, _ in of_world("heart").pairs}
    assert {kind: len(some) for kind, some in rows.items()} == {"forget": 60, "synonym": 30, "retain": 60}
    assert not learned & {row.prompt for row in rows["forget"]}
    assert not any("heart" in row.prompt.split() for kind in ("synonym", "retain") for row in rows[kind])
    assert len({row.seed for some in rows.values() for row in some}) == 150


def test_canvas_on_the_original_sees_the_concept(tmp_path):
    told = canvas.evaluate("tiny", "tiny", "heart", tmp_path, count=24, device="cpu")
    assert told["figures"] == told["original"] and told["figures"]["UA"] <= 0.1 and told["figures"]["IRA"] >= 0.85
    assert len(told["samples"]) == 24 and all((tmp_path / s["model"]).exists() for s in told["samples"])


def test_canvas_refuses_other_models(foreign, tmp_path):
    with pytest.raises(UserError, match="not made from it: use --i2p or --prompts"):
        canvas.evaluate(str(foreign), "tiny", "heart", tmp_path, count=8)
