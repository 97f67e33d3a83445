"""Evaluation: the real detector, I2P files as they come, counting, continuing, and refusing to judge the wrong model."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation import batch_size, nudity, prompts
from sd_scissorhands.evaluation import concept as room
from sd_scissorhands.evaluation.batch_size import fitting, lanes, measured
from sd_scissorhands.evaluation.chance import wilson
from sd_scissorhands.evaluation.evaluate import evaluate as run_evaluation
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.evaluation.judge_set import JudgeSet, open_judges
from sd_scissorhands.evaluation.judges import JUDGES, nudenet
from sd_scissorhands.evaluation.judges.base import Judge
from sd_scissorhands.evaluation.judges.canvas import CanvasJudge
from sd_scissorhands.evaluation.judges.nudenet import Detector, NudeJudge
from sd_scissorhands.evaluation.metrics import METRICS, gate_values, gates_of
from sd_scissorhands.evaluation.metrics.base import Distance, Number, Recorded, Share
from sd_scissorhands.evaluation.metrics.collapsed import agreement, collapse, variance
from sd_scissorhands.evaluation.metrics.nudenet import EXPOSED, OTHER_LABELS
from sd_scissorhands.evaluation.nude_counts import counts
from sd_scissorhands.evaluation.prompts import Row, read_i2p, read_rows
from sd_scissorhands.evaluation.recorder import one_behind
from sd_scissorhands.evaluation.records import THUMB, Ledger
from sd_scissorhands.evaluation.sample import Sampling, draw, open_for_sampling
from sd_scissorhands.results.evaluation import NUDITY_KINDS, read_evaluation
from sd_scissorhands.tiny import MODEL_DIR, world

CANVAS = DOMAINS["canvas"]
PHOTOGRAPHS = DOMAINS["photographs"]


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

    assert {*EXPOSED, *OTHER_LABELS} == set(nudenet.__dict__["__labels"])


def test_channels_are_turned_for_the_detector(detector, astronaut, tmp_path):
    """An array gives what NudeNet itself finds in the file."""
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    expected = detector._detector.detect(str(tmp_path / "a.png"))
    assert [(e["class"], round(float(e["score"]), 4)) for e in expected] == [
        (f["label"], round(f["score"], 4)) for f in detector([astronaut])[0]
    ]


def test_detections_are_those_of_nudenet_as_it_comes(detector, astronaut):
    """Ours drops hopeless candidates early and runs on one thread; the boxes stay the same, none and many alike."""
    import nudenet

    plain = nudenet.NudeDetector()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    faces = np.concatenate([astronaut[:256, 100:356]] * 3, axis=1)
    for picture in (astronaut, noise, np.zeros((512, 512, 3), np.uint8), faces, astronaut[:200, 150:330]):
        expected = plain.detect(np.ascontiguousarray(picture[..., ::-1]))
        ours = detector([picture])[0]
        assert [(e["class"], e["box"]) for e in expected] == [(f["label"], f["box"]) for f in ours]
        assert [f["score"] for f in ours] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert len(detector([faces])[0]) >= 2 and not detector([np.zeros((512, 512, 3), np.uint8)])[0]


def test_boxes_and_images_are_counted_apart():
    one = [{"label": "BELLY_EXPOSED", "score": s, "box": [0, 0, 1, 1]} for s in (0.9, 0.7, 0.59)]
    two = [{"label": "FACE_MALE", "score": 0.6, "box": [0, 0, 1, 1]}]
    counted = counts([one, two, []], 0.6)
    assert counted.boxes == {"BELLY_EXPOSED": 2, "FACE_MALE": 1}
    assert counted.images_with == {"BELLY_EXPOSED": 1, "FACE_MALE": 1} and counted.any_exposed == 1


def test_pictures_alone(detector, astronaut, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "a.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "b.jpg")
    told = nudity.evaluate_images(folder, tmp_path / "out")
    assert told.images == 2 and told.images_with["FACE_FEMALE"] == 1
    assert told.to_json() == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert read_evaluation(told.to_json()) == told


@pytest.fixture
def mixed(astronaut, tmp_path):
    """A folder of a face, an animation whose face comes late, a broken file, a text, and a folder with a face."""
    folder, face = tmp_path / "pictures", Image.fromarray(astronaut)
    (folder / "more").mkdir(parents=True)
    black = Image.new("RGB", face.size)
    face.save(folder / "a.png")
    black.save(folder / "b.webp", save_all=True, append_images=[face, black], duration=50, lossless=True)
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("")
    face.save(folder / "more" / "d.webp")
    return folder


def test_one_bad_picture_ends_nothing(mixed, tmp_path):
    found = nudity.evaluate_images(mixed, tmp_path / "out")
    assert found.images == 2 and found.images_with["FACE_FEMALE"] == 2
    (bad,) = found.unreadable
    assert "c.png is no readable picture" in bad
    skipped, frames = found.remarks
    assert skipped == "--images: 3 pictures; skipped: .txt files: 1 (notes.txt), subfolders: 1 (more)"
    assert "1 with several frames, of which 3 of 3 were looked at" in frames
    assert read_evaluation(json.loads((tmp_path / "out" / "summary.json").read_text())) == found
    assert nudity.evaluate_images(mixed, tmp_path / "out") == replace(found, seconds=ANY)  # from its ledger


def test_pictures_of_subfolders(mixed, tmp_path):
    found = nudity.evaluate_images(mixed, tmp_path / "out", recursive=True)
    assert found.images == 3 and found.images_with["FACE_FEMALE"] == 3 and "subfolders" not in found.remarks[0]


def test_the_command_names_a_bad_picture_and_exits_with_1(mixed, tmp_path, sdscissor):
    words = ["eval", "--images", str(mixed), "--recursive", "--output-dir", str(tmp_path / "out")]
    done = sdscissor(*words)
    assert done.returncode == 1 and done.stderr.count("c.png is no readable picture") == 1
    assert "1 of the pictures in --images" in done.stderr and "figures are of the other 3" in done.stderr
    assert done.stderr.count("skipped: .txt files: 1 (notes.txt)") == 1
    gate = [*words[:-1], str(tmp_path / "gate"), "--json", "--fail-above", "FACE_FEMALE=0"]
    done = sdscissor(*gate)
    assert done.returncode == 3 and len(json.loads(done.stdout)["unreadable"]) == 1
    with pytest.raises(UserError, match="--recursive has no effect without --images or --reference"):
        EvaluateSettings(model="tiny", i2p=True, recursive=True)


def test_a_sliver_takes_no_gigabytes(detector, monkeypatch):
    """NudeNet pads 1 x 60,000 pixels to a square of 10 GB."""
    seen, own = [], detector._detector.detect

    def look(pixels):
        seen.append(pixels.shape)
        return (
            [{"class": "FACE_MALE", "score": 0.9, "box": [1000, 0, 10, 1]}] if max(pixels.shape) < 100 else own(pixels)
        )

    monkeypatch.setattr(detector._detector, "detect", look)
    assert detector([np.zeros((1, 60_000, 3), np.uint8), np.zeros((8192, 3, 3), np.uint8)]) == [[], []]
    assert seen == [(1, 7500, 3), (8192, 3, 3)]  # every eighth pixel; an ordinary picture as it is
    monkeypatch.setattr(nudenet, "MOST_SIDE", 30)
    assert detector([np.zeros((50, 60, 3), np.uint8)])[0][0]["box"] == [2000, 0, 20, 2]  # in the picture's own pixels


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


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_prompt_ends_with_its_line_alone(odd, tmp_path):
    (tmp_path / "p.txt").write_bytes(f"\ufeffone{odd}more\r\ntwo\n".encode())
    assert [row.prompt for row in read_rows(tmp_path / "p.txt", seed=5)] == [f"one{odd}more", "two"]


def test_the_prompts_of_a_csv(tmp_path):
    for name in ("p.csv", "p.txt"):
        (tmp_path / name).write_text('\ufeffcase_number,prompt\n0,"a, b"\n1,"c\nd"\n2,\n')
        assert [row.prompt for row in read_rows(tmp_path / name, seed=5)] == ["a, b", "c\nd"]
    (tmp_path / "p.csv").write_text("text,seed\na heart,1\n")
    with pytest.raises(UserError, match=r"p.csv is a CSV without a column 'prompt' \(it has text, seed\)"):
        read_rows(tmp_path / "p.csv", seed=5)
    (tmp_path / "p.txt").write_text("prompt, as it is called\na heart\n")  # no header
    assert len(read_rows(tmp_path / "p.txt", seed=5)) == 2


def test_readers_of_texts_do_not_wait_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "p")
    for read in (lambda path: read_rows(path, 0), read_i2p, lambda path: prompts.read_numbers(path, rows=3)):
        with pytest.raises(UserError, match="it is no regular file"):
            read(tmp_path / "p")


def test_prompts_that_are_cut_are_counted_once(tmp_path):
    rows = [Row(0, "a heart", 1), Row(1, "a red heart " * 60, 2), Row(2, "a ring", 3)]
    request = nudity.NudityRequest(kind="prompts", steps=1, device="cpu")
    found = nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path, request)
    (remark,) = found.remarks
    assert remark.startswith("1 of 3 prompts are longer than the text encoder reads, ")
    assert nudity.evaluate_prompts("tiny", None, rows[::2], tmp_path / "short", request).remarks == ()


# ---------------------------------------------------------------- drawing


@pytest.fixture(scope="module")
def tiny():
    return open_for_sampling("tiny", "cpu")


ROWS = [
    Row(n, text, 100 + n, guidance=guidance)
    for n, (text, guidance) in enumerate(
        (("a red star", None), ("a blue ring", 5.0), ("a circle", None), ("a striped heart", 5.0), ("a cross", None))
    )
]


def drawn(tiny, rows, batch_size=None):
    """Row number -> bytes of its picture."""
    opened, denoiser = tiny
    batches = draw(
        denoiser, rows, Sampling.of(opened, steps=4), batch_size=batch_size,
        encode=lambda some: denoiser.encode([row.prompt for row in some]),
    )  # fmt: skip
    return {row.number: one.tobytes() for chunk, pixels in batches for row, one in zip(chunk, pixels, strict=True)}


def test_bytes_depend_on_neither_batch_size_nor_company(tiny):
    whole = drawn(tiny, ROWS)
    assert len(whole) == 5 and len(set(whole.values())) == 5
    assert drawn(tiny, ROWS, 1) == drawn(tiny, ROWS, 3) == drawn(tiny, ROWS, 64) == whole
    for row in ROWS:
        assert drawn(tiny, [row])[row.number] == whole[row.number]
    assert drawn(tiny, ROWS[::-1]) == whole


def test_each_row_has_its_own_guidance_and_size(tiny):
    assert drawn(tiny, [ROWS[1]])[1] != drawn(tiny, [Row(1, ROWS[1].prompt, ROWS[1].seed)])[1]
    wide = Row(0, "a red star", 1, size=(32, 48))
    assert len(drawn(tiny, [wide])[0]) == 32 * 48 * 3


def test_a_drawing_is_the_pipelines_own(tiny):
    """The engine draws what a plain diffusers call draws for the same prompt, seed, steps and guidance."""
    opened, _ = tiny
    plain = opened.pipeline(
        "a red star",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(100),
        output_type="np",
    ).images[0]
    ours = np.frombuffer(drawn(tiny, ROWS[:1])[0], np.uint8).reshape(32, 32, 3)
    assert np.abs(ours.astype(int) - np.round(plain * 255)).max() <= 1


@pytest.mark.parametrize(
    "device,side,batch,expected",
    [
        ("cpu", 32, None, (16, 32)),
        ("cpu", 32, 3, (16, 16)),
        ("cpu", 512, 3, (1, 3)),
        ("cuda", 512, 3, (3, 3)),
        ("cuda", 512, None, (4, 4)),
    ],
)
def test_lanes(device, side, batch, expected):
    assert lanes(device, side, batch) == expected


@pytest.mark.parametrize(
    "gib,side,most", [(80, 512, 32), (30, 512, 16), (10, 512, 4), (3, 512, 1), (0, 512, 1), (400, 64, 256)]
)
def test_a_batch_is_what_memory_holds(gib, side, most):
    """Of pictures of a GiB, and two for decoding: the largest power of two within 70 % of what is free."""
    assert fitting(1 << 30, 2 << 30, gib << 30, side) == most


def test_a_batch_that_memory_holds_is_measured_once_and_draws_the_same_bytes(tiny, monkeypatch):
    denoiser = tiny[1]
    each, decoding = measured(denoiser, (32, 32))
    assert 0 <= each < 1 << 28 and 0 <= decoding < 1 << 30
    calls = []
    monkeypatch.setattr(batch_size, "measured", lambda *given: calls.append(given) or (1 << 20, 0))
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 100 << 20)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), together={})
    assert [batch_size.held_by_memory(on_gpu, (32, 32)) for _ in range(3)] == [64] * 3 and len(calls) == 1
    assert batch_size.held_by_memory(denoiser, (32, 32)) is None
    whole = drawn(tiny, ROWS)
    monkeypatch.setattr("sd_scissorhands.evaluation.sample.held_by_memory", lambda *given: 64)
    assert drawn(tiny, ROWS) == whole


def test_what_is_drawn_is_judged_while_the_next_is_drawn():
    drawing, judged = threading.Event(), []

    def pictures():
        yield 1
        assert drawing.wait(10)  # that the first is looked at, before the second is there
        yield 2

    def look(number: int) -> int:
        drawing.set()
        judged.append((number, threading.current_thread() is threading.main_thread()))
        return -number

    assert list(one_behind(look, pictures())) == [-1, -2] and judged == [(1, False), (2, False)]
    with pytest.raises(ZeroDivisionError):
        list(one_behind(lambda number: 1 / 0, [1]))


def test_a_killed_evaluation_continues_and_counts_every_row_once(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("prompt,sd_seed\n" + "".join(f"a circle {n},{n}\n" for n in range(40)))
    rows = read_i2p(tmp_path / "x.csv")
    request = nudity.NudityRequest(kind="i2p", batch_size=16, steps=1, device="cpu", keep_images=True)
    whole = nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / "whole", request)
    ledger, add, calls = Ledger, Ledger.add, []

    def die(self, records):
        add(self, records)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "add", die)
        with pytest.raises(KeyboardInterrupt):
            nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / "cut", request)
    file = tmp_path / "cut" / "model.jsonl"
    assert 32 < len(file.read_text().splitlines()) <= 40
    file.write_text(file.read_text() + '{"number": 39, "pro')  # the line that was being written
    cut = nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / "cut", request)
    numbers = [json.loads(line)["number"] for line in file.read_text().splitlines()[1:]]
    assert sorted(numbers) == list(range(40))
    assert replace(cut, seconds=0) == replace(whole, seconds=0) and 0 < whole.judging_share < 1
    assert cut.baseline.weights_sha256 == cut.weights_sha256 and cut.images == 40
    kept = [
        {f.name: f.read_bytes() for f in (tmp_path / name / "images" / "model").iterdir()} for name in ("whole", "cut")
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 40
    assert (tmp_path / "cut" / "rows.csv").read_text().count("\n") == 41


def test_what_another_process_wrote_before_a_kill_is_not_lost(tmp_path):
    from sd_scissorhands.machine import Processes

    class SingleProcess(Processes):
        def wait(self):
            pass

    header = {"weights_sha256": "a"}
    first = Ledger(tmp_path / "m.jsonl", header)
    first.add([{"number": 0}])
    second = Ledger(tmp_path / "m.jsonl", header, SingleProcess(1, 2))
    second.add([{"number": 1}])
    assert first.count() == 2 and (tmp_path / "m.part1.jsonl").exists()
    again = Ledger(tmp_path / "m.jsonl", header)
    assert set(again.records) == {0, 1} and not (tmp_path / "m.part1.jsonl").exists()


def test_a_ledger_of_another_measurement_is_refused(tmp_path):
    request = nudity.NudityRequest(kind="prompts", steps=1, device="cpu")
    nudity.evaluate_prompts("tiny", None, [Row(0, "a ring", 1)], tmp_path, request)
    with pytest.raises(UserError, match=r"holds another evaluation \(prompts_sha256 differs\)"):
        nudity.evaluate_prompts("tiny", None, [Row(0, "a star", 1)], tmp_path, request)


@pytest.mark.parametrize(
    "part", ["vae", "text_encoder", "tokenizer", "scheduler", "prompts", "csv", "detector", "nudenet", "torch"]
)
def test_a_verdict_is_not_repeated_of_other_contents_under_the_same_names(foreign, tmp_path, monkeypatch, part):
    base, file = tmp_path / "sd", tmp_path / ("rows.csv" if part == "csv" else "rows.txt")
    shutil.copytree(foreign, base)
    file.write_text("prompt,sd_seed\na ring,1\n" if part == "csv" else "a ring\n")
    named = dict(i2p_file=str(file)) if part == "csv" else dict(prompts=str(file))
    asked = EvaluateSettings(model=str(base), steps=1, device="cpu", **named)
    first = run_evaluation(asked, tmp_path / "out")
    assert replace(run_evaluation(asked, tmp_path / "out"), seconds=0) == replace(first, seconds=0)
    if part in ("prompts", "csv"):
        file.write_text(file.read_text().replace("ring", "star"))
    elif part == "detector":
        monkeypatch.setattr("sd_scissorhands.evaluation.judges.nudenet.hash_file", lambda file: "another")
    elif part in ("nudenet", "torch"):
        where = "judges.nudenet" if part == "nudenet" else "recorder"
        monkeypatch.setattr(f"sd_scissorhands.evaluation.{where}.version", lambda name: "0.0")
    else:
        changed = min((base / part).glob("*.json"))
        changed.write_text(changed.read_text() + "\n")
    name = {"prompts": "prompts", "csv": "prompts", "detector": "judges", "nudenet": "judges", "torch": "versions"}.get(
        part, "files"
    )
    with pytest.raises(UserError, match=rf"holds another evaluation \({name}(_sha256)? differs\)"):
        run_evaluation(asked, tmp_path / "out")


@pytest.mark.parametrize("changed", ["contents", "detector", "nudenet"])
def test_pictures_are_judged_again_by_another_detector_and_with_other_contents(
    astronaut, tmp_path, monkeypatch, changed
):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "0.png")
    assert not nudity.evaluate_images(tmp_path / "pictures", tmp_path / "out").images_with
    if changed == "contents":
        Image.fromarray(astronaut).save(tmp_path / "pictures" / "0.png")
    name = {"contents": "files_sha256", "detector": "detector_sha256", "nudenet": "nudenet"}[changed]

    class Other(Detector):
        def __init__(self):
            super().__init__()
            self.sha256 = "0" if changed == "detector" else self.sha256
            self.version = "0" if changed == "nudenet" else self.version

    monkeypatch.setattr(nudity, "Detector", Other)
    with pytest.raises(UserError, match=rf"holds another evaluation \({name} differs\)"):
        nudity.evaluate_images(tmp_path / "pictures", tmp_path / "out")


@pytest.mark.parametrize(
    "changed", ["model.safetensors", "preprocessor_config.json", "tokenizer_config.json", "features"]
)
def test_judges_and_features_are_known_by_what_is_in_their_files(foreign, clip_dir, tmp_path, changed):
    copy, features = tmp_path / "clip", tmp_path / "features.pt"
    shutil.copytree(clip_dir, copy)
    torch.jit.script(torch.nn.Flatten()).save(str(features))
    concept = PHOTOGRAPHS.resolve("a dog", "a cat")

    def facts():
        opened = open_judges(concept, domain=PHOTOGRAPHS, judge="clip", clip=str(copy), features=features, device="cpu")
        return opened.judges[0].facts, opened.features.facts

    before = facts()
    assert facts() == before
    if changed == "features":
        torch.jit.script(torch.nn.Flatten(1, 2)).save(str(features))
    elif changed == "model.safetensors":
        save_file(
            {name: one * 1.01 for name, one in load_file(copy / changed).items()}, copy / changed, {"format": "pt"}
        )
    else:
        (copy / changed).write_text((copy / changed).read_text() + "\n")
    assert facts()[changed == "features"] != before[changed == "features"]


HEADER = {"files_sha256": "x", "judges": []}
RECORD = {"number": 1, "file": "b.png", "found": [{"label": "FACE_MALE", "score": 0.7, "box": [0, 0, 1, 1]}]}
LEDGERS = {
    "a header that is a list": ["[]"], "null": ["null"], "a number": ["7"], "an empty object": ["{}"], "no JSON": ["header"],
    "another header": ['{"files_sha256": "y", "judges": []}'], "NaN in the header": ['{"files_sha256": NaN, "judges": []}'],
    "a record that is a list": [None, "[]"], "a null record": [None, "null"], "a text": [None, '"a"'], "no number": [None, '{"found": []}'],
    "number text": [None, {"number": "1"}], "number NaN": [None, {"number": math.nan}], "number list": [None, {"number": [1]}],
    "number huge": [None, {"number": 10**400}], "number beyond": [None, {"number": 2}], "number negative": [None, {"number": -1}],
    "no findings": [None, '{"number": 1}'], "findings text": [None, {"found": "FACE"}], "findings numbers": [None, {"found": [1]}],
    "a label list": [None, {"found": [{"label": [], "score": 1}]}], "no label": [None, {"found": [{"score": 0.5}]}],
    "a score text": [None, {"found": [{"label": "FACE_MALE", "score": "1"}]}], "nested": [None, "[" * 100_000],
    "deep": [None, '{"a":' * 500 + "1" + "}" * 500], "twice": [None, '{"number": 0, "number": 1, "found": []}'],
    "two in a line": [None, json.dumps(RECORD) * 2], "cut in the middle": [None, json.dumps(RECORD)[:20], json.dumps(RECORD)],
    "NUL": [None, "\0" * 100], "digits": [None, '{"number": ' + "1" * 5000 + "}"], "Latin": [None, b'{"number": 1, "file": "\xe9"}'],
    "UTF-16": [json.dumps(HEADER).encode("utf-16")[:-1]],
}  # fmt: skip


@pytest.mark.parametrize("damage", [*LEDGERS, "directory", "FIFO"])
def test_a_damaged_ledger_is_said_in_one_line(tmp_path, damage):
    file, header = tmp_path / "images.jsonl", HEADER
    if damage == "directory":
        file.mkdir()
    elif damage == "FIFO":
        os.mkfifo(file)
    else:
        lines = [
            json.dumps({**RECORD, **one} if isinstance(one, dict) else HEADER)
            if one is None or isinstance(one, dict)
            else one
            for one in LEDGERS[damage]
        ]
        file.write_bytes(b"".join((one if isinstance(one, bytes) else one.encode()) + b"\n" for one in lines))
    with pytest.raises(UserError, match=r"images\.jsonl") as caught:
        Ledger(file, header, check=lambda record: nudity._check(record, 2))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("rest", ["", '{"number": 1, "fi', "\0\0\0"])
def test_what_a_kill_leaves_of_a_ledger_is_made_again(tmp_path, rest):
    file = tmp_path / "images.jsonl"
    for text in ("", "\n".join([json.dumps(HEADER), json.dumps(RECORD), rest])):
        file.write_text(text or rest)
        found = Ledger(file, HEADER, check=lambda record: nudity._check(record, 2))
        assert found.in_order() == ([RECORD] if text else [])


@pytest.mark.parametrize(("name", "value"), [
    ("canvas", {}), ("canvas", []), ("canvas", None), ("thumb", "AAAA"), ("thumb", "%"), ("thumb", 1), ("prompt", None), ("features", "AA"),
    ("geometry", {"shape": []}), ("number", 10**9),
])  # fmt: skip
def test_a_record_that_its_judge_cannot_read_is_a_damaged_ledger(tmp_path, name, value):
    concept = CANVAS.resolve("heart", None)
    panel, request = (
        open_judges(concept, domain=CANVAS, device="cpu"),
        room.ConceptRequest(count=2, steps=1, device="cpu"),
    )
    if not SELF:
        SELF["folder"] = tmp_path / "out"
        room.evaluate("tiny", "tiny", concept, tmp_path / "out", judges=panel, request=request)
    shutil.copytree(SELF["folder"], tmp_path / "copy")
    file = tmp_path / "copy" / "model.jsonl"
    header, first, *others = file.read_text().splitlines()
    file.write_text("\n".join([header, json.dumps(json.loads(first) | {name: value}), *others, ""]))
    with pytest.raises(UserError, match=r"model\.jsonl is damaged \(line 2"):
        room.evaluate("tiny", "tiny", concept, tmp_path / "copy", judges=panel, request=request)


SELF: dict[str, Path] = {}  # one evaluation, which its first user makes


def test_protocols_are_told(tmp_path):
    (tmp_path / "x.csv").write_text(
        "prompt,sd_seed,sd_guidance_scale,sd_image_height,sd_image_width\na,1,7,512,512\nb,2,9,512,768\n"
    )
    rows = read_i2p(tmp_path / "x.csv")
    for protocol, guidance, size in (
        ("published", 7.5, "32 x 32"),
        ("per-row", "7 to 9, each row's own", "2 sizes, each row's own"),
    ):
        request = nudity.NudityRequest(kind="i2p", protocol=protocol, whole=True, steps=1, device="cpu")
        told = nudity.evaluate_prompts("tiny", "tiny", rows, tmp_path / protocol, request)
        assert told.sampling.guidance == guidance and told.sampling.size == size
        assert told.protocol == protocol and told.sampling.scheduler == "DDIMScheduler"
        assert not told.calibration.comparable and "743" in told.calibration.says
        assert told.rows == {"both": 0, "only_original": 0, "only_model": 0, "neither": 2}


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


# ---------------------------------------------------------------- one concept


def test_canvas_hits_are_counted_from_what_the_judge_said():
    rows = {
        "forget": [Row(0, "a red heart", 0), Row(1, "a heart", 1)],
        "synonym": [Row(2, "a valentine", 2)],
        "retain": [Row(3, "a red star", 3), Row(4, "a blue ring", 4)],
        "generic": [Row(5, "a red shape", 5), Row(6, "", 6), Row(7, "a thing", 7), Row(8, "", 8)],
        "unlisted": [Row(9, "a red kazoo", 9), Row(10, "a whisk", 10)],
    }
    said = "heart red,triangle red,square red,star blue,ring blue,heart red,cross blue,triangle red,ring red,star red,triangle red"

    def records(said: str, grey: int) -> dict[int, dict]:
        thumb = base64.b64encode(bytes([grey] * THUMB * THUMB * 3)).decode()
        return {
            n: {"canvas": dict(zip(("shape", "colour"), words.split(), strict=True)), "thumb": thumb}
            for n, words in enumerate(said.split(","))
        }

    before = said.replace("triangle red,ring red,star red", "star red,ring red,star red")  # of an open prompt
    again = before.replace("cross blue,star red,ring red", "cross blue,ring red,star red").replace(
        ",triangle red", ",heart red"
    )
    sides = {"model": records(said, 30), "original": records(before, 20), "again": records(again, 40)}
    told = room.figures(Recorded(rows, sides, JudgeSet([CanvasJudge("heart")], CANVAS), world_concept("heart")))
    same = {"UA", "UA_synonyms", "UA_generic", "IRA", "CRA", "CRA_forget"}
    assert {name: told["original"][name] for name in same} == {name: told["figures"][name] for name in same}
    # of cross, star, ring the original shows, two are still there; the triangle of `again` counts as another thing, too
    assert told["another_seed"] == {
        "open_unchanged": 0.3333, "unlisted_unchanged": 0.5, "open_variation": 0.0, "unlisted_variation": 0.5,
    }  # fmt: skip
    assert told["original"]["open_unchanged"] == 1.0 and told["original"]["open_variation"] == 0.0
    assert told["original"]["open_anchor"] == 0.0 and told["original"]["open_moved"] == 0.0
    assert told["figures"] == {
        "UA": 0.5,
        "UA_synonyms": 1.0,
        "UA_generic": 0.75,
        "IRA": 1.0,
        "CRA": 0.5,
        "CRA_forget": 1.0,
        "open_unchanged": 0.6667,
        "unlisted_unchanged": 1.0,
        "open_variation": 0.3333,
        "unlisted_variation": 0.0,
        "open_anchor": 0.25,
        "open_moved": 0.25,  # (10 / 20)^2
    }
    counted = {"UA": 2, "UA_synonyms": 1, "UA_generic": 4, "IRA": 2, "CRA": 2, "CRA_forget": 1}
    assert told["n"] == counted | {"open_unchanged": 3, "unlisted_unchanged": 2}
    assert told["intervals"]["UA"] == (0.0945, 0.9055)  # Wilson's, 1 of 2


def test_canvas_prompts_were_never_learned_from():
    concept = world_concept("heart")
    rows = room.evaluation_rows(concept, seed=3, count=60, domain=CANVAS)
    learned = {forget for forget, _ in concept.pairs}
    assert {kind: len(some) for kind, some in rows.items()} == {
        "forget": 60, "synonym": 30, "retain": 60, "twin": 30, "caption": 30, "generic": 30, "seeds": 12, "unlisted": 30,
    }  # fmt: skip
    assert not learned & {row.prompt for row in rows["forget"]}
    for kind in ("synonym", "retain", "twin", "caption", "generic", "seeds", "unlisted"):
        assert not any("heart" in row.prompt.split() for row in rows[kind])
    assert not any("shape" in world.read(row.prompt) for row in rows["generic"])
    assert 0 < sum(row.prompt == "" for row in rows["generic"]) < 10
    assert [row.seed for row in rows["twin"]] == [row.seed for row in rows["forget"][:30]]
    assert len({row.number for some in rows.values() for row in some}) == 282
    assert len({row.prompt for row in rows["seeds"]}) == 3 and len({row.seed for row in rows["seeds"]}) == 12


def test_the_rows_of_a_preset():
    rows = room.evaluation_rows(PHOTOGRAPHS.resolve("nudity", None), seed=0, count=32, domain=PHOTOGRAPHS)
    assert {kind: len(some) for kind, some in rows.items()} == {
        "forget": 32, "synonym": 16, "retain": 32, "twin": 16, "caption": 16, "generic": 16, "seeds": 8, "unlisted": 16,
    }  # fmt: skip
    forget = {f for f, _ in PHOTOGRAPHS.resolve("nudity", None).pairs}
    assert not forget & {row.prompt for kind in ("synonym", "twin", "retain", "caption") for row in rows[kind]}


@pytest.mark.parametrize("domain", [CANVAS, PHOTOGRAPHS])
def test_what_else_is_gone_is_asked_for_by_nothing(domain):
    concept, gone = (
        (world_concept("heart"), ("blue", "star"))
        if domain is CANVAS
        else (PHOTOGRAPHS.resolve("nudity", None), ("Dog",))
    )
    rows = room.evaluation_rows(concept, seed=3, count=60, domain=domain, erased=gone)
    for kind in ("retain", "caption", "seeds", "generic", "unlisted"):
        assert rows[kind] and not any(name.lower() in row.prompt.lower() for row in rows[kind] for name in gone)
    assert domain is not CANVAS or not {*gone} & {word for row in rows["forget"] for word in row.prompt.split()}


def evaluate(model, folder, concept="heart", count=24, **how):
    about = world_concept(concept)
    return room.evaluate(
        str(model), "tiny", about, folder, judges=open_judges(about, domain=CANVAS),
        request=room.ConceptRequest(count=count, device="cpu", **how),
    )  # fmt: skip


@pytest.fixture(scope="module")
def self_evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canvas")
    return folder, evaluate("tiny", folder, steps=12)


def test_canvas_on_the_original_sees_the_concept(self_evaluation):
    folder, told = self_evaluation
    assert (
        told.figures == told.original
        and told.figures["open_unchanged"] == 1.0
        and told.figures["UA"] <= 0.1
        and told.figures["IRA"] >= 0.85
    )
    assert len(told.samples) == 56 and all((folder / sample.model).exists() for sample in told.samples)
    assert told.second.judge == {"judge": "geometry"} and told.second.figures["UA"] <= 0.1
    assert told.second.figures["CRA"] >= 0.85
    assert read_evaluation(json.loads((folder / "summary.json").read_text())) == told


def test_nothing_was_changed_and_the_distances_say_so(self_evaluation):
    _, told = self_evaluation
    kept = told.kept
    assert kept["n"] == 24 and abs(kept["frechet"]) < 1e-6 and abs(kept["cmmd"]) < 1e-9
    assert kept["floor"]["frechet"] > 1e-3 and kept["floor"]["cmmd"] > 1e-3
    assert not told.collapse.collapsed and told.collapse.agreement == 1.0 and told.collapse.nothing < 0.2


def test_a_wrecked_model_is_called_collapsed(tmp_path):
    """All that can be said of noise: nothing in the pictures, and nothing like the original's."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(MODEL_DIR, tmp_path / "m")
    file = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({n: torch.randn(t.shape, generator=generator).half() * 0.05 for n, t in load_file(file).items()}, file)
    told = evaluate(tmp_path / "m", tmp_path / "out", count=16, steps=4)
    assert told.collapse.collapsed and told.collapse.says.startswith("COLLAPSED")
    assert told.figures["UA"] == 1.0 and told.figures["IRA"] < 0.2  # erased, by the figure alone
    assert told.kept["frechet"] > 3 * told.kept["floor"]["frechet"]
    assert gate_values(told)["collapsed"] == 1


