"""The classifier room: data, models of three families through one road, the task's draws, and every figure's oracle."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from sd_scissorhands import ForgetSettings, forgetting
from sd_scissorhands.classifier import data as D
from sd_scissorhands.classifier import measure as M
from sd_scissorhands.classifier import reading as R
from sd_scissorhands.classifier.forgetting_task import ClassifierTask, head
from sd_scissorhands.classifier.load import (
    Classifier,
    hash_weights,
    open_classifier,
    profile_of,
    profile_of_model,
    save_classifier,
    wrap,
)
from sd_scissorhands.classifier.preprocess import prepare
from sd_scissorhands.classifier.train import Training, answer, fresh, retrain, train
from sd_scissorhands.comparison.forgettings import Forgettings
from sd_scissorhands.comparison.jobs import Comparison
from sd_scissorhands.errors import UserError
from sd_scissorhands.methods.batch_norm import statistics
from sd_scissorhands.methods.distributed import BatchSlice
from sd_scissorhands.methods.edits import newton
from sd_scissorhands.methods.repair import Repair
from sd_scissorhands.methods.selection import select
from sd_scissorhands.recipes import BATCH_NORM
from sd_scissorhands.tiny import MODEL_DIR


@pytest.fixture(scope="session")
def parts() -> D.Parts:
    return R.digits()


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> tuple[Classifier, Path]:
    """The embedded model and the directory where it is kept."""
    folder = tmp_path_factory.mktemp("digits")
    return open_classifier("digits", cache_dir=folder), folder


@pytest.fixture
def model(kept) -> nn.Module:
    return copy.deepcopy(kept[0].model)


@pytest.fixture(scope="session")
def families(tmp_path_factory) -> dict[str, Path]:
    """A ResNet and a ViT, four classes each, as transformers saves them."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    labels = dict(enumerate(("ant", "bee", "cat", "dog")))
    both = dict(id2label=labels, label2id={name: number for number, name in labels.items()})
    models = {
        "resnet": ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **both)
        ),
        "vit": ViTForImageClassification(
            ViTConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
                patch_size=8, **both,
            )
        ),
    }  # fmt: skip
    settings = {
        "resnet": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 16, "crop_pct": 0.875, "resample": 3},
        "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2},
    }
    folder = tmp_path_factory.mktemp("families")
    for name, network in models.items():
        network.save_pretrained(folder / name)
        means = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings[name] | means))
    return {name: folder / name for name in models}


