"""An erasure from end to end, in seconds: files, seeds, resumption, and what stays untouched."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_scissorhands import api
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.comparison.compare import compare
from sd_scissorhands.comparison.jobs import Comparison
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.disk import locked, write_json
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.evaluate import evaluate
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.evaluation.sample import check_models
from sd_scissorhands.forecast import forecast
from sd_scissorhands.forgetting import forget
from sd_scissorhands.lineage import base_of, baseline_of, erased_from
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.tensor_files import hash_tensors
from sd_scissorhands.models.verify import verify
from sd_scissorhands.preparation import prepare
from sd_scissorhands.report.reading import read_run
from sd_scissorhands.run import Run
from sd_scissorhands.settings import ForgetSettings
from sd_scissorhands.tiny import MODEL_DIR

CANVAS = DOMAINS["canvas"]

STAGES = ("data", "scores", "selection", "edited", "repair", "model")


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, erase(short, folder)


def contents(folder):
    """The bytes of every file."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def unet_of(folder):
    return load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_every_stage_leaves_its_file(whole):
    folder, result = whole
    manifest = json.loads((folder / "run.json").read_text())
    assert tuple(manifest["stages"]) == STAGES
    there = {name: (folder / entry["file"]).exists() for name, entry in manifest["stages"].items()}
    assert there == dict.fromkeys(STAGES, True) | {"scores": False}  # which no later stage reads
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
    assert contents(tmp_path / "run" / "model") == contents(whole[0] / "model")


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
        {"projection": "retain", "train": "selection", "checkpointing": True, "micro_batch": 2},
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
    settings = dataclasses.replace(short, **change).resolved("small")
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
    remarks = prepare(dataclasses.replace(settings, forget_count=1)).remarks
    assert remarks[1] == "--forget-images: of 2 pictures the first 1 by name are learned from"


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
    expected = forecast(short).to_json()
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
    judges, request = open_judges(ring, domain=CANVAS), room.ConceptRequest(seed=5, count=48, steps=12, device="cpu")
    told = room.evaluate(result.model_dir, "tiny", ring, tmp_path / "eval", judges=judges, request=request).to_json()
    assert told["figures"]["UA"] >= 0.95 and told["figures"]["UA_synonyms"] >= 0.9 and told["original"]["UA"] <= 0.05
    assert told["figures"]["UA_generic"] >= 0.95 and told["figures"]["IRA"] >= 0.9 and told["figures"]["CRA"] >= 0.95


# ---------------------------------------------------------------- what a resumed run is bound to


def test_the_scores_stay_on_request(short, whole, tmp_path):
    result = erase(dataclasses.replace(short, keep_scores=True), tmp_path / "run")
    assert (tmp_path / "run" / "scores.safetensors").exists() and result.weights_sha256 == whole[1].weights_sha256
    shutil.rmtree(tmp_path / "run" / "model")
    for name in ("selection", "scores", "edited"):  # what was dropped is made again where it is needed
        (tmp_path / "run" / f"{name}.safetensors").unlink()
    assert erase(short, tmp_path / "run", resume=True).weights_sha256 == result.weights_sha256
    assert not (tmp_path / "run" / "scores.safetensors").exists()


@pytest.mark.parametrize("changed", ["retain_prompts", "retain_images", "text encoder", "scheduler"])
def test_a_run_is_not_resumed_on_other_contents_under_the_same_names(short, foreign, tmp_path, changed):
    base, prompts, images = tmp_path / "sd", tmp_path / "own.txt", tmp_path / "pictures"
    shutil.copytree(foreign, base)
    prompts.write_text("a dog\na tree\n")
    images.mkdir()
    Image.new("RGB", (32, 32), "red").save(images / "0.png")
    more = {"retain_prompts": str(prompts)} if changed == "retain_prompts" else {"retain_images": str(images)}
    asked = dataclasses.replace(short, model=str(base), concepts=("a dog",), anchor="a cat", steps=0, **more)
    result = erase(asked, tmp_path / "run")
    assert erase(asked, tmp_path / "run", resume=True) == result
    if changed == "retain_prompts":
        prompts.write_text("a dog\na house\n")
    elif changed == "retain_images":
        Image.new("RGB", (32, 32), "blue").save(images / "0.png")
    elif changed == "scheduler":
        file = base / "scheduler" / "scheduler_config.json"
        file.write_text(file.read_text() + "\n")
    else:
        file = next((base / "text_encoder").glob("*.safetensors"))
        tensors = load_file(file)
        save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, file, {"format": "pt"})
    says = f"--{changed.replace('_', '-')} held something else" if "_" in changed else "from another model"
    with pytest.raises(UserError, match=says):
        erase(asked, tmp_path / "run", resume=True)