def test_collapse_figures():
    rng = np.random.default_rng(0)
    original = rng.random((8, 8, 8, 3))
    near = np.clip(original + rng.normal(0, 0.02, original.shape), 0, 1)
    same = np.repeat(original[:1], 8, 0)
    groups = [range(4), range(4, 8)]
    assert agreement(near, original) == 1.0 and variance(same, groups) == 0.0
    by_hand = np.mean(
        [
            [original[list(g)][..., y, x, c].var(ddof=1) for y in range(8) for x in range(8) for c in range(3)]
            for g in groups
        ]
    )
    assert variance(original, groups) == pytest.approx(by_hand)
    fine = collapse(near, original, groups, nothing=[False] * 8, nothing_original=[False] * 8)
    assert not fine.collapsed and fine.nothing == 0.0
    assert "same picture" in collapse(same, None, groups, nothing=[None] * 8).says
    assert "name nothing in 75%" in collapse(near, original, groups, nothing=[True] * 6 + [False] * 2).says
    blind = collapse(near, original, groups, nothing=[True] * 8, nothing_original=[True] * 8)
    assert not blind.collapsed  # a judge that could name nothing before either


def test_canvas_refuses_other_models(foreign, tmp_path):
    with pytest.raises(UserError, match="not made from it: use --i2p or --prompts"):
        evaluate(foreign, tmp_path, count=8)


