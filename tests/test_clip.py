"""CLIP and TorchScript features: a small random CLIP of the real classes, its judge, and every way to fail in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation import concept as room
from sd_scissorhands.evaluation.clip import Clip, open_clip
from sd_scissorhands.evaluation.features import open_features, reference_features
from sd_scissorhands.evaluation.judge_set import open_judges
from sd_scissorhands.evaluation.judges.clip import CLIP_TEMPLATES, EMPTY, ConceptJudge
from sd_scissorhands.evaluation.metrics import gate_values
from sd_scissorhands.evaluation.metrics.clip_score import score
from sd_scissorhands.pictures import centre_square, read_frames
from sd_scissorhands.report import write_evaluation_report

PHOTOGRAPHS = DOMAINS["photographs"]

PROMPTS = ["a red heart", "a blue ring", "a striped star in the night", "a green circle", "a cross"]


@pytest.fixture(scope="session")
def clip(clip_dir) -> Clip:
    return open_clip(str(clip_dir), "cpu")


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """(5, 40, 56, 3): smooth pictures of differing colours."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 7, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


@pytest.fixture
def copied(clip_dir, tmp_path):
    return shutil.copytree(clip_dir, tmp_path / "copied")


# ---------------------------------------------------------------- embeddings


def test_embeddings_have_length_one_and_say_where_they_come_from(clip, clip_dir, pixels):
    import hashlib

    seen, read = clip.pictures(pixels), clip.texts(PROMPTS)
    assert seen.shape == read.shape == (5, 16) and seen.dtype == read.dtype == torch.float32
    torch.testing.assert_close(torch.cat([seen, read]).norm(dim=1), torch.ones(10))
    sha256 = hashlib.sha256((clip_dir / "model.safetensors").read_bytes()).hexdigest()
    assert clip.name == str(clip_dir) and clip.facts == {
        "clip": str(clip_dir), "sha256": sha256, "config_sha256": clip.config_sha256,
    }  # fmt: skip
    assert len(clip.config_sha256) == 64
    assert clip.pictures(pixels[:0]).shape == clip.texts([]).shape == (0, 16)


def test_embeddings_are_those_of_the_model_by_hand(clip, clip_dir, pixels):
    """Pillow's resizing, CLIP's mean and deviation, and the towers one layer at a time, from the file."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_dir).eval()
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    ready = []
    for picture in pixels:  # the shorter edge 40 -> 32, the longer 56 -> 44, then the middle 32
        small = np.asarray(Image.fromarray(picture).resize((44, 32), Image.Resampling.BICUBIC))[:, 6:38]
        ready.append(((torch.tensor(small) / 255 - mean) / deviation).permute(2, 0, 1))
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(torch.stack(ready)).pooler_output)
        read = [
            model.text_projection(model.text_model(torch.tensor([clip.tokenizer(text)["input_ids"]])).pooler_output)
            for text in PROMPTS
        ]
    torch.testing.assert_close(clip.pictures(pixels), seen / seen.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    expected = torch.cat(read)
    torch.testing.assert_close(clip.texts(PROMPTS), expected / expected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_embeddings_do_not_depend_on_the_batch_size(clip, pixels, monkeypatch):
    seen, read = clip.pictures(pixels), clip.texts(PROMPTS)
    for size in (1, 2):
        monkeypatch.setattr("sd_scissorhands.evaluation.clip.BATCH", size)
        torch.testing.assert_close(clip.pictures(pixels), seen, atol=1e-5, rtol=0)
        torch.testing.assert_close(clip.texts(PROMPTS), read, atol=1e-5, rtol=0)


def test_pictures_of_any_size_and_texts_of_any_length(clip):
    for height, width in ((1, 1), (3, 3), (3, 200), (32, 32), (65, 31)):
        assert clip.pictures(np.full((2, height, width, 3), 90, np.uint8)).isfinite().all()
    long = clip.texts(["star " * 200, "star " * 300])
    torch.testing.assert_close(long[0], long[1])
    for wrong in (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="must be"):
            clip.pictures(wrong)


def test_the_score_is_a_hundred_times_the_cosine_cut_at_zero(clip, pixels):
    seen, read = clip.pictures(pixels), clip.texts(PROMPTS)
    expected = [100 * max(0.0, float(np.dot(x, y))) for x, y in zip(seen.numpy(), read.numpy(), strict=True)]
    np.testing.assert_allclose(score(seen, read), expected, atol=1e-4)
    assert score(seen, seen).tolist() == pytest.approx([100] * 5) and score(seen, -seen).tolist() == [0] * 5


def test_the_score_is_torchmetrics_own(clip, pixels):
    """Pair by pair, through torchmetrics' code with the same model."""
    from torchmetrics.functional.multimodal import clip_score

    def processor(text=None, images=None, **options):
        if images is None:
            return clip.tokenizer(text, **options)
        return clip.processor(
            images=[image.numpy() for image in images], input_data_format="channels_first", return_tensors="pt"
        )

    class Plain:
        """What torchmetrics 1.9 expects of a model: features as tensors, as transformers 4 gave them."""

        config = clip.model.config

        def to(self, device):
            return self

        def get_image_features(self, pixel_values):
            return clip.model.get_image_features(pixel_values).pooler_output

        def get_text_features(self, ids, mask):
            return clip.model.get_text_features(ids, mask).pooler_output

    ours = score(clip.pictures(pixels), clip.texts(PROMPTS)).tolist()
    theirs = [
        float(clip_score(torch.tensor(picture).permute(2, 0, 1), prompt, lambda: (Plain(), processor)))
        for picture, prompt in zip(pixels, PROMPTS, strict=True)
    ]
    assert ours == pytest.approx(theirs, abs=1e-3) and max(ours) > 0