def test_a_base_is_known_by_its_absolute_path_from_anywhere(short, foreign, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(foreign, tmp_path / "m" / "sd")
    monkeypatch.chdir(tmp_path)
    asked = dataclasses.replace(short, model="m/sd", concepts=("a dog",), anchor="a cat", steps=0)
    api.erase(asked, tmp_path / "run")
    model = str(tmp_path / "run" / "model")
    source = json.loads((tmp_path / "run" / "run.json").read_text())["source"]
    assert source["model"] == str(tmp_path / "m" / "sd") and len(source["files_sha256"]) == 64
    assert str(tmp_path) not in (tmp_path / "run" / "model" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert baseline_of(model) == source["model"]
    assert erase(dataclasses.replace(asked, model="../m/sd"), tmp_path / "run", resume=True).steps == 0
    with (tmp_path / "m" / "sd" / "scheduler" / "scheduler_config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"is not what it was .* or name another with --baseline"):
        check_models(model, baseline_of(model))
    (tmp_path / "m").rename(tmp_path / "moved")
    drawn = EvaluateSettings(model=model, prompts=str(prompts_file(tmp_path)))
    with pytest.raises(UserError, match="m/sd, which is no longer there: say with --baseline"):
        evaluate(drawn, tmp_path / "eval")


def prompts_file(folder):
    (folder / "prompts.txt").write_text("a dog\n")
    return folder / "prompts.txt"


# ---------------------------------------------------------------- a run directory as anybody may have left it


def test_a_run_that_was_killed_before_its_manifest_was_whole_goes_on(short, whole, tmp_path):
    for resume in (False, True):
        folder = tmp_path / str(resume)
        folder.mkdir()
        (folder / ".run.json.partial").write_text('{"settings": {"reci')
        (folder / ".lock").touch()
        assert erase(short, folder, resume=resume).weights_sha256 == whole[1].weights_sha256


def test_two_runs_in_one_directory_are_kept_apart(short, whole, tmp_path):
    """The lock is another process's, and goes with it."""
    folder = tmp_path / "run"
    code = f"from sd_scissorhands.disk import *; import time\nwith locked(Path({str(folder)!r})): print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline() == b"1\n"
    try:
        with pytest.raises(UserError, match="is in use by another command: wait"):
            erase(short, folder)
    finally:
        other.kill()
        other.wait()
    assert erase(short, folder).weights_sha256 == whole[1].weights_sha256
    assert not (folder / ".lock").exists()


def test_a_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["erase", "forget", "evaluate", "attack", "compare", "atomic"])
def test_a_file_above_the_output_directory_is_said_in_one_line(short, tmp_path, command):
    (tmp_path / "FILE").write_text("mine")
    folder = tmp_path / "FILE" / "x"
    calls = {
        "erase": lambda: erase(short, folder),
        "forget": lambda: forget(ForgetSettings(forget_class="3"), folder),
        "evaluate": lambda: evaluate(EvaluateSettings(model="tiny", concept="heart"), folder),
        "attack": lambda: attack(AttackSettings("paraphrase", "heart", "tiny"), folder),
        "compare": lambda: compare(Comparison(short, ({"concepts": ("heart",)},)), folder),
        "atomic": lambda: write_json(folder / "a.json", {}),
    }
    with pytest.raises(UserError, match=r"FILE is a file|Not a directory") as caught:
        calls[command]()
    assert "\n" not in str(caught.value) and (tmp_path / "FILE").read_text() == "mine"


def put(*path, value):
    """Changes one value inside a manifest."""

    def change(text):
        values = json.loads(text)
        inner = values
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        return json.dumps(values).encode()

    return change


DEEP = json.loads("[" * 90 + "]" * 90)
DAMAGES = {
    "empty": lambda text: b"", "null": lambda text: b"null", "list": lambda text: b"[]", "text": lambda text: b'"run"',
    "number": lambda text: b"7", "half": lambda text: text[: len(text) // 2], "NUL": lambda text: b"\0" + text,
    "NULs": lambda text: b"\0" * 512, "Latin": lambda text: text.replace(b"heart", b"h\xe9art"),
    "UTF-16 cut": lambda text: text.decode().encode("utf-16")[:-1], "nested": lambda text: b"[" * 100_000,
    "nested objects": lambda text: b'{"a":' * 5000 + b"1" + b"}" * 5000, "two documents": lambda text: text + text,
    "digits": lambda text: b'{"seconds": ' + b"9" * 5000 + b"}", "twice": lambda text: text.replace(b"{", b'{"stages": {}, ', 1),
    "settings": put("settings", value=[1]), "source": put("source", value="tiny"), "source hash": put("source", "weights_sha256", value=[]),
    "inputs": put("inputs", value=3), "input": put("inputs", "concept", value={"a": 1}), "stages": put("stages", value=["data"]),
    "stage": put("stages", "data", value=7), "stage file": put("stages", "data", "file", value=None),
    "step": put("stages", "repair", "step", value=float("nan")), "late step": put("stages", "repair", "step", value=10**30),
    "no step": put("stages", "repair", "step", value=-1), "seconds": put("seconds", value="1"),
    "huge seconds": put("seconds", value=10**400), "result": put("result", value=[]), "empty result": put("result", value={}),
    "result hash": put("result", "weights_sha256", value=1), "result concepts": put("result", "concepts", value={"a": 1}),
    "outside": put("stages", "repair", "file", value="../../other/model.safetensors"),
    "absolute": put("stages", "model", "file", value="/etc"), "NUL in a name": put("stages", "data", "file", value="a\0b"),
    "its own manifest": put("stages", "repair", "file", value="run.json"), "deep setting": put("settings", "top_k", value=DEEP),
}  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGES, "directory", "FIFO"])
def test_a_damaged_manifest_is_said_in_one_line_and_nothing_outside_is_touched(short, whole, tmp_path, damage):
    folder, other = tmp_path / "runs" / "run", tmp_path / "other" / "model.safetensors"
    shutil.copytree(whole[0], folder, copy_function=os.link)
    other.parent.mkdir()
    other.write_text("somebody's")
    manifest = folder / "run.json"
    text = manifest.read_bytes()
    manifest.unlink()
    if damage == "directory":
        manifest.mkdir()
    elif damage == "FIFO":
        os.mkfifo(manifest)
    else:
        manifest.write_bytes(DAMAGES[damage](text))
    calls = (
        lambda: erase(short, folder, resume=True), lambda: verify(folder), lambda: read_run(folder),
        lambda: [Run.read(folder).done(name) for name in STAGES],
        lambda: erased_from(str(folder / "model")), lambda: base_of(str(folder / "model")),
    )  # fmt: skip
    said = []
    for call in calls:
        try:
            call()
        except UserError as error:
            said.append(str(error))
    assert said and all("\n" not in line and len(line) < 500 for line in said)
    assert other.read_text() == "somebody's" and (folder / "model" / "model_index.json").exists()


@pytest.mark.parametrize("place", ["repair", "data.safetensors"])
def test_a_link_in_a_run_leads_nowhere(short, whole, tmp_path, place):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(whole[0], folder, copy_function=os.link)
    shutil.rmtree(folder / "model")
    (folder / place).rename(outside)
    (folder / place).symlink_to(outside)
    before = contents(outside) if outside.is_dir() else outside.read_bytes()
    with pytest.raises(UserError, match="leads out of"):
        erase(short, folder, resume=True)
    assert before == (contents(outside) if outside.is_dir() else outside.read_bytes())


def test_an_optimiser_that_is_not_installed_is_refused_before_the_work(short, tmp_path, monkeypatch):
    monkeypatch.setattr("sd_scissorhands.preparation.find_spec", lambda name: None)
    with pytest.raises(UserError, match="adam-8bit needs bitsandbytes"):
        erase(dataclasses.replace(short, optimiser="adam-8bit"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_backward_passes_through_a_compiled_model_are_refused_before_the_work(short, tmp_path):
    with pytest.raises(UserError, match="--projection retain makes two: leave out --compile"):
        erase(dataclasses.replace(short, projection="retain", compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