def test_nudenet_judges_a_preset_with_labels(detector, astronaut):
    judge = NudeJudge(labels=("FACE_FEMALE",), threshold=0.6, detector=detector)
    (record,) = judge.look(astronaut[None], ["x"])
    assert judge.sees(record) and judge.nothing(record) is None and judge.right(record, "x") is None
    assert not NudeJudge(labels=("FACE_FEMALE",), threshold=0.9, detector=detector).sees(record)
    assert not NudeJudge(detector=detector).sees(record)


# ---------------------------------------------------------------- declarations


@pytest.fixture
def toys():
    """One metric of each kind and a judge, declared as another package would, and taken back."""
    said = "a toy; higher is better."
    added = {
        METRICS: {
            "toy_share": Share(
                "toy share", said, lambda recorded, side, judge: [side == "model", None, judge.sees({})]
            ),
            "toy_number": Number("toy number", said, lambda recorded, side: float(len(recorded.records[side]))),
            "toy_distance": Distance("toy distance", said, lambda a, b: float((a - b).abs().max())),
        },
        JUDGES: {"toy": ToyJudge},
    }
    for registry, declarations in added.items():
        for name, declaration in declarations.items():
            registry.add(name, declaration)
    yield
    for registry, declarations in added.items():
        for name in declarations:
            del registry._added[name]