# ---------------------------------------------------------------- what is refused


def refused(source, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        open_clip(str(source), "cpu")
    message = str(caught.value)
    assert message.startswith(f"--clip {source}") and "\n" not in message
    assert all(part in message for part in said), message


def test_sources_that_are_not_there():
    refused(
        "openai/clip-vit-base-patch32", "cannot be had from the hub", "HF_HUB_OFFLINE is set", "name a local directory"
    )
    refused("./nowhere", "does not exist")
    refused("nowhere", "does not exist")
    refused(__file__, "is a file")


def test_weights_that_do_not_fill_the_model_are_refused(copied):
    tensors = load_file(copied / "model.safetensors")
    lost = tensors.pop("visual_projection.weight")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    refused(copied, "is incomplete", "visual_projection.weight")
    save_file(
        {**tensors, "visual_projection.weight": lost[:8]}, copied / "model.safetensors", metadata={"format": "pt"}
    )
    refused(copied, "cannot be loaded")


def test_pickled_weights_are_never_loaded(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    refused(copied, "never loaded", "safe_serialization=True")


def test_truncated_weights(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(copied, "cannot be loaded")


def test_weights_that_hold_nan(copied):
    tensors = load_file(copied / "model.safetensors")
    tensors["text_model.embeddings.token_embedding.weight"][3] = float("nan")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    refused(copied, "holds NaN")


def test_other_families_and_lost_files(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    refused(copied, "is a siglip model")
    (copied / "config.json").write_text("{")
    refused(copied, "config.json is missing or damaged")
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "preprocessor_config.json").unlink()
    refused(copied, "cannot be loaded")
    (copied / "tokenizer.json").unlink()
    refused(copied, "has no tokenizer.json")


def test_a_tokenizer_or_image_processor_of_another_model(copied):
    preprocessor = copied / "preprocessor_config.json"
    was = preprocessor.read_text()
    preprocessor.write_text(was.replace('"height": 32', '"height": 64').replace('"width": 32', '"width": 64'))
    refused(copied, "its parts do not fit together")
    preprocessor.write_text(was)
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 834  # never in a text: pooling would read the first token of every text
    (copied / "config.json").write_text(json.dumps(config))
    refused(copied, "cannot tell two texts apart")


# ---------------------------------------------------------------- the judge

OTHERS = ["a triangle", "a blue ring", "a green circle"]


@pytest.fixture(scope="session")
def judge(clip) -> ConceptJudge:
    return ConceptJudge(
        clip, concept="heart", texts=["a heart", "a valentine"], others=["Heart", *OTHERS], candidates=PROMPTS
    )


def test_the_judge_says_what_it_is(judge, clip):
    json.dumps(judge.facts)
    assert judge.facts["judge"] == "clip" and judge.facts["sha256"] == clip.sha256
    assert judge.facts["others"] == OTHERS and judge.facts["candidates"] == 5 and judge.facts["threshold"] == 0.5
    assert judge.names == ("heart", *OTHERS)


def test_records_are_what_plain_numpy_computes(judge, clip, clip_dir, pixels):
    records = judge.look(pixels, PROMPTS)
    assert json.loads(json.dumps(records)) == records and len(records) == 5
    seen, own = clip.pictures(pixels).double().numpy(), clip.texts(PROMPTS).double().numpy()
    empty = clip.texts(EMPTY).double().numpy()
    scale = float(load_file(clip_dir / "model.safetensors")["logit_scale"].exp())
    classes = []
    for texts in (["a heart", "a valentine"], *([other] for other in OTHERS)):
        mean = clip.texts([t.replace("{}", text) for t in CLIP_TEMPLATES for text in texts]).double().numpy().mean(0)
        classes.append(mean / np.linalg.norm(mean))
    for i, record in enumerate(records):
        raised = np.exp(scale * np.array([seen[i] @ c for c in classes]))
        assert record["probability"] == pytest.approx(raised[0] / raised.sum(), abs=1e-4)
        assert record["best"] == ("heart", *OTHERS)[int(raised.argmax())]
        assert record["score"] == pytest.approx(max(0, 100 * seen[i] @ own[i]), abs=1e-3)
        blank, asked = np.exp(scale * (empty @ seen[i]).max()), np.exp(scale * own[i] @ seen[i])
        assert record["nothing"] == pytest.approx(blank / (blank + asked), abs=1e-4)
        assert record["right"] == (int((own @ seen[i]).argmax()) == i)
        assert judge.sees(record) == (record["probability"] >= 0.5)
        assert judge.nothing(record) == ((empty @ seen[i]).max() > own[i] @ seen[i])
        assert judge.right(record, PROMPTS[i]) is record["right"]
    assert len({record["probability"] for record in records}) == 5


def test_the_judge_finds_what_is_there(judge, clip):
    """Pictures in the place of their words: embeddings that are those of texts."""
    found = judge.describe(
        clip.texts(["a heart", "a blue ring", "random noise"]), ["a red heart", "a blue ring", "a cross"]
    )
    assert [record["best"] for record in found[:2]] == ["heart", "a blue ring"]
    assert judge.sees(found[0]) and not judge.sees(found[1])
    assert [judge.nothing(record) for record in found] == [False, False, True]
    assert judge.right(found[1], "a blue ring") is True and judge.right(found[2], "a cross") is False


def test_records_do_not_depend_on_the_batch(judge, pixels):
    together = judge.look(pixels, PROMPTS)
    for at in range(5):
        (alone,) = judge.look(pixels[at : at + 1], PROMPTS[at : at + 1])
        assert (alone["best"], alone["right"]) == (together[at]["best"], together[at]["right"])
        for number in ("probability", "score", "nothing"):
            assert alone[number] == pytest.approx(together[at][number], abs=1e-3)
    assert judge.look(pixels[:0], []) == []


def test_a_prompt_among_no_others_and_ties(clip, pixels):
    def right(candidates, prompts):
        judge = ConceptJudge(clip, concept="heart", texts=["a heart"], others=["a ring"], candidates=candidates)
        return [
            judge.right(record, prompt) for record, prompt in zip(judge.look(pixels[:2], prompts), prompts, strict=True)
        ]

    assert right([], PROMPTS[:2]) == [None, None]
    assert right(["a cross", "a cross"], ["a cross"] * 2) == [True, True]
    assert right(["A CROSS"], ["a cross"] * 2) == [True, True]  # the tokenizer knows no capitals: the same embedding


@pytest.mark.parametrize(
    "changed",
    [dict(texts=[]), dict(others=[]), dict(others=["heart", "A heart"]), dict(threshold=0.0), dict(threshold=1.5)],
)
def test_judges_that_could_judge_nothing(clip, changed):
    asked = dict(concept="heart", texts=["a heart"], others=["a ring"], candidates=[], threshold=0.5)
    with pytest.raises(ValueError, match="a ConceptJudge needs"):
        ConceptJudge(clip, **{**asked, **changed})


def test_prompts_and_pictures_must_be_as_many(judge, pixels):
    with pytest.raises(ValueError, match="5 pictures and 1 prompts"):
        judge.look(pixels, ["a heart"])


# ---------------------------------------------------------------- TorchScript


class Flagged(nn.Module):
    """Called as NVIDIA's Inception is: bytes in, a flag for features."""

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        found = img.float().mean((2, 3))
        return found if return_features else found.softmax(1)


class Bare(nn.Module):
    """Called with floats in [0, 1] alone."""

    def forward(self, img: Tensor) -> Tensor:
        return torch.cat([img.mean((2, 3)), img.amax((2, 3))], 1)


class Maps(nn.Module):
    def forward(self, img: Tensor) -> Tensor:
        return img


class Nothing(nn.Module):
    def forward(self, img: Tensor) -> Tensor:
        return img.mean((2, 3)) / 0


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, img: Tensor) -> Tensor:
        return self.head(img.flatten(1))


@pytest.fixture
def scripted(tmp_path):
    def save(module: nn.Module):
        torch.jit.script(module).save(str(tmp_path / "features.pt"))
        return tmp_path / "features.pt"

    return save


def test_both_ways_to_call_a_torchscript_file(scripted, pixels):
    means = torch.tensor(pixels).double().mean((1, 2)).float()
    torch.testing.assert_close(open_features(scripted(Flagged()))(pixels), means)
    found = open_features(scripted(Bare()))(pixels)
    assert found.shape == (5, 6) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, :3], means / 255)
    assert found[:, 3:].max() <= 1


