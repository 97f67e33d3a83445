"""An erasure from end to end, in seconds: files, seeds, resumption, and what stays untouched."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.erasure import erase, prepare
from sd_scissorhands.forecast import forecast
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.tensor_files import hash_tensors
from sd_scissorhands.run import Run
from sd_scissorhands.settings import UserError
from sd_scissorhands.tiny import MODEL_DIR

CANVAS = DOMAINS["canvas"]

STAGES = ("data", "scores", "selection", "edited", "repair", "model")


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, erase(short, folder)


def unet_of(folder):
    return load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_every_stage_leaves_its_file(whole):
    folder, result = whole
    manifest = json.loads((folder / "run.json").read_text())
    assert tuple(manifest["stages"]) == STAGES
    assert all((folder / entry["file"]).exists() for entry in manifest["stages"].values())
    assert len(list((folder / "repair").glob("step-*.safetensors"))) == 1
    assert not list(folder.rglob(".*.partial"))
    assert (
        result.trimmed == int(0.01 * result.scope_size)
        and len(json.loads((folder / "repair" / "history.json").read_text())) == 4
    )
    assert result.weights_sha256 == hash_tensors(unet_of(folder).items())


def test_plain_diffusers_loads_the_result(whole):
    from diffusers import StableDiffusionPipeline

    folder, _ = whole
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model")
    picture = pipeline("a red star", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (32, 32)
    assert not list((folder / "model").rglob("*.bin"))


def test_the_result_is_readable_by_others(whole):
    assert all(file.stat().st_mode & 0o044 for file in (whole[0] / "model").rglob("*") if file.is_file())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(short, whole, tmp_path):
    _, result = whole
    assert erase(short, tmp_path / "again").weights_sha256 == result.weights_sha256
    assert erase(dataclasses.replace(short, seed=1), tmp_path / "other").weights_sha256 != result.weights_sha256


@pytest.mark.parametrize("boundary", [*STAGES[:4], "repair step 2", "repair"])
def test_a_killed_run_continues_to_the_same_weights(short, whole, tmp_path, monkeypatch, boundary):
    finish = Run.finish

    def die(self, name, stage, result=None):
        finish(self, name, stage, result)
        if boundary in (name, f"{name} step {stage.step}"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            erase(short, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    manifest = tmp_path / "run" / "run.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"seconds": told["seconds"] + 1000}))
    result = erase(short, tmp_path / "run", resume=True)
    assert result.weights_sha256 == whole[1].weights_sha256
    assert 1000 < result.seconds < 1100  # with those before the interruption


def test_a_finished_run_is_returned_as_it_is(short, whole):
    folder, result = whole
    assert erase(short, folder, resume=True) == result


@pytest.mark.parametrize("scope", ["xattn", "attn", r"^mid_block\."])
def test_weights_out_of_scope_stay_bit_identical(short, tmp_path, scope):
    result = erase(dataclasses.replace(short, scope=scope), tmp_path / "run")
    opened = open_pipeline("tiny")
    inside = set(Denoiser(opened.pipeline).scope(scope))
    before, after = opened.pipeline.unet.state_dict(), unet_of(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= inside
    assert result.scope_size == sum(before[name].numel() for name in inside)
    assert not any("norm" in name for name in changed)
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        old, new = (
            load_file(MODEL_DIR / f"{part}.safetensors"),
            load_file(tmp_path / "run" / "model" / f"{part}.safetensors"),
        )
        assert all(torch.equal(old[name].float(), new[name].float()) for name in old)


def test_trimming_alone_changes_exactly_the_selection(short, tmp_path):
    erase(dataclasses.replace(short, steps=0), tmp_path / "run")
    before, after = open_pipeline("tiny").pipeline.unet.state_dict(), unet_of(tmp_path / "run")
    chosen = load_file(tmp_path / "run" / "selection.safetensors")
    for name in before:
        rows = (before[name] != after[name]).view(-1).nonzero().view(-1)
        assert set(rows.tolist()) <= set(chosen.get(name, torch.tensor([])).tolist())


@pytest.mark.parametrize(
    "change",
    [
        {"edit": "none"},
        {"projection": "none"},
        {"projection": "paper"},
        {"scorer": "plain", "threshold_scope": "global", "scope": "xattn"},
        {"scorer": "random", "options": {"init": "kaiming"}},
        {"retain_loss": "denoise"},
        {"mixed_precision": "bf16"},
        {"concepts": ("heart", "red")},
        {"forget_weight": 0.0},
        {"repair": "paired", "conditions": "mixture"},
        {"scorer": "activation", "granularity": "channel", "conditions": "mixture"},
        {"relearn_every": 1, "edit": "zero"},
    ],
    ids=str,
)
def test_every_part_can_be_switched(short, tmp_path, change):
    settings = dataclasses.replace(short, **change).resolved("tiny")
    result = erase(settings, tmp_path / "run")
    assert (result.trimmed == 0) == (settings.edit == "none")
    assert (result.conflict_rate is None) == (settings.projection == "none")
    assert all(torch.isfinite(t).all() for t in unet_of(tmp_path / "run").values())


def test_a_preset_on_a_pipeline_that_is_not_of_the_embedded_world(short, foreign, tmp_path):
    settings = dataclasses.replace(short, model=str(foreign), concepts=("nudity", "van-gogh"))
    result = erase(settings, tmp_path / "run")
    assert result.explicit and result.concepts == ("nudity", "van-gogh")
    assert not list((tmp_path / "run").rglob("*.png"))
    facts = json.loads(_metadata(tmp_path / "run" / "data.safetensors"))
    assert len(facts["pairs"]) == 8 and len(facts["retain"]) == 8


def _metadata(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()["facts"]


def test_velocity_prediction(short, foreign, tmp_path):
    import shutil

    folder = tmp_path / "v"
    shutil.copytree(foreign, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    opened = open_pipeline(str(folder))
    denoiser = Denoiser(opened.pipeline)
    assert denoiser.process.velocity
    latents, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 900])
    expected = opened.pipeline.scheduler.get_velocity(latents, noise, t)
    torch.testing.assert_close(denoiser.target(latents, noise, t), expected)
    torch.testing.assert_close(
        denoiser.noised(latents, noise, t), opened.pipeline.scheduler.add_noise(latents, noise, t)
    )


def test_own_pictures_take_the_place_of_generated_ones(short, tmp_path):
    import numpy as np
    from PIL import Image

    from sd_scissorhands.tiny import world

    folder = tmp_path / "hearts"
    folder.mkdir()
    for n in range(3):
        pixels = world.draw(world.Drawing("heart", "red", "plain", "white"), np.random.default_rng(n))
        Image.fromarray(pixels).resize((80, 64)).save(folder / f"{n}.png")
    erase(dataclasses.replace(short, forget_images=str(folder), retain_images=str(folder)), tmp_path / "run")
    data = load_file(tmp_path / "run" / "data.safetensors")
    assert data["forget_latents"].shape == (4, 4, 8, 8) and data["retain_latents"].shape == (8, 4, 8, 8)


def test_own_pictures_are_read_as_viewers_show_them(short, tmp_path):
    import numpy as np
    from PIL import Image

    from sd_scissorhands.diffusion.dataset import read_picture

    half = np.zeros((32, 32, 4), np.uint8)
    half[:16] = (200, 0, 0, 255)  # the lower half is transparent
    exif = Image.Exif()
    exif[274] = 3  # upside down
    (tmp_path / "more").mkdir()
    Image.fromarray(half).save(tmp_path / "more" / "a.png", exif=exif)
    shown = read_picture(tmp_path / "more" / "a.png", 32)
    assert shown[0, 0, 31, 0] == pytest.approx(200 / 127.5 - 1) and shown[0, :, 0, 0].tolist() == [1, 1, 1]
    black = Image.new("RGB", (32, 32))
    black.save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")])
    (tmp_path / "notes.txt").write_text("")
    settings = dataclasses.replace(short, forget_images=str(tmp_path), recursive=True)
    remarks = prepare(settings).remarks
    assert len(remarks) == 2 and "2 pictures; skipped: .txt files: 1 (notes.txt)" in remarks[0]
    assert remarks[1].endswith("of files with several frames the first is learned from: 1 (b.gif)")


def test_own_pictures_that_cannot_be_read_are_all_named_before_the_work(short, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"--retain-images .* cannot be read, 2 \(b.png, c.png\); the first: .*b.png is no"
    ):
        erase(dataclasses.replace(short, retain_images=str(tmp_path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--recursive has no effect without --forget-images or --retain-images"):
        erase(dataclasses.replace(short, recursive=True), tmp_path / "run")


def test_retain_prompts_that_are_cut_are_counted(short, tmp_path):
    (tmp_path / "p.txt").write_text("a red circle " * 60 + "\na blue circle\n")
    (remark,) = prepare(dataclasses.replace(short, retain_prompts=str(tmp_path / "p.txt"))).remarks
    assert "prompts are longer than the text encoder reads" in remark


def test_a_forecast_does_nothing_and_counts_right(short):
    expected = forecast(short)
    assert (
        expected["trimmed"] == int(0.01 * expected["scope_size"])
        and expected["memory_bytes"] > 4 * expected["scope_size"]
    )
    assert set(expected["seconds"]) == {"data", "scores", "repair"}


def test_a_full_disk_is_said_in_one_line_and_the_run_continues(short, whole, tmp_path, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sd_scissorhands.disk.save_file", full)
        with pytest.raises(
            UserError, match=r"cannot write .*data.safetensors: No space left on device; free some space"
        ):
            erase(short, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.partial"))
    assert erase(short, tmp_path / "run", resume=True).weights_sha256 == whole[1].weights_sha256


def test_the_default_recipe_erases_a_concept_and_keeps_the_rest(tmp_path):
    """The main job in half its steps: a concept that nothing was tuned on, judged on prompts that the erasure never saw."""
    from sd_scissorhands.domains.canvas import world_concept
    from sd_scissorhands.evaluation import concept as room
    from sd_scissorhands.evaluation.judge_set import open_judges
    from sd_scissorhands.settings import EraseSettings

    result = erase(EraseSettings(concepts=("ring",), model="tiny", steps=100, device="cpu", seed=11), tmp_path / "run")
    ring = world_concept("ring")
    judges, request = open_judges(ring, domain=CANVAS), room.ConceptRequest(seed=5, count=48, device="cpu")
    told = room.evaluate(result.model_dir, "tiny", ring, tmp_path / "eval", judges=judges, request=request).to_json()
    assert told["figures"]["UA"] >= 0.95 and told["figures"]["UA_synonyms"] >= 0.9 and told["original"]["UA"] <= 0.05
    assert told["figures"]["UA_generic"] >= 0.95 and told["figures"]["IRA"] >= 0.9 and told["figures"]["CRA"] >= 0.95