def blank(count: int = 40, classes: int = 4, seed: int = 0) -> D.Dataset:
    """Random pictures (3, 16, 16) with labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    names = ("ant", "bee", "cat", "dog")[:classes]
    return D.Dataset(torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % classes, names)


def one_line(found: pytest.ExceptionInfo[UserError], *words: str) -> None:
    text = str(found.value)
    assert "\n" not in text and all(word in text for word in words), text


# ---------------------------------------------------------------- batch normalisation


def test_batch_normalisation_has_its_own_settings_before_and_after_a_model_is_opened(families, tmp_path):
    where = {name: str(folder) for name, folder in families.items()} | {"digits": "digits"}
    profiles = {name: profile_of_model(place) for name, place in where.items()}
    assert profiles == {"resnet": BATCH_NORM, "vit": "classifier", "digits": "classifier"}
    assert profile_of(open_classifier(where["resnet"]).model.state_dict()) == BATCH_NORM
    asked, data = (
        ForgetSettings(forget_class="ant", model=where["resnet"], recipe="retain-only"),
        D.Parts(*[blank()] * 3),
    )
    assert asked.resolved(BATCH_NORM).lr == 0.003 and asked.resolved("classifier").lr == 0.03
    assert dataclasses.replace(asked, lr=0.03).resolved(BATCH_NORM).lr == 0.03
    trimming = dataclasses.replace(asked, recipe="scissorhands").resolved(BATCH_NORM)
    assert (trimming.threshold_scope, trimming.top_k, trimming.steps) == ("layer", 0.005, 200)
    assert (trimming.projection, trimming.edit, trimming.batch_size) == ("scale-free", "reinitialise", 64)
    assert forgetting.prepare(asked, parts=data).settings.lr == 0.003
    jobs = Forgettings(Comparison(asked, ({"forget_class": "ant"},), ("retain-only", "salun"), 1)).jobs(tmp_path)
    assert [job.settings.lr for job in jobs] == pytest.approx([0.003, 0.001])


def of_resnet(families, **settings) -> tuple[ForgetSettings, D.Parts]:
    few = {"batch_size": 4, "steps": 4, "memory_every": 2, "device": "cpu"} | settings
    return ForgetSettings(forget_class="ant", model=str(families["resnet"]), **few), D.Parts(*[blank()] * 3)


def test_a_repair_moves_the_statistics_of_batch_normalisation_by_retained_pictures_alone(families, monkeypatch):
    asked, data = of_resnet(families, recipe="gradient-ascent")
    task = forgetting.prepare(asked, parts=data).task

    def moved(act) -> bool:
        before = {name: tensor.clone() for name, tensor in statistics(task.module).items()}
        act()
        return any(not torch.equal(tensor, before[name]) for name, tensor in statistics(task.module).items())

    assert statistics(task.module) and not task.module.training
    assert (
        not moved(lambda: task.forget(0))
        and not moved(lambda: task.retain(0))
        and not moved(lambda: task.explain("retain", 0))
    )
    assert not moved(lambda: task.repair(0, adversary=True))  # which takes no retained picture
    assert moved(lambda: task.repair(0))
    retained = task.repair(1)[1]  # of the module as it will be used, in eval mode
    torch.testing.assert_close(retained, task._losses(task.split.retain, task._rows("repair retain", 1)).mean())
    monkeypatch.setattr(task, "forgotten", lambda: False)
    selection = select({name: tensor.abs() for name, tensor in task.scope("head").items()}, 0.5)
    assert not moved(
        lambda: newton.remove(task, task.scope("head"), selection, newton.NewtonOptions(draws=1, rounds=1))
    )
    assert not any(layer.training for layer in task.module.modules())


def test_a_killed_repair_continues_with_its_running_statistics(families, tmp_path, monkeypatch):
    asked, data = of_resnet(families, recipe="gradient-ascent")
    whole = forgetting.forget(asked, tmp_path / "whole", parts=data)
    descend = Repair._descend

    def die(repair, *rest):
        if repair.step == 3:
            raise KeyboardInterrupt
        descend(repair, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Repair, "_descend", die)
        forgetting.forget(asked, tmp_path / "cut", parts=data)
    again = forgetting.forget(asked, tmp_path / "cut", parts=data, resume=True)
    assert again.weights_sha256 == whole.weights_sha256  # of parameters and statistics
    original = open_classifier(asked.model).model
    assert all(not torch.equal(tensor, statistics(original)[name]) for name, tensor in
               statistics(open_classifier(str(tmp_path / "cut" / "model")).model).items())  # fmt: skip


# ---------------------------------------------------------------- data


def test_digits_are_all_there_once_and_always_the_same(parts):
    again = R.digits()
    sizes = [len(part) for part in (parts.train, parts.unseen, parts.test)]
    assert sizes == [1257, 240, 300] and parts.train.pictures.shape[1:] == (1, 8, 8)
    assert torch.equal(parts.train.pictures, again.train.pictures) and torch.equal(parts.test.labels, again.test.labels)
    from sklearn.datasets import load_digits

    everything = torch.cat([part.pictures for part in (parts.train, parts.unseen, parts.test)])
    whole = torch.from_numpy(load_digits().images).float()[:, None] / 16
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, whole.numpy()))
    assert min(part.labels.bincount().min() for part in (parts.train, parts.unseen, parts.test)) >= 23


@pytest.mark.parametrize("seed", range(3))
def test_division_keeps_shares_and_loses_nothing(seed):
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 7 + [3])
    data = D.Dataset(torch.arange(88.0).view(-1, 1, 1, 1), labels, ("a", "b", "c", "d"))
    one, two = D.divide(data, 60, seed)
    assert len(one) == 60 and sorted([*one.pictures.flatten().tolist(), *two.pictures.flatten().tolist()]) == list(
        range(88)
    )
    assert all(abs(int((one.labels == c).sum()) - 60 / 88 * int((labels == c).sum())) <= 1 for c in range(4))


def test_class_split_keeps_the_class_apart(parts):
    split = D.split_by_class(parts, "3")
    assert split.kind == "class" and split.target == 3 and (split.forget.labels == 3).all()
    assert all((part.labels != 3).all() for part in (split.retain, split.validation, split.test))
    assert (split.test_forget.labels == 3).all() and set(split.unseen.labels.tolist()) == set(range(10))
    assert len(split.forget) + len(split.retain) == 1257
    assert torch.equal(parts.train.pictures[split.forgotten], split.forget.pictures)
    assert len(split.test) + len(split.test_forget) == len(parts.test)


def test_sample_split_by_numbers_and_at_random(parts, tmp_path):
    (tmp_path / "rows.txt").write_text("7\n\n3\n1256\n")
    split = D.split_by_indices(parts, R.read_indices(tmp_path / "rows.txt"))
    assert split.forgotten.tolist() == [3, 7, 1256] and split.target is None and split.test_forget is None
    assert torch.equal(split.forget.pictures, parts.train.pictures[[3, 7, 1256]]) and len(split.retain) == 1254
    one, two, other = (D.split_at_random(parts, 0.1, seed) for seed in (5, 5, 6))
    assert len(one.forget) == 126 and torch.equal(one.forgotten, two.forgotten)
    assert not torch.equal(one.forgotten, other.forgotten)


@pytest.mark.parametrize(
    "text,word",
    [("", "empty"), ("1.5", "whole number"), ("a\n", "line 1"), ("1257", "out of range"), ("-1", "out of range"),
     ("4\n5\n4", "twice"), ("\n".join(map(str, range(1257))), "nothing to keep")],
)  # fmt: skip
def test_bad_indices_are_one_line(parts, tmp_path, text, word):
    (tmp_path / "rows.txt").write_text(text)
    with pytest.raises(UserError) as found:
        D.split_by_indices(parts, R.read_indices(tmp_path / "rows.txt"))
    one_line(found, word, "--forget-indices")


def test_bad_choices_are_one_line(parts, tmp_path):
    (tmp_path / "picture.bin").write_bytes(b"\xff\xfe\x00\x81")
    only = D.Parts(*[part.rows(part.labels == 3) for part in (parts.train, parts.unseen, parts.test)])
    without = D.Parts(parts.train.rows(parts.train.labels != 3), parts.unseen, parts.test)
    for wrong, words in [
        (lambda: D.split_by_class(parts, "cat"), ("no class 'cat'", "0, 1, 2")),
        (lambda: D.split_by_class(only, "3"), ("nothing to keep",)),
        (lambda: D.split_by_class(without, "3"), ("nothing to forget",)),
        (lambda: D.split_at_random(parts, 1.0, 0), ("outside (0, 1)",)),
        (lambda: D.split_at_random(parts, 1e-9, 0), ("empty",)),
        (lambda: R.read_indices(tmp_path / "none.txt"), ("cannot be read",)),
        (lambda: R.read_indices(tmp_path / "picture.bin"), ("no text",)),
    ]:
        with pytest.raises(UserError) as found:
            wrong()
        one_line(found, *words)


def draw_folder(folder: Path, counts: dict[str, int], classes=("ant", "bee"), size=(20, 16)) -> Path:
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


def test_folder_in_all_its_layouts(tmp_path, families):
    opened = open_classifier(str(families["vit"]))
    whole = draw_folder(tmp_path / "a", {"train": 5, "val": 2, "test": 3})
    found = R.read_folder(whole, opened.names, opened.preprocess)
    assert [len(p) for p in (found.train, found.unseen, found.test)] == [10, 4, 6] and not found.divided
    assert found.train.pictures.shape == (10, 3, 16, 16) and found.train.labels.tolist() == [0] * 5 + [1] * 5
    with Image.open(whole / "train" / "bee" / "0.png") as picture:
        assert torch.equal(found.train.pictures[5], opened.preprocess(picture))
    shutil.rmtree(whole / "val")
    found = R.read_folder(whole, opened.names, opened.preprocess)
    assert [len(p) for p in (found.train, found.unseen, found.test)] == [10, 3, 3] and not found.divided
    bare = draw_folder(tmp_path / "b", {".": 10})
    one, two = (R.read_folder(bare, opened.names, opened.preprocess, seed=1) for _ in range(2))
    assert [len(p) for p in (one.train, one.unseen, one.test)] == [14, 3, 3] and one.divided
    assert torch.equal(one.test.pictures, two.test.pictures) and one.train.labels.bincount().tolist() == [7, 7]
    numbered = draw_folder(tmp_path / "c", {".": 4}, classes=("1", "3"))
    assert set(R.read_folder(numbered, opened.names, opened.preprocess).train.labels.tolist()) == {1, 3}


def test_bad_folders_are_one_line(tmp_path, families):
    opened = open_classifier(str(families["vit"]))
    (tmp_path / "empty" / "train" / "ant").mkdir(parents=True)
    draw_folder(tmp_path / "unknown", {"train": 1}, classes=("ant", "zebra"))
    draw_folder(tmp_path / "half", {"test": 1})
    for name, cut in (("cut", 400), ("junk", 0)):
        file = draw_folder(tmp_path / name, {"train": 1}) / "train" / "ant" / "0.png"
        file.write_bytes(file.read_bytes()[:cut] if cut else b"no picture")
    for name, words in [
        ("missing", ("no folder", ".npz")), ("empty", ("no picture",)), ("unknown", ("zebra", "ant, bee, cat, dog")),
        ("half", ("no train folder",)), ("cut", ("0.png", "no readable picture")), ("junk", ("0.png", "no readable picture")),
    ]:  # fmt: skip
        with pytest.raises(UserError) as found:
            R.read_folder(tmp_path / name, opened.names, opened.preprocess)
        one_line(found, str(tmp_path / name), *words)


def test_class_folders_are_read_by_the_one_reader(tmp_path, families):
    opened = open_classifier(str(families["vit"]))
    folder = draw_folder(tmp_path / "a", {".": 4}, classes=("ant", "bee"))
    os.mkfifo(folder / "ant" / "z.png")
    (folder / "bee" / "notes.txt").write_text("")
    Image.new("RGB", (16, 16)).save(folder / "loose.png")
    first, second = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "red")
    first.save(folder / "bee" / "y.gif", save_all=True, append_images=[second])
    parts = R.read_folder(folder, opened.names, opened.preprocess)
    assert sum(map(len, (parts.train, parts.unseen, parts.test))) == 9
    assert [remark.partition(": ")[2] for remark in parts.remarks] == [
        "pictures beside the class folders are left out: 1 (loose.png)",
        "4 pictures; skipped: FIFOs, sockets and devices: 1 (z.png)", "5 pictures; skipped: .txt files: 1 (notes.txt)",
        "of files with several frames the first is taken: 1 (y.gif)",
    ]  # fmt: skip
    for name in ("0.png", "1.png"):
        (folder / "ant" / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"holds pictures that cannot be read, 2 \(0.png, 1.png\)"):
        R.read_folder(folder, opened.names, opened.preprocess)
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a.npz"):
        R.read_npz(tmp_path / "a.npz")


def test_a_bomb_of_arrays_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", pictures=np.zeros((4000, 32, 32), np.uint8), labels=np.zeros(4000, int))
    assert len(R.read_npz(tmp_path / "a.npz").train)
    monkeypatch.setattr(R, "MOST_UNPACKED", 2**20)
    with pytest.raises(UserError, match="a hundred times what it is"):
        R.read_npz(tmp_path / "a.npz")


def test_configs_of_classifiers_are_bounded(tmp_path, families):
    folder = shutil.copytree(families["vit"], tmp_path / "vit")
    values = json.loads((folder / "config.json").read_text())
    for key, value in (("num_hidden_layers", 10**8), ("image_size", 10**9), ("hidden_size", "x")):
        (folder / "config.json").write_text(json.dumps(values | {key: value}))
        with pytest.raises(UserError, match=rf"config.json has {key} = .*, which must be a whole number from"):
            open_classifier(str(folder))


def test_npz_in_all_its_shapes(tmp_path, families):
    opened, rng = open_classifier(str(families["vit"])), np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 16, 16, 3), np.uint8), np.arange(20) % 4
    np.savez(tmp_path / "a.npz", images=pixels, y=labels, test_images=pixels[:6], test_y=labels[:6])
    found = R.read_npz(tmp_path / "a.npz", opened.names, opened.preprocess)
    assert len(found.train) == 20 and len(found.unseen) + len(found.test) == 6 and not found.divided
    assert torch.equal(found.train.pictures[3], opened.preprocess(Image.fromarray(pixels[3])))
    plain = R.read_npz(tmp_path / "a.npz")
    assert torch.equal(plain.train.pictures, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert plain.train.names == ("0", "1", "2", "3")
    np.savez(tmp_path / "b.npz", x=rng.normal(size=(20, 8, 8)), labels=labels, names=np.array(list("abcd")))
    found = R.read_npz(tmp_path / "b.npz", preprocess=opened.preprocess)  # floats are as the model takes them
    assert found.train.pictures.shape == (14, 1, 8, 8) and found.divided and found.train.names == tuple("abcd")
    for kind in (">f4", "g", "f2"):  # of the other byte order, of 80 bits, of 16
        np.savez(tmp_path / "c.npz", x=np.ones((20, 8, 8), kind), labels=labels)
        assert torch.equal(R.read_npz(tmp_path / "c.npz").train.pictures, torch.ones(14, 1, 8, 8))


def test_bad_npz_are_one_line(tmp_path):
    x, y, names = np.zeros((6, 8, 8), np.float32), np.arange(6) % 2, ("a", "b")
    bad = {
        "pickled": dict(x=np.array([None, {}], object), y=y), "lonely": dict(y=y), "unlabelled": dict(x=x),
        "short": dict(x=x, y=y[:5]), "floats": dict(x=x, y=y / 2), "flat": dict(x=x.reshape(6, 64), y=y),
        "nan": dict(x=x * np.nan, y=y), "many": dict(x=x, y=y + 1), "minus": dict(x=x, y=y - 1),
        "ints": dict(x=x.astype(int), y=y), "none": dict(x=x[:0], y=y[:0]), "renamed": dict(x=x, y=y, names=np.array(["b", "a"])),
        "differ": dict(x=x, y=y, test_x=x[:, :4, :4], test_y=y), "scalar": dict(x=x[0, 0, 0], y=y),
        "huge": dict(x=x.astype(float) + 1e300, y=y),
    }  # fmt: skip
    words = {
        "pickled": "pickled", "lonely": "no array", "unlabelled": "labels", "short": "one whole number", "floats": "one whole number",
        "flat": "(N, h, w)", "nan": "NaN", "many": "0 to 1", "minus": "-1", "ints": "uint8 or float", "none": "(N, h, w)",
        "renamed": "order", "differ": "differ in shape", "scalar": "one whole number", "huge": "infinite",
    }  # fmt: skip
    for name, arrays in bad.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "junk.npz").write_bytes(b"PK junk")
    np.save(tmp_path / "plain.npy", x)
    for file, word in [(f"{n}.npz", w) for n, w in words.items()] + [("junk.npz", "damaged"), ("plain.npy", "damaged"), ("not.npz", "exist")]:  # fmt: skip
        with pytest.raises(UserError) as found:
            R.read_npz(tmp_path / file, names)
        one_line(found, word)


# ---------------------------------------------------------------- models


def test_the_embedded_model_is_good_and_knows_its_training_pictures(kept, parts):
    right = [float((answer(kept[0].model, d).argmax(1) == d.labels).float().mean()) for d in (parts.train, parts.test)]
    assert right[0] == 1.0 and right[1] >= 0.98
    assert kept[0].names == tuple("0123456789") and not kept[0].model.training


def test_the_kept_model_is_the_trained_one(kept, parts):
    again = open_classifier("digits", cache_dir=kept[1])
    assert again.identity == kept[0].identity and again.name == "digits"
    assert torch.equal(answer(again.model, parts.test), answer(kept[0].model, parts.test))


@pytest.mark.parametrize("family", ["digits", "resnet", "vit"])
def test_saved_and_opened_again_is_the_same(family, kept, families, parts, tmp_path):
    opened = kept[0] if family == "digits" else open_classifier(str(families[family]))
    data = parts.test if family == "digits" else blank()
    save_classifier(opened, tmp_path / "model")
    again = open_classifier(str(tmp_path / "model"))
    assert torch.equal(answer(again.model, data), answer(opened.model, data)) and again.weights == opened.weights
    assert again.names == opened.names and again.preprocessing == opened.preprocessing and not again.model.training
    assert {f.suffix for f in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    grey = Image.fromarray(np.full((30, 20), 200, np.uint8))
    assert torch.equal(again.preprocess(grey), opened.preprocess(grey))


def test_digits_as_files_are_the_digits(kept, parts):
    """A picture of 8 x 8 pixels goes through the preprocessing as it is, up to eight bits."""
    pixels = (parts.test.pictures[0, 0] * 255).round().to(torch.uint8).numpy()
    assert (kept[0].preprocess(Image.fromarray(pixels)) - parts.test.pictures[0]).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("size", [(33, 21), (21, 40), (16, 16), (500, 400)])
@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "ConvNextLarge", "CLIP", "DeiT", "Bit"])
def test_preprocessing_equals_transformers(kind, size, tmp_path):
    import transformers

    settings = {
        "ViT": dict(size={"height": 24, "width": 20}), "ConvNext": dict(size={"shortest_edge": 24}, crop_pct=0.8),
        "ConvNextLarge": dict(size={"shortest_edge": 384}), "CLIP": dict(size={"shortest_edge": 18}, crop_size={"height": 18, "width": 18}),
        "DeiT": dict(size={"height": 20, "width": 20}, crop_size={"height": 18, "width": 18}),
        "Bit": dict(size={"shortest_edge": 20}, crop_size={"height": 24, "width": 24}, image_mean=[0.1, 0.2, 0.3]),
    }[kind]  # fmt: skip
    processor = getattr(transformers, f"{kind.removesuffix('Large')}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    wanted = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
    found = prepare(picture, json.loads((tmp_path / "preprocessor_config.json").read_text()), 3)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


def test_bad_models_are_one_line(families, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig

    def copied(name: str) -> Path:
        return shutil.copytree(families["vit"], tmp_path / name)

    weights = load_file(families["vit"] / "model.safetensors")
    (copied("unconfigured") / "config.json").unlink()
    BertConfig().save_pretrained(copied("bert"))
    (copied("damaged") / "config.json").write_text("{")
    file = copied("truncated") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    save_file(weights | {"classifier.bias": weights["classifier.bias"] * math.nan}, copied("nan") / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if "classifier" not in n},
        copied("headless") / "model.safetensors",
        {"format": "pt"},
    )
    save_file(
        weights | {"classifier.bias": torch.zeros(7)}, copied("misshapen") / "model.safetensors", {"format": "pt"}
    )
    save_file(weights | {"more": torch.zeros(7)}, copied("larger") / "model.safetensors", {"format": "pt"})
    pickled = copied("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (copied("bare") / "model.safetensors").unlink()
    (tmp_path / "file").write_text("")
    for name, words in {
        "missing": ("does not exist",), "file": ("is a file",), "unconfigured": ("no config.json",), "bert": ("bert", "no image classifier"),
        "damaged": ("config.json is damaged",), "truncated": ("cannot be loaded",), "nan": ("classifier.bias", "NaN"),
        "headless": ("lacks classifier.bias",), "misshapen": ("misshapen",), "larger": ("beyond the model, more",),
        "pickled": ("pickled", "never loaded"), "bare": ("no model.safetensors",),
    }.items():  # fmt: skip
        with pytest.raises(UserError) as found:
            open_classifier(str(tmp_path / name))
        one_line(found, *words)
    for name, words in {str(MODEL_DIR): ("diffusers pipeline", "sdscissor erase"), "nobody/nothing": ("hub",)}.items():
        with pytest.raises(UserError) as found:
            open_classifier(name)
        one_line(found, *words)


def test_pictures_need_known_preprocessing(families, tmp_path):
    picture = Image.new("RGB", (9, 9))
    bare = shutil.copytree(families["vit"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UserError) as found:
        open_classifier(str(bare)).preprocess(picture)
    one_line(found, "preprocessor_config.json", ".npz")
    with pytest.raises(UserError) as found:
        prepare(picture, {"image_processor_type": "ImageGPTImageProcessor"}, 3)
    one_line(found, "ImageGPT")


class Plain(nn.Sequential):
    """A module of somebody's own: returns logits, knows nothing of transformers."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4))