def test_a_traced_file_of_half_precision_gives_float32(tmp_path, pixels):
    class Half(nn.Module):
        def forward(self, img: Tensor) -> Tensor:
            return img.mean((2, 3)).half()

    torch.jit.trace(Half(), torch.zeros(2, 3, 8, 8)).save(str(tmp_path / "t.pt"))
    assert open_features(tmp_path / "t.pt")(pixels).dtype == torch.float32


@pytest.mark.parametrize(
    "module,said",
    [(Maps(), r"gives \(5, 3, 40, 56\) for 5"), (Nothing(), "gives NaN or inf"), (Fixed(), "cannot be run on")],
)
def test_files_that_give_no_features(scripted, pixels, module, said):
    extract = open_features(scripted(module))
    with pytest.raises(UserError, match=said) as caught:
        extract(pixels)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_torchscript(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pt")
    (tmp_path / "text.pt").write_text("no")
    for name, said in (
        ("pickle.pt", "no TorchScript file"),
        ("text.pt", "no TorchScript file"),
        ("gone.pt", "is no file"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            open_features(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_features_of_a_folder(scripted, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200  # the centre square
    Image.fromarray(wide).save(folder / "a.png")
    Image.fromarray(np.full((30, 30), 100, np.uint8)).save(folder / "b.png")  # grey, another size
    Image.fromarray(np.full((30, 30, 4), 50, np.uint8)).save(folder / "c.png")
    extract = open_features(scripted(Flagged()))
    expected = torch.tensor([[200.0] * 3, [100.0] * 3, [50.0] * 3])
    for batch in (1, 2, 8):
        torch.testing.assert_close(reference_features(folder, extract, batch=batch), expected)
        torch.testing.assert_close(reference_features(folder, extract, batch=batch, size=16), expected)
    (frame,) = read_frames(folder / "a.png")
    assert centre_square(frame).shape == (20, 20, 3) and centre_square(frame, 16).shape == (16, 16, 3)


def test_folders_that_give_no_reference(scripted, tmp_path):
    extract, folder = open_features(scripted(Bare())), tmp_path / "real"
    with pytest.raises(UserError, match="is no directory"):
        reference_features(folder, extract)
    folder.mkdir()
    with pytest.raises(UserError, match="holds no picture"):
        reference_features(folder, extract)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(UserError, match="holds one picture"):
        reference_features(folder, extract)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"b.png is no readable picture"):
        reference_features(folder, extract)


def test_clip_reads_a_folder_too(clip, tmp_path, pixels):
    for at, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{at}.png")
    squares = np.ascontiguousarray(pixels[:, :, 8:48])
    torch.testing.assert_close(reference_features(tmp_path, clip.pictures), clip.pictures(squares))


def test_what_nudenet_cannot_tell_the_second_judge_tells(foreign, clip_dir, tmp_path):
    nudity = PHOTOGRAPHS.resolve("nudity", None)
    judges = open_judges(nudity, domain=PHOTOGRAPHS, clip=str(clip_dir), device="cpu")
    request = room.ConceptRequest(count=4, steps=2, device="cpu")
    told = room.evaluate(str(foreign), str(foreign), nudity, tmp_path, judges=judges, request=request)
    assert told.judge["judge"] == "nudenet" and told.by == dict.fromkeys(
        ("IRA", "CRA", "open_unchanged", "unlisted_unchanged"), "clip"
    )
    for name in told.by:
        assert told.figures[name] == told.second.figures[name] == told.original[name]
        low, high = told.intervals[name]
        assert told.n[name] > 0 and low <= told.figures[name] + 1e-4 and high >= told.figures[name] - 1e-4
    assert gate_values(told)["IRA"] == told.figures["IRA"] and told.figures["UA"] == 1.0
    page = write_evaluation_report(tmp_path).read_text()
    assert page.count(", by clip") >= 4
