"""Judges that users bring: an image classifier by its directory, or an ONNX file; and what happens where one cannot be had."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import digits_world
import numpy as np
import pytest
import torch
from torch import Tensor

from sd_scissorhands import api
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.evaluation.image_classifier import open_classifier
from sd_scissorhands.evaluation.judge_set import open_judges
from sd_scissorhands.evaluation.judges import judges_named, parse_source
from sd_scissorhands.evaluation.judges.classifier import ClassifierJudge
from sd_scissorhands.evaluation.metrics.base import Recorded
from sd_scissorhands.evaluation.metrics.unchanged import anchor_share
from sd_scissorhands.evaluation.prompts import Row
from sd_scissorhands.tiny import world
from sd_scissorhands.tiny.train import make_drawings

CANVAS, PHOTOGRAPHS = DOMAINS["canvas"], DOMAINS["photographs"]
SHAPES = tuple(world.CATEGORIES["shape"])


def trained(folder: Path, names: Sequence[str], pictures: Tensor, labels: Tensor, steps: int) -> Path:
    """A small ResNet of transformers that names what pictures of 32 x 32 show, with its image processor."""
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", id2label=dict(enumerate(names)),
        label2id={name: at for at, name in enumerate(names)},
    )  # fmt: skip
    model = ResNetForImageClassification(config)
    processor = ConvNextImageProcessorPil(
        do_resize=False, size={"shortest_edge": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.randint(len(pictures), (64,), generator=torch.Generator().manual_seed(step))
        loss = model(pixel_values=pictures[rows].float() / 127.5 - 1, labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A judge of the shapes of the embedded world."""
    pictures, drawings = make_drawings(2000, 0)
    labels = torch.tensor([SHAPES.index(one.shape) for one in drawings])
    return trained(tmp_path_factory.mktemp("judge") / "shapes", SHAPES, pictures, labels, 240)


def judges_of(judge: str, concept: str = "heart", domain=CANVAS):
    return open_judges(domain.resolve(concept, None), domain=domain, judge=judge).judges


def test_a_classifier_of_the_worlds_shapes_agrees_with_the_worlds_judge(shapes, tmp_path):
    settings = EvaluateSettings(
        model="tiny", baseline="tiny", concept="heart", judge=f"{shapes}+canvas", limit=16, steps=12, device="cpu"
    )
    found = api.evaluate(settings, tmp_path / "eval")
    assert (
        found.judge["judge"] == "classifier"
        and found.judge["labels"] == ["heart"]
        and found.second.judge["judge"] == "canvas"
    )
    assert (
        found.figures["UA"] <= 0.25 and found.figures["IRA"] >= 0.6
    )  # it sees the hearts, and the siblings for what they are
    assert abs(found.figures["UA"] - found.second.figures["UA"]) <= 0.25
    assert found.figures["open_unchanged"] == 1.0  # the same model


def test_a_judge_of_handwritten_digits_by_its_directory_names_digits_that_it_never_saw(tmp_path):
    drawn, unseen = digits_world.draw(1000, 0), digits_world.draw(200, 1, held_out=True)
    digits = trained(tmp_path / "digits", tuple(digits_world.DIGITS), drawn.pixels, drawn.shown["digit"], 60)
    concept = PHOTOGRAPHS.resolve("three", "eight")
    judge = open_judges(concept, domain=PHOTOGRAPHS, judge=f"{digits}:three").judges[0]
    names = [unseen.named(row)["digit"] for row in range(200)]
    records = judge.look(unseen.pixels.permute(0, 2, 3, 1).numpy(), names)
    right = [judge.right(record, name) for record, name in zip(records, names, strict=True)]
    seen = [judge.sees(record) == (name == "three") for record, name in zip(records, names, strict=True)]
    assert np.mean([answer is True for answer in right]) >= 0.7 and np.mean(seen) >= 0.9, (
        np.mean(right),
        np.mean(seen),
    )


def test_it_decides_attacks_as_well(shapes, tmp_path):
    settings = AttackSettings(
        "paraphrase", "heart", "tiny", "tiny", judge=f"{shapes}:heart", count=8, sampling_steps=4, device="cpu"
    )
    found = attack(settings, tmp_path / "attack", measure_rest=False)
    assert found.judge["judge"] == "classifier" and found.n == 8


def test_labels_are_names_or_numbers_or_the_concepts_words(shapes):
    assert judges_of(str(shapes))[0].seen == ("heart",)
    assert judges_of(f"{shapes}:circle,{SHAPES.index('ring')}")[0].seen == ("circle", "ring")
    with pytest.raises(UserError, match="has no label 'square dance': choose of circle"):
        judges_of(f"{shapes}:square dance")
    with pytest.raises(UserError, match="say which of its labels mean 'red'"):
        judges_of(str(shapes), "red")