def test_a_module_of_ones_own(tmp_path):
    from safetensors.torch import load_file

    torch.manual_seed(0)
    opened = wrap(Plain(), ("ant", "bee", "cat", "dog"), name="mine")
    save_classifier(opened, tmp_path / "mine")
    assert opened.identity.to_json() == {"model": "mine", "weights_sha256": hash_weights(opened.model)}
    other = Plain()
    other.load_state_dict(load_file(tmp_path / "mine" / "model.safetensors"))
    assert hash_weights(other) == opened.weights and hash_weights(Plain()) != opened.weights
    assert json.loads((tmp_path / "mine" / "classes.json").read_text()) == list(opened.names)


# ---------------------------------------------------------------- training


def test_training_repeats_and_leaves_the_random_state(parts):
    data = parts.train.rows(range(200))
    models = [fresh(open_plain(), seed) for seed in (0, 0, 1)]
    torch.manual_seed(7)
    before, ticks = torch.get_rng_state(), []
    losses = [
        train(m, data, Training(3, 0.05, 32, kind), seed=0, tick=lambda: ticks.append(1))
        for m, kind in zip(models, ("sgd", "sgd", "adam"), strict=True)
    ]
    assert torch.equal(before, torch.get_rng_state()) and len(ticks) == 9 and not models[0].training
    assert losses[0] == losses[1] and hash_weights(models[0]) == hash_weights(models[1]) != hash_weights(models[2])
    for some, how in ((data.rows([]), Training(1, 0.1, 8)), (data, Training(5, 1e9, 8))):
        with pytest.raises(UserError) as found:
            train(models[0], some, how, seed=0)
        one_line(found)