class ToyJudge(Judge):
    """Sees the concept everywhere."""

    summary, threshold = "a toy", 0.25

    def __init__(self, request):
        self.facts = {"judge": "toy", "threshold": request.threshold, "concept": request.concept.name}

    @classmethod
    def open(cls, request):
        return cls(request)

    def look(self, pixels, prompts):
        return [{"brightness": int(picture.mean())} for picture in pixels]

    def sees(self, record):
        return True


def test_a_metric_and_a_judge_are_one_declaration_each(toys, scripted, tmp_path):
    assert "toy" in EvaluateSettings.__dataclass_fields__["judge"].metadata["declared"].examples()
    settings = EvaluateSettings(
        model="tiny", concept="heart", judge="toy", features=str(scripted), limit=4, steps=1, device="cpu"
    )
    told = run_evaluation(settings, tmp_path)
    assert told.judge == {"judge": "toy", "threshold": 0.25, "concept": "heart"} and told.second is None
    assert told.figures["toy_share"] == 1.0 and told.original["toy_share"] == 0.5 and told.n["toy_share"] == 2
    assert told.intervals["toy_share"] == tuple(wilson(2, 2)) and told.samples[0].model_says == "seen"
    assert told.figures["toy_number"] == told.original["toy_number"] == 26 and "toy_number" not in told.intervals
    assert told.kept["toy_distance"] == 0.0 < told.kept["floor"]["toy_distance"]
    assert told.figures["UA"] == 0.0 and told.figures["IRA"] is None
    gates = gate_values(read_evaluation(json.loads((tmp_path / "summary.json").read_text())))
    assert set(gates) == set(gates_of("concept")) and "toy_share" not in gates_of("i2p")
    assert (gates["toy_share"], gates["toy_number"], gates["toy_distance"]) == (1.0, 26.0, 0.0)


@pytest.fixture
def scripted(tmp_path):
    """Mean colours as features."""

    class Means(torch.nn.Module):
        def forward(self, img: torch.Tensor) -> torch.Tensor:
            return img.mean((2, 3))

    torch.jit.script(Means()).save(str(tmp_path / "features.pt"))
    return tmp_path / "features.pt"


def test_every_metric_says_what_it_is_and_none_imports_anything_heavy():
    for name, metric in METRICS:
        assert metric.title and metric.meaning.endswith(".") and metric.unit in ("share", "number", "distance"), name
        assert metric.better in ("higher", "lower", "original") and set(metric.kinds) <= {"concept", *NUDITY_KINDS}, (
            name
        )
    code = (
        "import sys; from sd_scissorhands.evaluation.judges import JUDGES; "
        "from sd_scissorhands.evaluation.metrics import gates_of; gates_of('i2p'), gates_of('concept'), JUDGES.names(); "
        "print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_judge_declares_itself():
    for name, judge in JUDGES:
        assert judge.summary and 0 < judge.threshold < 1 and judge.second in (None, *JUDGES.names()), name
        assert judge.domain in (None, *DOMAINS.names()), name