def test_prompts_that_name_one_label_are_right_or_wrong(shapes):
    judge = judges_of(str(shapes))[0]
    record = {"probability": 0.1, "best": "ring"}
    assert judge.right(record, "a red ring on white") is True and judge.right(record, "a star") is False
    assert judge.right(record, "something") is None and judge.right(record, "a ring and a star") is None
    assert judge.shown(record) == judge.answer(record) == "ring" and not judge.sees(record)


def test_what_names_no_judge_is_refused_at_once(shapes, tmp_path):
    for text, why in (
        ("nudnet", "'nudnet' is unknown, did you mean 'nudenet'? Choose"), ("canvas+geometry+clip", "names 3 judges"), (str(tmp_path), "is no image classifier"),
        (f"{shapes}+{shapes}:ring", "two of one kind"), ("classifier", "names no classifier"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(why)):
            judges_named(text)
            judges_of(text)
    assert parse_source("a/b:c,d") == ("a/b", ("c", "d")) and parse_source("a/b") == ("a/b", ())


def test_files_that_are_no_classifier_are_refused(shapes, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    pickled = tmp_path / "pickled"
    shutil.copytree(shapes, pickled)
    weights = load_file(pickled / "model.safetensors")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    broken = tmp_path / "broken"
    shutil.copytree(shapes, broken)
    save_file(
        {name: t * float("nan") if t.is_floating_point() else t for name, t in weights.items()},
        broken / "model.safetensors",
    )
    lacking = tmp_path / "lacking"
    shutil.copytree(shapes, lacking)
    (lacking / "preprocessor_config.json").unlink()
    damaged = tmp_path / "damaged"
    shutil.copytree(shapes, damaged)
    (damaged / "config.json").write_text("{")
    for folder, why in (
        (pickled, "never loaded"),
        (broken, "NaN"),
        (lacking, "image processor"),
        (damaged, "config.json"),
    ):
        with pytest.raises(UserError, match=why) as error:
            open_classifier(str(folder))
        assert "\n" not in str(error.value) and "--judge" in str(error.value)


def onnx_of(weights: np.ndarray) -> bytes:
    """An ONNX graph by hand: (B, 3, 4, 4) flattened, times `weights` (48, labels)."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def shaped(name: bytes, sizes: list[int | bytes]) -> bytes:
        dims = b"".join(field(1, field(2, one) if isinstance(one, bytes) else field(1, one)) for one in sizes)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    flatten = field(1, b"x") + field(2, b"flat") + field(4, b"Flatten")
    product = field(1, b"flat") + field(1, b"w") + field(2, b"y") + field(4, b"MatMul")
    tensor = field(1, weights.shape[0]) + field(1, weights.shape[1]) + field(2, 1) + field(8, b"w")
    tensor += field(9, weights.astype("<f4").tobytes())
    graph = field(1, flatten) + field(1, product) + field(2, b"g") + field(5, tensor)
    graph += field(11, shaped(b"x", [b"batch", 3, 4, 4])) + field(12, shaped(b"y", [b"batch", weights.shape[1]]))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def test_an_onnx_file_with_its_labels_beside_it_judges(tmp_path):
    file = tmp_path / "light.onnx"
    brightness = np.stack([np.full(48, -1.0), np.full(48, 1.0)], 1)
    file.write_bytes(onnx_of(brightness))
    with pytest.raises(UserError, match=r"light\.onnx\.json"):
        open_classifier(str(file))
    (tmp_path / "light.onnx.json").write_text(json.dumps({"labels": ["dark", "light"], "size": 4}))
    judge = judges_of(f"{file}:light")[0]
    pictures = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    assert [judge.sees(one) for one in judge.look(pictures, ["", ""])] == [False, True]
    file.write_bytes(onnx_of(brightness / 96))  # answers that are no distribution, whatever their size
    assert judges_of(f"{file}:light")[0].look(pictures[1:], [""])[0]["probability"] > 0.5
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no ONNX file"):
        open_classifier(str(file))


def test_without_clip_nudenet_goes_on_and_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = open_judges(PHOTOGRAPHS.resolve("nudity", None), domain=PHOTOGRAPHS)
    assert [judge.facts["judge"] for judge in found.judges] == ["nudenet"]
    assert "clip does not judge beside it" in found.remarks[0] and "1.7 GB" in found.remarks[0]
    for asked in (dict(clip="openai/clip-vit-base-patch32"), dict(judge="clip")):
        with pytest.raises(UserError, match="--clip"):
            open_judges(PHOTOGRAPHS.resolve("nudity", None), domain=PHOTOGRAPHS, **asked)


def test_a_damaged_clip_that_is_here_is_named_and_no_download(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = Path("openai/clip-vit-large-patch14")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    (remark,) = open_judges(PHOTOGRAPHS.resolve("nudity", None), domain=PHOTOGRAPHS).remarks
    assert f"{folder}/config.json is missing or damaged" in remark and "download" not in remark


def test_a_preset_names_its_judge_and_what_prompts_call_its_labels(shapes, tmp_path):
    preset = tmp_path / "ovals.toml"
    preset.write_text(
        f'''title = "Hearts"\nexplicit = false\njudge = "{shapes}:heart"\ntemplates = ["{{}}", "a red {{}}"]\nneighbours = ["a ring"]\n'''
        """judge_names."ring" = "hoop"\n[words]\n"a heart" = "a triangle"\n"""
    )
    concept = PHOTOGRAPHS.resolve(str(preset), None)
    judge = open_judges(concept, domain=PHOTOGRAPHS).judges[0]
    assert judge.facts["judge"] == "classifier" and judge.facts["labels"] == ["heart"]
    assert judge.right({"probability": 0.0, "best": "ring"}, "a red hoop") is True
    assert judge.right({"probability": 0.0, "best": "ring"}, "a red ring") is None

    other = open_judges(concept, domain=PHOTOGRAPHS, judge=f"{shapes}:ring").judges[
        0
    ]  # the names are of the preset's alone
    assert other.called["ring"] == "ring" and "names" not in other.facts


def test_the_anchor_counts_as_drawn_only_where_a_label_can_say_so(shapes):
    found = PHOTOGRAPHS.resolve("a heart", "a triangle")
    judge = open_judges(found, domain=PHOTOGRAPHS, judge=f"{shapes}:heart").judges[0]
    record = {"probability": 0.0, "best": "triangle"}
    assert judge.shown(record) == "a triangle" and judge.right(record, "two pictures, one triangle") is True

    def share(anchor):
        concept = PHOTOGRAPHS.resolve("a heart", anchor)
        judges = open_judges(concept, domain=PHOTOGRAPHS, judge=f"{shapes}:heart")
        recorded = Recorded(
            {"generic": [Row(0, "something", 1)]}, {"model": {0: {"classifier": record}}}, judges, concept
        )
        return anchor_share(recorded, "model", "generic")

    assert share("a triangle") == 1.0 and share("a star") == 0.0 and share("a teapot") is None


def test_clip_beside_a_judge_that_does_not_use_it_is_refused(shapes):
    for judge in (str(shapes), "canvas", f"{shapes}+canvas"):
        with pytest.raises(UserError, match="--clip some/clip has no effect with --judge"):
            open_judges(CANVAS.resolve("heart", None), domain=CANVAS, judge=judge, clip="some/clip")


def classifier_of(labels, numbers, **more):
    from sd_scissorhands.evaluation.image_classifier import ImageClassifier, _distinct

    rows = np.array([numbers], float)
    return ImageClassifier("own", "0", _distinct("own", labels), lambda pictures: rows.repeat(len(pictures), 0), **more)


def test_labels_that_do_not_exclude_each_other_do_not_compete():
    picture = np.zeros((1, 4, 4, 3), np.uint8)
    assert classifier_of(["a", "b"], [4.0, 4.0])(picture)[0].tolist() == [0.5, 0.5]
    both = classifier_of(["a", "b"], [4.0, 4.0], exclusive=False)
    judge = ClassifierJudge(both, ["a", "b"])
    assert judge.look(picture, [""])[0]["probability"] == pytest.approx(0.982, abs=1e-3)


def test_labels_of_imagenet_are_called_as_people_call_them():
    names = ["crane", "tench, Tinca tinca", "golden_retriever", "crane"]
    judge = ClassifierJudge(classifier_of(names, [0, 0, 3.0, 0]), ["golden_retriever"])
    assert judge.classifier.labels == ("crane #0", "tench, Tinca tinca", "golden_retriever", "crane #3")
    record = judge.look(np.zeros((1, 4, 4, 3), np.uint8), [""])[0]
    assert judge.shown(record) == "golden retriever" and judge.right(record, "a golden retriever on grass") is True
    assert judge.right(record, "a tench in a river") is False


def test_a_config_of_other_types_is_one_line(shapes, tmp_path):
    import shutil

    folder = tmp_path / "odd"
    shutil.copytree(shapes, folder)
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"architectures": 5}, {"architectures": None}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match="is no image classifier"):
            open_classifier(str(folder))