def open_plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))


def test_retraining_starts_afresh_and_sees_only_what_is_kept(model, parts):
    split = D.split_by_class(parts, "3")
    before = hash_weights(model)
    again = [retrain(model, split.retain.rows(range(256)), Training(1, 0.05, 64), seed=3) for _ in range(2)]
    assert hash_weights(again[0]) == hash_weights(again[1]) != before == hash_weights(model)
    assert type(again[0]) is type(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(math.nan)  # nothing of the original goes into it
    assert hash_weights(fresh(model, 3)) == hash_weights(fresh(again[0], 3))


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_other_families_train_and_start_afresh(family, families):
    network = open_classifier(str(families[family])).model
    new = fresh(network, 1)
    assert hash_weights(new) == hash_weights(fresh(network, 1)) != hash_weights(network)
    data = blank(16)
    losses = train(new, data, Training(epochs=12, lr=0.01, batch_size=8, optimizer="adam"), seed=0)
    assert losses[-1] < 0.7 * losses[0]


def test_a_layer_that_cannot_be_reset_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    with pytest.raises(UserError) as found:
        fresh(nn.Sequential(nn.Linear(2, 2), Odd()), 0)
    one_line(found, "Odd", "reset_parameters")


# ---------------------------------------------------------------- the task


def everything(task: ClassifierTask, draw: int) -> list[torch.Tensor]:
    return [
        task.forget(draw), task.retain(draw), task.retain_each(draw), task.replacement(draw), *task.repair(draw),
        *task.repair(draw, BatchSlice(1, 2)), task.relearn(draw), task.explain("forget", draw),
        task.explain("retain", draw), task.respond(draw),
    ]  # fmt: skip


@pytest.mark.parametrize("repair", ["retain", "ascent", "random-label"])
def test_a_draw_repeats_whatever_came_before(model, parts, repair):
    split = D.split_at_random(parts, 0.1, 0)
    one, two = (ClassifierTask(model, split, batch_size=16, seed=4, repair=repair) for _ in range(2))
    wanted = [everything(one, draw) for draw in range(12)]
    torch.manual_seed(99)
    for draw in (11, 3, 1 << 20, 3, 0):
        found = everything(two, draw)
        if draw < 12:
            assert all(torch.equal(a, b) for a, b in zip(found, wanted[draw], strict=True))
    assert not torch.equal(wanted[0][2], wanted[1][2])
    other = ClassifierTask(model, split, batch_size=16, seed=5, repair=repair)
    assert not torch.equal(other.retain_each(0), wanted[0][2])


def test_losses_equal_plain_cross_entropy(model, parts):
    split = D.split_by_class(parts, "3")
    task = ClassifierTask(model, split, batch_size=len(split.forget), seed=0)
    whole = F.cross_entropy(model(split.forget.pictures).logits, split.forget.labels)  # one batch is all of D_f
    torch.testing.assert_close(task.forget(0), whole)
    torch.testing.assert_close(task.repair(0)[0], -whole)
    torch.testing.assert_close(task.relearn(5), whole)
    assert task.retain(0) == task.retain_each(0).mean() and task.retain_each(0).shape == (len(split.forget),)


def test_an_epoch_sees_every_picture_once(model, parts):
    task = ClassifierTask(model, D.split_at_random(parts, 0.1, 0), batch_size=21, seed=0)
    rows = torch.cat([task._rows("forget", draw) for draw in range(6)])
    assert sorted(rows.tolist()) == list(range(126))
    assert not torch.equal(task._rows("forget", 6), rows[:21])


def test_what_the_repair_descends(model, parts):
    split = D.split_by_class(parts, "3")
    tasks = {name: ClassifierTask(model, split, repair=name) for name in ("retain", "ascent", "random-label")}
    terms = {name: task.repair(1) for name, task in tasks.items()}
    assert terms["retain"][0] == 0 and terms["ascent"][0] < 0 < terms["random-label"][0]
    assert len({kept.item() for _, kept in terms.values()}) == 1
    sum(terms["retain"]).backward()  # a repair without a forget term still descends
    others = tasks["random-label"].others
    assert (others != 3).all() and set(others.tolist()) == set(range(10)) - {3}
    assert torch.equal(others, tasks["retain"].others)
    (grad,) = torch.autograd.grad(tasks["ascent"].repair(0)[0], [model.head.bias])
    assert grad.abs().sum() > 0
    for name, task in tasks.items():
        parts = [torch.stack(task.repair(1, BatchSlice(n, 3), ahead)) for n in range(3) for ahead in (True, False)]
        torch.testing.assert_close(torch.stack(parts).sum(0) / 3, torch.stack(terms[name]), rtol=1e-4, atol=1e-6)
    assert tasks["ascent"].repair(1, adversary=True)[1] == 0


def test_relevance_is_asked_of_unseen_pictures_alone(model, parts):
    poisoned = D.Dataset(parts.train.pictures * math.nan, parts.train.labels, parts.train.names)
    tests = D.Dataset(parts.test.pictures * math.nan, parts.test.labels, parts.test.names)
    clean, bad = (D.split_by_class(p, "3") for p in (parts, D.Parts(poisoned, parts.unseen, tests)))
    for side in ("forget", "retain"):
        one, two = (ClassifierTask(model, split, batch_size=16).explain(side, 2) for split in (clean, bad))
        assert torch.equal(one, two) and one.requires_grad and one.isfinite().all()
    assert ClassifierTask(model, bad).forget(0).isnan()  # the poison is where it should be


def test_relevance_is_asked_of_the_right_classes(model, parts):
    split = D.split_by_class(parts, "3")
    told = model(split.unseen.pictures).logits
    right = told.argmax(1) == split.unseen.labels
    true = told.gather(1, split.unseen.labels[:, None])[:, 0]
    for side, mask in (("forget", split.unseen.labels == 3), ("retain", split.unseen.labels != 3)):
        found = ClassifierTask(model, split, batch_size=1000).explain(side, 0)
        torch.testing.assert_close(found.sort().values, true[mask & right].sort().values)
    samples = D.split_by_indices(parts, (parts.train.labels == 5).nonzero().flatten()[:9].tolist())
    found = ClassifierTask(model, samples, batch_size=1000).explain("forget", 0)  # all nine are fives
    torch.testing.assert_close(found.sort().values, true[(split.unseen.labels == 5) & right].sort().values)
    with torch.no_grad():
        model.head.bias[3] = -1e4
    with pytest.raises(UserError) as error:
        ClassifierTask(model, split).explain("forget", 0)
    one_line(error, "unseen")


def test_the_pictures_to_explain_are_chosen_before_the_edit(model, parts):
    task = ClassifierTask(model, D.split_by_class(parts, "3"), batch_size=1000)
    count = len(task.explain("forget", 0))
    with torch.no_grad():
        model.head.bias[3] = -1e4
    assert len(task.explain("forget", 0)) == count > 20


def test_responses_come_from_one_pass_over_perturbed_copies(model, parts):
    split = D.split_by_indices(parts, [5])
    task, seen = ClassifierTask(model, split, batch_size=64), []
    handle = model.conv1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    response = task.respond(0)
    handle.remove()
    assert response.shape == (64,) and len(seen) == 1 and seen[0].shape == (64, 1, 8, 8)
    noise = seen[0] - split.forget.pictures
    assert abs(float(noise.std()) - 0.1) < 0.01 and abs(float(noise.mean())) < 0.01
    assert len(response.unique()) == 64


def test_how_it_stands(model, parts):
    split = D.split_by_class(parts, "3")
    task = ClassifierTask(model, split)
    assert task.share() == len(split.forget) / len(split.retain) and task.retained() > 0.97 and not task.forgotten()
    validation = model(split.validation.pictures).logits.argmax(1) == split.validation.labels
    assert task.retained() == pytest.approx(float(validation.double().mean()))
    with torch.no_grad():
        model.head.bias[3] = -1e4
    assert task.forgotten() and task.retained() > 0.97
    samples = ClassifierTask(model, D.split_at_random(parts, 0.1, 0))
    assert samples.forgotten() == (samples._accuracy(samples.split.forget) <= samples.retained())


def test_scope_leaves_norms_out_by_type(families, model, parts):
    split = D.split_by_class(D.Parts(blank(), blank(seed=1), blank(seed=2)), "ant")
    found = {}
    for name, folder in families.items():
        network = open_classifier(str(folder)).model
        task = ClassifierTask(network, split)
        norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm) for p in m.parameters()}  # fmt: skip
        found[name] = task.scope("full")
        assert norms and not norms & {id(p) for p in found[name].values()}
        assert len(found[name]) + len(norms) == len(list(network.parameters()))
        assert all(dict(network.named_parameters())[n] is p for n, p in found[name].items())
        weight = task.scope("head")
        assert {p.shape[0] for p in weight.values()} == {4} and len(weight) == 2
    digits = ClassifierTask(model, D.split_by_class(parts, "3"))
    assert set(digits.scope("full")) == {n for n, _ in model.named_parameters()}
    assert set(digits.scope("head")) == {"head.weight", "head.bias"} and set(digits.scope(r"conv\d\.w")) == {"conv1.weight", "conv2.weight"}  # fmt: skip
    for wrong in ("nothing", "("):
        with pytest.raises(UserError) as error:
            digits.scope(wrong)
        one_line(error, "--scope")


def test_a_task_that_cannot_be_is_one_line(families, model, parts):
    network = open_classifier(str(families["resnet"])).model
    split, four = D.split_by_class(parts, "3"), D.Parts(blank(), blank(), blank())
    few = D.Dataset(parts.train.pictures, parts.train.labels % 4, ("a", "b", "c", "d"))
    single = D.Dataset(blank().pictures, torch.zeros(40, dtype=torch.long), blank().names)
    for wrong, words in [
        (lambda: ClassifierTask(network, split), ("pictures of shape (1, 8, 8)",)),
        (lambda: ClassifierTask(model, D.split_by_class(D.Parts(few, few, few), "a")), ("10 classes", "4")),
        (lambda: ClassifierTask(network, D.split_by_class(four, "ant"), repair="hope"), ("hope", "ascent")),
        (lambda: ClassifierTask(network, D.split_by_class(four, "ant"), batch_size=0), ("--batch-size",)),
        (lambda: ClassifierTask(network, D.split_by_indices(D.Parts(single, single, single), [1])), ("single class",)),
        (lambda: head(nn.Conv2d(1, 1, 1)), ("no linear layer",)),
    ]:  # fmt: skip
        with pytest.raises(UserError) as found:
            wrong()
        one_line(found, *words)


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("hits,n", [(0, 30), (15, 30), (30, 30), (1, 1)])
def test_intervals_are_wilsons(hits, n):
    z, p = 1.959963984540054, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = M.share(hits, n)
    assert found.value == p and found.n == n
    assert (found.low, found.high) == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))  # fmt: skip


def test_accuracies_and_features_equal_a_plain_pass(model, parts):
    caught = []
    handle = model.head.register_forward_hook(lambda layer, inputs, output: caught.append(inputs[0]))
    told = model(parts.test.pictures).logits
    handle.remove()
    seen = M.outputs_of(model, parts.test)
    torch.testing.assert_close(seen.features, caught[0].detach())
    torch.testing.assert_close(seen.losses.float(), F.cross_entropy(told, parts.test.labels, reduction="none").detach())
    assert M.accuracy(seen).value == float((told.argmax(1) == parts.test.labels).double().mean())
    assert not model.head._forward_pre_hooks


def test_membership_of_a_random_half_is_chance():
    generator = torch.Generator().manual_seed(0)
    found = [M.mia(torch.rand(400, generator=generator), torch.rand(100, generator=generator)) for _ in range(5)]
    assert abs(np.mean([f.value for f in found]) - 0.5) < 0.04
    assert all(f.n == 500 and f.low < f.value < f.high for f in found)
    apart = M.mia(torch.rand(100, generator=generator), 2 + torch.rand(30, generator=generator))
    assert apart.value == 1.0 and apart.low < 1
    assert M.mia(torch.rand(3), torch.rand(50)).value is None


def seen_like(loss: float, spread: float, count: int, seed: int) -> M.Outputs:
    """Answers whose true class has about the given loss."""
    generator = torch.Generator().manual_seed(seed)
    margin = -math.log(math.expm1(loss)) + spread * torch.randn(count, generator=generator)
    return M.Outputs(torch.stack([margin, torch.zeros(count)], 1), torch.randn(count, 4, generator=generator), torch.zeros(count, dtype=torch.long))  # fmt: skip


def test_support_vectors_tell_members_from_others():
    retain, test = seen_like(0.01, 0.3, 500, 0), seen_like(0.5, 0.3, 200, 1)
    assert M.mia_svc(retain, test, seen_like(0.01, 0.3, 100, 2)).value < 0.05
    assert M.mia_svc(retain, test, seen_like(0.5, 0.3, 100, 3)).value > 0.95
    alike = M.mia_svc(retain, seen_like(0.01, 0.3, 200, 4), seen_like(0.01, 0.3, 300, 5))
    assert 0.3 < alike.value < 0.7 and alike.n == 300


def test_probe_finds_what_features_hold_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 5, generator=generator)
    known, empty = (M.Outputs(torch.zeros(300, 3), f, labels) for f in (noise + 6 * F.one_hot(labels, 5), noise))
    parts = [[M.Outputs(s.logits[r], s.features[r], s.labels[r]) for r in (slice(200), slice(200, 300))] for s in (known, empty)]  # fmt: skip
    assert M.probe([parts[0][0]], parts[0][1]).value > 0.97
    assert abs(M.probe([parts[1][0]], parts[1][1]).value - 1 / 3) < 0.15


def test_a_broken_model_is_one_line(model, parts):
    with torch.no_grad():
        model.head.bias[3] = math.nan
    with pytest.raises(UserError) as found:
        M.measure(model, D.split_by_class(parts, "3"))
    one_line(found, "NaN", "--lr")


def test_relearning_counts_steps_on_a_copy(model, parts):
    split = D.split_by_class(parts, "3")
    assert M.relearn(model, split.forget).value == 0
    with torch.no_grad():
        model.head.bias[3] = -30.0
    before = hash_weights(model)
    one, two = (M.relearn(model, split.forget, seed=2) for _ in range(2))
    assert one == two and 0 < one.low <= one.value <= one.high < 200 and one.n == 3 and hash_weights(model) == before
    capped = M.relearn(model, split.forget, cap=1)
    assert capped.value == 1 and "3 of 3" in capped.note


def test_steps_that_their_own_batch_rules_out_are_not_judged_and_the_count_is_the_same(model, parts, monkeypatch):
    split, judged, answer = D.split_by_class(parts, "3"), [], M.answer
    with torch.no_grad():
        model.head.bias[3] = -30.0
    monkeypatch.setattr(M, "answer", lambda module, data: judged.append(len(data)) or answer(module, data))
    found = M.relearn(model, split.forget, seed=2)
    few, judged[:] = len(judged), []
    monkeypatch.setattr(M, "CLEAR", math.inf)  # every step is judged
    assert M.relearn(model, split.forget, seed=2) == found
    assert 3 <= few < len(judged) / 2


def test_gap_is_the_mean_of_four_differences():
    one = {name: M.Estimate(v, 10, v, v) for name, v in zip(M.CLOSED, (0.0, 0.9, 0.8, 0.5), strict=True)}
    two = {name: M.Estimate(v, 10, v, v) for name, v in zip(M.CLOSED, (0.1, 1.0, 1.0, 0.5), strict=True)}
    found = M.gap(one | {"probe": M.Estimate(1.0, 1, 0, 1)}, two)
    assert found.value == pytest.approx(0.1) and found.n == 4 and found.low == found.high == found.value
    assert M.gap(one, one).value == 0
    assert M.gap({**one, "mia": M.Estimate(None, 0, 0, 1)}, two).value == pytest.approx(0.4 / 3)


def test_all_figures_of_the_original_and_of_a_retrained_model(kept, parts):
    split, ticks = D.split_by_class(parts, "3"), []
    original = M.measure(kept[0].model, split, tick=lambda: ticks.append(1))
    retrained = retrain(kept[0].model, split.retain, Training(epochs=10), seed=100)
    figures = M.measure(retrained, split, original=original["forget_accuracy"].value)
    assert len(ticks) == 4 and figures == M.measure(retrained, split)
    assert set(figures) == {"forget_accuracy", "retain_accuracy", "test_accuracy", "test_forget_accuracy", "mia", "mia_svc", "probe", "relearn"}  # fmt: skip
    assert original["forget_accuracy"].value == 1 and figures["forget_accuracy"].value == 0
    assert figures["test_accuracy"].value > 0.97 and figures["mia_svc"].value > 0.9 > 0.3 > original["mia_svc"].value
    assert abs(figures["mia"].value - 0.5) < 0.12 and figures["relearn"].value > 0 == original["relearn"].value
    assert figures["probe"].value > 0.8 and figures["probe"].n == len(split.test_forget)
    assert 0.2 < M.gap(original, figures).value < 0.35
    assert json.loads(json.dumps(figures["mia"].to_json()))["n"] == 128 + 31


def test_figures_of_forgotten_samples(kept, parts):
    split = D.split_at_random(parts, 0.1, 0)
    figures = M.measure(kept[0].model, split)
    assert "test_forget_accuracy" not in figures and figures["test_accuracy"].n == 300
    assert figures["probe"].n == figures["forget_accuracy"].n == 126 and figures["mia"].n == 426
    assert abs(figures["mia"].value - 0.5) < 0.1 and figures["relearn"].value == 0


def test_a_class_without_test_pictures_is_said(kept, parts):
    bare = D.Parts(parts.train, parts.unseen, parts.test.rows(parts.test.labels != 3))
    figures = M.measure(kept[0].model, D.split_by_class(bare, "3"))
    assert figures["mia"].value is None and figures["probe"].value is None and figures["test_forget_accuracy"].value is None  # fmt: skip
    assert figures["mia"].to_json()["note"] == "too few pictures"
