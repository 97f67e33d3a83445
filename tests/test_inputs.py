"""Models by every name: hub ids with revision and variant, single files, the cache and the hub; and what is refused."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from small_pipelines import build
from typer.testing import CliRunner

from sd_scissorhands.api import composed
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.cli import app
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.lineage import base_of as first_of
from sd_scissorhands.models import single_file_reader as single
from sd_scissorhands.models.apply import apply_delta
from sd_scissorhands.models.composed import origin_of, with_unet
from sd_scissorhands.models.diff import difference
from sd_scissorhands.models.export import base_pipeline, export
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.locate import convert_single_files, find_pipeline, locate, locate_without_work
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.models.tensor_files import hash_tensors
from sd_scissorhands.models.verify import verify
from sd_scissorhands.naming import Name, model_named
from sd_scissorhands.report import card_text
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.tiny import MODEL_DIR

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEM = "diffusion_pytorch_model"
UNET = "model.diffusion_model."


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty HF_HOME."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path / "hf"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded model's pipeline, with nothing that marks it."""
    folder = tmp_path_factory.mktemp("model") / "sd"
    shutil.copytree(MODEL_DIR, folder, ignore=lambda _, names: {"world.json", "judge.safetensors"} & set(names))
    return folder


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """The same as a single file."""
    path = tmp_path_factory.mktemp("file") / "my model.safetensors"
    export(model, "single-file", output=path)
    return path


def laid(home: Path, name: str, folder: Path, revision: str = "main") -> Path:
    """A directory as the hub's cache holds it."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMIT)
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    return repository / "snapshots" / COMMIT


def weights_of(folder: Path) -> str:
    return hash_tensors(load_file(folder / "unet" / f"{STEM}.safetensors").items())


def refused(model, **how) -> str:
    with pytest.raises(UserError) as told:
        open_pipeline(str(model), **how)
    assert "\n" not in str(told.value)
    return str(told.value)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tiny", ("tiny",)),
        ("owner/name", ("owner/name",)),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("owner/name:fp16", ("owner/name", None, "fp16")),
        ("owner/name@v1.0:non_ema", ("owner/name", "v1.0", "non_ema")),
        ("./no where/at@all:x:y", ("./no where/at@all:x:y",)),
    ],
)
def test_a_name_is_parsed_and_put_together_again(text, parts):
    assert Name.parse(text) == Name(*parts) and str(Name.parse(text)) == text


def test_a_path_that_is_there_means_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b@c", "a/d:fp16", "a/e"):
        Path(name).mkdir(parents=True)
        assert Name.parse(name) == Name(name)
    assert Name.parse("a/b@c:fp16") == Name("a/b@c", None, "fp16")
    assert Name.parse("a/e:fp16") == Name("a/e", None, "fp16")
    with pytest.raises(UserError, match="a/e lies on this machine and has no revisions"):
        model_named("a/e", "main")
    assert "lies on this machine and has no revisions" in refused("a/e@main")


def test_flags_are_another_spelling_of_the_name():
    settings = EraseSettings(model="owner/name", revision="v1", variant="fp16")
    assert settings.model == "owner/name@v1:fp16" and settings.revision is settings.variant is None
    assert EraseSettings.from_json(settings.to_json()) == settings == dataclasses.replace(settings)
    assert EraseSettings(model="owner/name@v1", revision="v1").model == "owner/name@v1"
    with pytest.raises(UserError, match="names 'v1' already: leave out --revision v2"):
        EraseSettings(model="owner/name@v1", revision="v2")


def test_manifests_that_say_the_revision_apart_are_read(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    told = {"settings": {"revision": "v1"}, "source": {"model": "owner/name"}, "result": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    assert first_of(str(tmp_path / "run" / "model")) == "owner/name@v1"


# ---------------------------------------------------------------- variants


@pytest.fixture
def varied(model, tmp_path):
    """Plain weights, and others as fp16 of the UNet and the text encoder alone."""
    folder = shutil.copytree(model, tmp_path / "varied")
    for part, stem in (("unet", STEM), ("text_encoder", "model")):
        tensors = {k: (v * 1.5).half() for k, v in load_file(folder / part / f"{stem}.safetensors").items()}
        save_file(tensors, folder / part / f"{stem}.fp16.safetensors", {"format": "pt"})
    return folder


def test_a_variant_is_opened_and_parts_without_one_as_they_are(varied):
    plain, other = open_pipeline(str(varied)), open_pipeline(f"{varied}:fp16")
    assert plain.weights_sha256 == weights_of(varied) != other.weights_sha256
    assert other.weights_sha256 == hash_tensors(load_file(varied / "unet" / f"{STEM}.fp16.safetensors").items())
    for part, factor in (("text_encoder", 1.5), ("vae", 1.0)):
        for a, b in zip(
            getattr(plain.pipeline, part).parameters(), getattr(other.pipeline, part).parameters(), strict=True
        ):
            assert torch.allclose(a * factor, b, rtol=1e-2, atol=1e-3)
    assert other.name == f"{varied}:fp16" and find_pipeline(other.name).denoiser.sha256() == other.weights_sha256


def test_sharded_variants_are_opened(varied):
    opened = open_pipeline(f"{varied}:fp16")
    (varied / "unet" / f"{STEM}.fp16.safetensors").unlink()
    opened.denoiser.save_pretrained(varied / "unet", variant="fp16", max_shard_size="2MB")
    assert (varied / "unet" / f"{STEM}.safetensors.index.fp16.json").exists()
    assert open_pipeline(f"{varied}:fp16").weights_sha256 == opened.weights_sha256
    next((varied / "unet").glob(f"{STEM}.fp16-00001-of-*.safetensors")).unlink()
    assert "is missing" in refused(f"{varied}:fp16")


def test_variants_that_are_not_there_are_said(varied, model):
    assert "has no variant bf16: choose fp16" in refused(f"{varied}:bf16")
    assert "has no variant fp16: leave it out" in refused(f"{model}:fp16")
    (varied / "unet" / f"{STEM}.safetensors").unlink()
    assert "weights as fp16 alone: add --variant fp16" in refused(varied)


def test_what_is_erased_from_a_variant_has_its_names_and_the_very_same_base(varied, short, tmp_path):
    settings = dataclasses.replace(
        short, model=str(varied), variant="fp16", steps=1, train="selection", anchor="a star"
    )
    run = tmp_path / "run"
    result = erase(settings, run)
    model = run / "model"
    files = ["text_encoder/model.fp16", f"unet/{STEM}.fp16", f"vae/{STEM}"]
    assert sorted(model.rglob("*.safetensors")) == [model / f"{name}.safetensors" for name in files]
    assert 'from_pretrained("path/to/this/directory", variant="fp16")' in card_text(run)
    from diffusers import StableDiffusionPipeline

    there = StableDiffusionPipeline.from_pretrained(model, variant="fp16", torch_dtype=torch.float16)
    assert there.unet.dtype == torch.float16
    told = json.loads((run / "run.json").read_text())["source"]
    base = hash_tensors(load_file(varied / "unet" / f"{STEM}.fp16.safetensors").items())
    files = locate(f"{varied}:fp16").sha256
    assert told == {"model": f"{varied}:fp16", "weights_sha256": base, "files_sha256": files, "ema": "unknown"}
    assert first_of(str(run / "model")) == f"{varied}:fp16"
    assert verify(run).holds is True and base_pipeline(find_pipeline(run)).denoiser.sha256() == base
    assert {c.what for c in verify(run).checks if c.holds} >= {"base", "text_encoder", "vae", "delta"}
    assert open_pipeline(str(run / "model")).weights_sha256 == result.weights_sha256
    resumed = erase(settings, run, resume=True)
    assert resumed.weights_sha256 == result.weights_sha256


# ---------------------------------------------------------------- single files


def test_a_single_file_is_converted_once_with_every_weight(file, model, home, tmp_path, monkeypatch):
    opened = open_pipeline(str(file), config=str(model))
    assert opened.weights_sha256 == weights_of(model) and opened.files.ema == "unknown"
    assert opened.directory.parent == home / "sd_scissorhands" and opened.directory.name.startswith("my-model-")
    for part in ("vae", "text_encoder"):
        here, there = PipelineDirectory(model).components[part], PipelineDirectory(opened.directory).components[part]
        assert here.sha256() == there.sha256() and here.dtype(next(iter(here.keys))) == there.dtype(
            next(iter(there.keys))
        )
    monkeypatch.setattr(single, "_convert", lambda *a: pytest.fail("converted again"))
    assert locate(str(file)) == locate(str(file), str(model)) == locate_without_work(str(file)) == opened.files
    assert export(file, "diffusers", output=tmp_path / "out").weights_sha256 == opened.weights_sha256
    assert difference(str(file), str(tmp_path / "out")).identical


def test_another_config_converts_it_again(file, model, tmp_path):
    first = locate(str(file), str(model)).directory
    other = shutil.copytree(model, tmp_path / "other")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    assert "v_prediction" not in (first / "scheduler" / "scheduler_config.json").read_text()
    again = locate(str(file), str(other)).directory
    assert again == first and "v_prediction" in (first / "scheduler" / "scheduler_config.json").read_text()


def test_an_erasure_from_our_own_export_is_measured_against_the_very_file(short, tmp_path):
    file, run = tmp_path / "tiny.safetensors", tmp_path / "run"
    export(MODEL_DIR, "single-file", output=file)
    result = erase(dataclasses.replace(short, model=str(file), model_config="tiny", steps=1), run)
    source = json.loads((run / "run.json").read_text())["source"]
    assert len(source.pop("files_sha256")) == 64
    assert source == {"model": str(file), "weights_sha256": weights_of(MODEL_DIR), "ema": "unknown"}
    assert {c.what: c.holds for c in verify(run).checks}["base"] and verify(run).holds
    assert first_of(str(run / "model")) == str(file)
    out = tmp_path / "out.safetensors"
    export(run, "single-file", output=out)
    told = evaluated("--model", out, "--baseline", file, "--model-config", "tiny", "--output-dir", tmp_path / "eval")
    assert told["weights_sha256"] == result.weights_sha256 != told["baseline_sha256"] == source["weights_sha256"]


def evaluated(*how) -> dict:
    ask = ["eval", "--concept", "heart", "--limit", "2", "--steps", "1", "--device", "cpu", "--json", *map(str, how)]
    done = CliRunner().invoke(app, ask)
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_files_of_other_families_are_converted_with_every_text_encoder(family, model, tmp_path):
    folder, path = build(family, tmp_path / family), tmp_path / "other.safetensors"
    export(folder, "single-file", output=path)
    opened = open_pipeline(str(path), config=str(folder))
    here, there = PipelineDirectory(folder).components, PipelineDirectory(opened.directory).components
    assert here.keys() == there.keys() and all(here[name].sha256() == there[name].sha256() for name in here)
    says = "predicts v" if family == "sd2" else "name one of the same family"
    assert opened.weights_sha256 == weights_of(folder) and says in refused(path, config=str(model))


def changed(file: Path, to: Path, change) -> Path:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, to)
    return to


@pytest.mark.parametrize(
    "key",
    [
        UNET + "out.2.bias",
        "first_stage_model.decoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_nothing_is_made_up_for_a_weight_that_a_file_lacks(file, model, home, tmp_path, key):
    short = changed(file, tmp_path / "short.safetensors", lambda tensors: tensors.pop(key))
    assert "cannot be converted" in refused(short, config=str(model))
    assert not list((home / "sd_scissorhands").glob("*short*/"))


def test_a_weight_that_is_left_over_is_said(file, model, tmp_path):
    more = changed(
        file, tmp_path / "more.safetensors", lambda tensors: tensors.update({UNET + "out.3.weight": torch.ones(2)})
    )
    assert "out.3.weight" in refused(more, config=str(model))


def test_what_is_no_weight_says_nothing_of_the_precision(file, model, tmp_path):
    betas = changed(file, tmp_path / "betas.safetensors", lambda tensors: tensors.update(betas=torch.ones(3), **{"model_ema.decay": torch.ones(())}))  # fmt: skip
    opened = open_pipeline(str(betas), config=str(model))
    assert (
        PipelineDirectory(opened.directory).denoiser.dtype("conv_in.weight") == torch.float16
        and opened.files.ema == "unknown"
    )


def test_mixed_precision_is_kept_in_float32(file, model, tmp_path):
    def change(tensors):
        tensors.update({k: v.float() * 1.0001 for k, v in tensors.items() if k.startswith("first_stage_model.")})

    mixed = changed(file, tmp_path / "mixed.safetensors", change)
    opened = open_pipeline(str(mixed), config=str(model))
    assert opened.weights_sha256 == weights_of(model)
    assert PipelineDirectory(opened.directory).components["vae"].dtype("decoder.conv_in.weight") == torch.float32


@pytest.mark.parametrize("mark", ["v_pred", "modelspec"])
def test_a_file_that_predicts_v_is_not_taken_for_one_that_does_not(file, model, tmp_path, mark):
    tensors = load_file(file) | ({"v_pred": torch.zeros(1)} if mark == "v_pred" else {})
    save_file(tensors, tmp_path / "v.safetensors", {"modelspec.prediction_type": "v"} if mark == "modelspec" else None)
    assert "predicts v" in refused(tmp_path / "v.safetensors", config=str(model))


FOREIGN = {
    "lora": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, "is a LoRA, no model: fuse it"),
    "peft": ({"unet.mid_block.attentions.0.to_q.lora_A.weight": (4, 8)}, "holds a LoRA"),
    "vae": ({"first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3)}, "is a VAE alone"),
    "bare vae": ({"decoder.conv_in.weight": (4, 4, 3, 3)}, "is a VAE alone"),
    "unet": ({"input_blocks.0.0.weight": (4, 4, 3, 3)}, "is a UNet alone"),
    "diffusers unet": ({"conv_in.weight": (4, 4, 3, 3)}, "is a UNet alone"),
    "no vae, no text": ({UNET + "input_blocks.0.0.weight": (4, 4, 3, 3)}, "has no VAE and no text encoder"),
    "sd3": ({UNET + "joint_blocks.0.x_block.mlp.fc1.weight": (4, 4)}, "is an SD 3 model"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "is a FLUX model"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": (4, 4)}, "is a ControlNet"),
    "else": ({"x": (4, 4)}, "is no model"),
    "refiner": ({UNET + "input_blocks.0.0.weight": (4, 4, 3, 3), "conditioner.embedders.0.model.ln_final.weight": (4,), "first_stage_model.x": (1,)}, "has no text encoder"),
    "inpainting": ({UNET + "input_blocks.0.0.weight": (4, 9, 3, 3), "cond_stage_model.x": (4,), "first_stage_model.x": (1,)}, "was made for inpainting"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_files_get_one_line_each(kind, tmp_path):
    shapes, says = FOREIGN[kind]
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "f.safetensors")
    assert says in refused(tmp_path / "f.safetensors")


@pytest.mark.parametrize("ending", [".ckpt", ""])
def test_a_file_that_is_none_of_both_is_refused_by_its_ending(tmp_path, ending):
    (tmp_path / f"m{ending}").write_text("some text")
    assert "does not end with .safetensors" in refused(tmp_path / f"m{ending}")


@pytest.mark.parametrize(
    "part,changes",
    [
        ("unet", {"layers_per_block": 10**8}), ("unet", {"sample_size": 10**9}), ("unet", {"sample_size": -1}),
        ("unet", {"sample_size": "x"}), ("unet", {"block_out_channels": [32] * 99}), ("unet", {"sample_size": 8.0}),
        ("vae", {"latent_channels": 0}), ("text_encoder", {"num_hidden_layers": 10**8}),
        ("text_encoder", {"max_position_embeddings": 10**9}), ("tokenizer", {"model_max_length": -1}),
        ("scheduler", {"num_train_timesteps": 10**10}), ("scheduler", {"prediction_type": 7}),
    ],
)  # fmt: skip
def test_numbers_of_configs_are_bounded_before_anything_is_built(part, changes, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sd")
    (file,) = (folder / part).glob("*config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (key,) = changes
    with pytest.raises(UserError, match=rf"{file} has {key} = .*, which must be a .*: get it again$"):
        PipelineDirectory(folder).check()


def test_a_tokenizer_without_a_limit_pads_to_its_encoder_s(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sd")
    file = folder / "tokenizer" / "tokenizer_config.json"
    values, expected = json.loads(file.read_text()), open_pipeline(str(model)).family.ids(["a heart"])
    for limit in (10**9, 10**30, None):
        file.write_text(json.dumps(values | {"model_max_length": limit}))
        assert torch.equal(open_pipeline(str(folder)).family.ids(["a heart"]), expected)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", f"unet/{STEM}.safetensors", "tokenizer/more.json"]
)
def test_a_fifo_in_a_model_does_not_block(name, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sd")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"{name}.* it is no regular file|{name} is no regular file: remove it"):
        open_pipeline(str(folder))


def test_a_truncated_file_and_a_variant_of_a_file_are_refused(file, model, tmp_path):
    (tmp_path / "half.safetensors").write_bytes(file.read_bytes()[:-100])
    assert "is truncated" in refused(tmp_path / "half.safetensors")
    assert "has no variants: leave out fp16" in refused(f"{file}:fp16")
    assert "--model-config nothing is for a single file" in refused(model, config="nothing")
    with pytest.raises(UserError, match="no model here is one"):
        convert_single_files(str(model), str(model))


# ---------------------------------------------------------------- configs of a single file


def test_without_configs_one_line_says_what_is_needed(file):
    text = refused(file)
    assert text.startswith(
        f"--model {file} is a single file and needs the configs and tokenizer of its family: add --model-config DIRECTORY"
    )
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in text and "HF_HUB_OFFLINE" in text


def test_configs_are_inferred_from_the_hub_s_cache(file, model, home):
    laid(home, "stable-diffusion-v1-5/stable-diffusion-v1-5", model)
    assert open_pipeline(str(file)).weights_sha256 == weights_of(model)
    assert (
        json.loads((locate(str(file)).directory / "converted.json").read_text())["config"]
        == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def test_a_config_that_is_none_is_refused(file, tmp_path):
    assert "--model-config ./nowhere does not exist" in refused(file, config="./nowhere")
    assert "--model-config some/where cannot be had from the hub" in refused(file, config="some/where")
    assert f"--model-config {file} is a file" in refused(file, config=str(file))
    assert "is no diffusers pipeline" in refused(file, config=str(tmp_path))


def test_a_config_may_be_a_hub_id(file, model, home):
    laid(home, "owner/name", model, "v1")
    assert open_pipeline(str(file), config="owner/name@v1").weights_sha256 == weights_of(model)


@pytest.mark.parametrize(
    ("told", "config"),
    [
        (None, None),
        ("stable-diffusion-v2-768-v", "stabilityai/stable-diffusion-2-1"),
        ("stable-diffusion-v2-512", "stabilityai/stable-diffusion-2-1-base"),
    ],
)
def test_of_the_two_that_share_their_names_none_is_guessed(tmp_path, told, config):
    from sd_scissorhands.models.tensor_files import TensorFile

    key = UNET + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({key: torch.zeros(2, 1024)}, tmp_path / "two.safetensors", told and {"modelspec.architecture": told})
    assert single._usual_config(TensorFile.open(tmp_path / "two.safetensors")) == config


# ---------------------------------------------------------------- a moving average


def test_a_second_unet_is_stated_and_not_used(file, model, tmp_path, short):
    def change(tensors):
        tensors.update(
            {
                f"model_ema.{k.removeprefix('model.').replace('.', '')}": v + 1
                for k, v in tensors.items()
                if k.startswith(UNET)
            }
        )

    both = changed(file, tmp_path / "both.safetensors", change)
    opened = open_pipeline(str(both), config=str(model))
    assert opened.weights_sha256 == weights_of(model) and opened.identity.ema == "beside, not used"
    ask = ["erase", "--concept", "a heart", "--anchor", "a star", "--model", str(both), "--dry-run"]
    done = CliRunner().invoke(app, [*ask, "--model-config", str(model)])
    assert "EMA weights  not used: they stand beside those that are" in done.stderr


def test_the_variant_without_the_average_says_so(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "both")
    shutil.copyfile(folder / "unet" / f"{STEM}.safetensors", folder / "unet" / f"{STEM}.non_ema.safetensors")
    assert (
        open_pipeline(str(folder)).files.ema == "used"
        and open_pipeline(f"{folder}:non_ema").files.ema == "beside, not used"
    )
    assert open_pipeline(str(model)).files.ema == "unknown"


# ---------------------------------------------------------------- pickles


class Evil:
    """Runs when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def line_in(text: str) -> str:
    return text[text.index("python -c ") :]


def run_here(text: str, monkeypatch) -> None:
    """The line as a shell would read it, without the seconds that another process takes."""
    _, _, code, *names = shlex.split(line_in(text))
    monkeypatch.setattr(sys, "argv", ["-c", *(file for name in names for file in glob.glob(name))])
    exec(code, {})


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, ending):
    mark, path = tmp_path / "ran", tmp_path / f"m{ending}"
    with path.open("wb") as stream:
        pickle.dump(Evil(mark), stream)
    assert "is a pickle, which can run code and is never loaded" in refused(path)
    assert not mark.exists()


def test_the_line_converts_a_checkpoint(file, model, tmp_path):
    folder = tmp_path / "it's $HOME `x`"
    folder.mkdir()
    callbacks = {"callbacks": {_lightning(): {"best": 1}}, "state_dict": load_file(file), "global_step": 3}
    torch.save(callbacks, folder / "old one.ckpt")
    line = line_in(refused(folder / "old one.ckpt")).replace("python", sys.executable, 1)
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_pipeline(str(folder / "old one.safetensors"), config=str(model)).weights_sha256 == weights_of(model)


def test_the_line_runs_nothing(tmp_path, monkeypatch):
    torch.save({"state_dict": {"w": torch.ones(1), "x": Evil(tmp_path / "ran")}}, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run_here(refused(tmp_path / "evil.ckpt"), monkeypatch)
    assert [file.name for file in tmp_path.glob("*")] == ["evil.ckpt"]


def _lightning() -> type:
    """A class as old checkpoints name one, of a package that is not here."""
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        sys.modules.setdefault(name, module)
    return module.ModelCheckpoint


def test_a_directory_of_pickles_is_refused_with_the_line_that_converts_it(model, tmp_path, monkeypatch):
    folder = shutil.copytree(model, tmp_path / "my model")
    for part, name in (("unet", STEM), ("vae", STEM), ("text_encoder", "pytorch_model")):
        whole = (
            folder / part / f"{name.replace('pytorch_model', 'model') if part == 'text_encoder' else name}.safetensors"
        )
        torch.save(load_file(whole), folder / part / f"{name}.bin")
        whole.unlink()
    run_here(refused(folder), monkeypatch)
    assert open_pipeline(str(folder)).weights_sha256 == weights_of(model)


# ---------------------------------------------------------------- the hub


def test_offline_a_model_that_is_not_in_the_cache_gets_one_line(home):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    ask = [
        "erase",
        "--concept",
        "nudity",
        "--model",
        "some/model",
        "--variant",
        "fp16",
        "--output-dir",
        str(home / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sd_scissorhands", *ask], env=environment, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1 and len(lines) == 1 and done.stdout == ""
    assert all(
        part in lines[0] for part in ("some/model", "HF_HUB_OFFLINE is set", str(home), "hf download some/model")
    )


def test_a_model_in_the_cache_is_opened_offline_by_its_revision(model, home):
    laid(home, "some/model", model, "v1")
    opened = open_pipeline("some/model@v1")
    assert opened.weights_sha256 == weights_of(model) and opened.name == "some/model@v1"
    assert home in opened.directory.parents and locate_without_work("some/model@v1") == opened.files
    assert "some/model@v2 cannot be had" in refused("some/model@v2") and locate_without_work("some/model@v2") is None
    assert "some/model cannot be had" in refused("some/model")


def test_a_variant_in_the_cache_is_opened_offline(varied, home):
    there = laid(home, "some/model", varied)
    assert open_pipeline("some/model:fp16").weights_sha256 == open_pipeline(f"{varied}:fp16").weights_sha256
    assert "some/model:bf16 has no variant bf16: choose fp16" in refused("some/model:bf16")
    (there / "vae" / f"{STEM}.safetensors").unlink()
    text = refused("some/model")
    assert text.startswith(f"some/model/vae/{STEM}.safetensors is missing") and "HF_HUB_OFFLINE" in text


def test_only_what_a_variant_needs_is_fetched(varied, monkeypatch):
    from sd_scissorhands.models import locate as room

    asked = []
    monkeypatch.setattr(
        room, "fetch", lambda model, revision, wanted: asked.append((model, revision, wanted)) or varied
    )
    assert room.locate("some/model@v1:fp16") == PipelineDirectory(varied, "fp16")
    assert {one[:2] for one in asked} == {("some/model", "v1")}
    last = asked[-1][2]
    assert (
        f"vae/{STEM}.safetensors" in last
        and f"unet/{STEM}.safetensors" not in last
        and "text_encoder/model.safetensors" not in last
    )
    assert f"unet/{STEM}.fp16.safetensors" in asked[1][2]


def test_a_repository_without_a_needed_file_gets_one_line(model, tmp_path, monkeypatch):
    from sd_scissorhands.models import locate as room

    folder = shutil.copytree(model, tmp_path / "m")
    (folder / "text_encoder" / "model.safetensors").unlink()
    monkeypatch.setattr(room, "fetch", lambda *a: folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert refused("some/model").startswith(
        "some/model/text_encoder/model.safetensors is missing: the model directory is incomplete on the hub"
    )


# ---------------------------------------------------------------- the UNet of another file


def unet_file(path, model, how, change=lambda tensors: None):
    """A UNet that differs in every weight from a model's, as other programs save one."""
    export(model, "single-file" if how == "ldm" else "unet-only", output=path)
    tensors = {key: tensor + 0.25 for key, tensor in load_file(path).items() if how != "ldm" or key.startswith(UNET)}
    if how == "bare":
        export(model, "single-file", output=path.with_suffix(".whole.safetensors"))
        whole = load_file(path.with_suffix(".whole.safetensors"))
        tensors = {key.removeprefix(UNET): tensor + 0.25 for key, tensor in whole.items() if key.startswith(UNET)}
    if how == "prefixed":
        tensors = {f"unet.{key}": tensor for key, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("how", ["diffusers", "prefixed", "ldm", "bare"])
def test_a_model_takes_the_unet_of_another_file(model, how, tmp_path):
    name = with_unet(str(model), str(unet_file(tmp_path / "esd.safetensors", model, how)))
    opened, base = open_pipeline(name), open_pipeline(str(model))
    assert opened.weights_sha256 != base.weights_sha256
    theirs = base.denoiser.state_dict()
    for key, tensor in opened.denoiser.state_dict().items():
        assert torch.equal(tensor, (theirs[key].half() + 0.25).float()), key
    for key, tensor in opened.pipeline.text_encoder.state_dict().items():
        assert torch.equal(tensor, base.pipeline.text_encoder.state_dict()[key])
    count = len(theirs)
    assert origin_of(name) == f"esd.safetensors: {count} of {count} tensors"
    assert with_unet(str(model), str(tmp_path / "esd.safetensors")) == name
    assert load_file(model / "unet" / f"{STEM}.safetensors").keys() == theirs.keys()


def test_a_file_with_some_weights_of_the_unet_is_said_to_be_one(model, tmp_path):
    def some(tensors):
        for key in [key for key in tensors if ".attn2." not in key]:
            del tensors[key]

    file = unet_file(tmp_path / "esd-x.safetensors", model, "diffusers", some)
    name = with_unet(str(model), str(file))
    assert "the file has no others, and they are the base's" in origin_of(name)
    opened, base = open_pipeline(name).denoiser.state_dict(), open_pipeline(str(model)).denoiser.state_dict()
    assert {key for key in base if not torch.equal(base[key], opened[key])} == set(load_file(file))


def test_another_content_is_another_composed_model(model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    file = unet_file(tmp_path / "esd.safetensors", model, "diffusers")
    first = with_unet(str(base), str(file))
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    second = with_unet(str(base), str(file))
    save_file({key: tensor * 2 for key, tensor in load_file(file).items()}, file)
    assert len({first, second, with_unet(str(base), str(file))}) == 3


def test_a_unet_of_another_base_is_refused_by_name_and_shape(model, tmp_path):
    key = "conv_in.weight"
    for change, says in (
        (lambda tensors: tensors.update({"add_embedding.linear_1.bias": torch.zeros(3)}), "holds add_embedding.linear_1.bias, which the UNet of"),
        (lambda tensors: tensors.update({key: torch.zeros(8, 4, 3, 3)}), f"holds {key} as [8, 4, 3, 3], and the UNet of"),
        (lambda tensors: (tensors.clear(), tensors.update(x=torch.zeros(1))), "holds no weights of the UNet of"),
    ):  # fmt: skip
        file = unet_file(tmp_path / "u.safetensors", model, "diffusers", change)
        with pytest.raises(UserError) as caught:
            with_unet(str(model), str(file))
        assert says in str(caught.value) and "\n" not in str(caught.value)
        assert str(caught.value).endswith("name the base that it was made from")
        file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        with_unet(str(model), str(tmp_path / "none.safetensors"))


def test_commands_take_a_unet(model, tmp_path):
    file = unet_file(tmp_path / "esd.safetensors", model, "diffusers")
    runner = CliRunner()
    out = tmp_path / "out.safetensors"
    done = runner.invoke(app, ["export", str(model), "--unet", str(file), "--output", str(out)])
    assert done.exit_code == 0 and "esd.safetensors: " in " ".join(done.output.split()), done.output
    done = runner.invoke(app, ["diff", str(out), str(model), "--unet", str(file), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["identical"], done.output
    done = runner.invoke(app, ["diff", str(out), str(model), "--json"])
    assert not json.loads(done.stdout)["identical"]
    settings = composed(EvaluateSettings(model=str(model), unet=str(file), concept="heart"))
    assert settings.model == with_unet(str(model), str(file)) and settings.baseline == str(model)
    attacked = composed(AttackSettings("embedding", "heart", str(model), unet=str(file)))
    assert attacked.model == settings.model and attacked.baseline == str(model) and attacked.unet is None
    assert "unet" not in attacked.to_json()
    with pytest.raises(UserError, match="--unet has no effect without --model"):
        EvaluateSettings(images=str(tmp_path), unet=str(file))


# ---------------------------------------------------------------- names of files and of old text encoders


def test_endings_in_capitals_are_endings(file, model, tmp_path):
    loud = tmp_path / "X.SAFETENSORS"
    shutil.copyfile(file, loud)
    assert open_pipeline(str(loud), config=str(model)).weights_sha256 == weights_of(model)
    export(model, "single-file", output=tmp_path / "Y.SAFETENSORS")


@pytest.mark.parametrize("position_ids", [None, torch.int64, torch.float32])
@pytest.mark.parametrize("old", [False, True])
def test_text_encoders_of_other_releases_are_read(file, model, old, position_ids, tmp_path):
    def change(tensors):
        ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        tensors.pop(ids, None)
        if position_ids:
            tensors[ids] = torch.arange(24)[None].to(position_ids)
        for key in [key for key in tensors if old and ".text_model." in key]:
            tensors[key.replace(".text_model.", ".")] = tensors.pop(key)

    opened = open_pipeline(str(changed(file, tmp_path / "old.safetensors", change)), config=str(model))
    there = open_pipeline(str(model)).pipeline.text_encoder.state_dict()
    for key, tensor in opened.pipeline.text_encoder.state_dict().items():
        assert torch.equal(tensor, there[key]), key
    assert PipelineDirectory(opened.directory).denoiser.dtype("conv_in.weight") == torch.float16
    assert sorted(one.name for one in opened.directory.parent.iterdir() if not one.name.endswith(".lock")) == [
        opened.directory.name
    ]


# ---------------------------------------------------------------- what is copied


@pytest.fixture(scope="module")
def published(model, tmp_path_factory):
    """As Stable Diffusion 1 is published: with a safety checker, a feature extractor, shards, and a path in its index."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    folder = shutil.copytree(model, tmp_path_factory.mktemp("published") / "sd")
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    vision = small | dict(image_size=8, patch_size=8)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=4))
    checker.half().save_pretrained(folder / "safety_checker")
    (folder / "quality.json").unlink()
    (folder / "feature_extractor").mkdir()
    prepared = dict(feature_extractor_type="CLIPFeatureExtractor", image_processor_type="CLIPImageProcessor")
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(prepared))
    index = json.loads((folder / "model_index.json").read_text()) | {
        "_name_or_path": "/home/me/sd", "requires_safety_checker": True,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    unet = open_pipeline(str(model)).denoiser.half()
    (folder / "unet" / f"{STEM}.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "README.md"
    }


@pytest.fixture(scope="module")
def from_published(published, short, tmp_path_factory):
    """A run from it."""
    run = tmp_path_factory.mktemp("from") / "run"
    settings = dataclasses.replace(short, model=str(published), anchor="a star", steps=1, train="selection")
    return run, erase(settings, run)


@pytest.mark.parametrize("written", ["erase", "export", "apply"])
def test_what_an_erasure_does_not_change_is_the_base_s_byte_for_byte(published, from_published, tmp_path, written):
    run, result = from_published
    out = tmp_path / "out"
    if written == "erase":
        out = run / "model"
    elif written == "export":
        assert export(run, "diffusers", output=out).left_out is None
    else:
        assert apply_delta(str(published), run / "delta.safetensors", output_dir=out).left_out is None
    before, after = contents(published), contents(out)
    assert result.left_out is None and before.keys() == after.keys()
    weights = {name for name in before if name.startswith("unet/") and name.endswith(".safetensors")}
    configs = {"model_index.json", "unet/config.json"}  # which named the folder that they came from
    assert len(weights) > 1 and {name for name in before if before[name] != after[name]} <= weights | configs
    for name in configs:
        values = json.loads(before[name])
        assert json.loads(after[name]) == {k: v for k, v in values.items() if k != "_name_or_path"}
    assert all(tensor.dtype == torch.float16 for name in weights for tensor in load_file(out / name).values())
    assert verify(run).holds and open_pipeline(str(out)).weights_sha256 == result.weights_sha256


def test_an_erasure_in_float32_is_saved_whole(published, from_published, tmp_path):
    settings = EraseSettings.from_json(json.loads((from_published[0] / "run.json").read_text())["settings"])
    run = tmp_path / "run"
    result = erase(dataclasses.replace(settings, dtype="float32"), run)
    tensors = load_file(run / "model" / "unet" / f"{STEM}.safetensors")
    assert {one.dtype for one in tensors.values()} == {torch.float32}
    assert hash_tensors(tensors.items()) == result.weights_sha256 != from_published[1].weights_sha256
    assert not list((run / "model" / "unet").glob("*-of-*"))


def test_what_cannot_be_carried_over_is_said_in_a_sentence(published, tmp_path):
    base = shutil.copytree(published, tmp_path / "base")
    (base / "safety_checker" / "model.safetensors").rename(base / "safety_checker" / "pytorch_model.bin")
    (base / "vae" / f"{STEM}.bf16.safetensors").write_bytes(b"another variant")
    told = export(base, "diffusers", output=tmp_path / "out")
    assert told.left_out == (
        "not carried over from the base: feature_extractor (goes with the other), safety_checker (no safetensors), "
        f"vae/{STEM}.bf16.safetensors"
    )
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


def test_a_single_file_is_converted_with_names_that_former_releases_read_too(file, model):
    folder = locate(str(file), str(model)).directory
    names = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    here, there = contents(folder), contents(model)
    copied = [f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")]
    assert all(here[name] == there[name] for name in [*copied, "vae/config.json", "text_encoder/config.json"])
    assert str(model) not in (folder / "model_index.json").read_text()


def test_a_tokenizer_of_one_file_becomes_one_of_three(tmp_path):
    from sd_scissorhands.classic import write_classic_tokenizer

    shutil.copyfile(MODEL_DIR / "tokenizer" / "tokenizer.json", tmp_path / "tokenizer.json")
    write_classic_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (MODEL_DIR / "tokenizer" / name).read_bytes()


# ---------------------------------------------------------------- parts held against their files


def damaged(model: Path, to: Path, file: str, change) -> str:
    """The refusal of a model one of whose files is changed."""
    folder = shutil.copytree(model, to)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})
    return refused(folder)


TEXT, VAE = "text_encoder/model.safetensors", f"vae/{STEM}.safetensors"
BIAS = "encoder.layers.1.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (TEXT, lambda t: t.pop(f"text_model.{BIAS}"), f"model.safetensors lacks {BIAS}"),
        (TEXT, lambda t: t.update({f"text_model.{BIAS.replace('1', '2', 1)}": torch.ones(2)}), "no place for text_model.encoder.layers.2"),
        (TEXT, lambda t: t[f"text_model.{BIAS}"].fill_(torch.inf), f"{BIAS} holds NaN or infinite values"),
        (VAE, lambda t: t.pop("decoder.conv_in.bias"), "decoder.conv_in.bias"),
        (VAE, lambda t: t["decoder.conv_in.bias"].fill_(torch.nan), "vae's decoder.conv_in.bias holds NaN"),
        (VAE, lambda t: t.update({"decoder.conv_in.bias": torch.ones(7)}), "decoder.conv_in.bias of [7], config.json asks for [64]"),
        (TEXT, lambda t: t.update({f"text_model.{BIAS}": torch.ones(7)}), f"{BIAS} of [7], config.json asks for [128]"),
    ],
)  # fmt: skip
def test_a_part_that_is_not_as_its_file_is_named_with_the_tensor(model, tmp_path, file, change, says):
    text = damaged(model, tmp_path / "m", file, change)
    assert says in text and str(tmp_path / "m" / Path(file).parent) in text


@pytest.mark.parametrize(
    ("gone", "named"),
    [(("tokenizer.json", "vocab.json"), "tokenizer.json"), (("tokenizer.json", "merges.txt"), "merges.txt")],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(model, tmp_path, gone, named):
    folder = shutil.copytree(model, tmp_path / "m")
    for name in gone:
        (folder / "tokenizer" / name).unlink()
    assert f"{folder / 'tokenizer' / named} is missing" in refused(folder)


def test_a_tokenizer_that_reads_no_prompt_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "m")
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    file = folder / "tokenizer" / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"] |= {"vocab": {"<|startoftext|>": 835, "<|endoftext|>": 836}, "merges": []}
    file.write_text(json.dumps(values))
    assert f"{folder / 'tokenizer'} reads 'a photo of a cat' as" in refused(folder)


def test_a_tokenizer_without_a_length_takes_the_encoder_s(model, tmp_path):
    from sd_scissorhands.diffusion.denoiser import Denoiser

    folder = shutil.copytree(model, tmp_path / "m")
    file = folder / "tokenizer" / "tokenizer_config.json"
    values = json.loads(file.read_text())
    del values["model_max_length"]
    file.write_text(json.dumps(values))
    there, here = (Denoiser(open_pipeline(str(one)).pipeline) for one in (model, folder))
    assert torch.equal(there.encode(["a red heart"]), here.encode(["a red heart"]))


@pytest.fixture(scope="module")
def taught(model, tmp_path_factory):
    """A model with a token of its own, in tokenizer and text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = shutil.copytree(model, tmp_path_factory.mktemp("taught") / "sd")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens("<mine>")
    tokenizer.save_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    text.resize_token_embeddings(len(tokenizer))
    text.save_pretrained(folder / "text_encoder")
    return folder


def test_an_added_token_is_carried_by_a_directory_and_refused_by_a_single_file(taught, model, file, tmp_path):
    export(taught, "diffusers", output=tmp_path / "out")
    tokenizer = open_pipeline(str(tmp_path / "out")).pipeline.tokenizer
    assert tokenizer("<mine>").input_ids[1] == 837
    with pytest.raises(
        UserError, match=r"has tokens of its own \(<mine>\), which a single file cannot hold: choose diff"
    ):
        export(taught, "single-file", output=tmp_path / "one.safetensors")
    assert export(taught, "single-file", output=tmp_path / "one.safetensors", base=file).tensors
    shutil.copytree(model / "text_encoder", tmp_path / "out" / "text_encoder", dirs_exist_ok=True)
    assert "has 838 tokens, and text_encoder embeds 837" in refused(tmp_path / "out")


def test_a_file_with_tokens_of_its_own_is_read_with_the_configs_that_it_was_made_with(taught, model, file, tmp_path):
    def grow(tensors):
        key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
        tensors[key] = PipelineDirectory(taught).components["text_encoder"].tensor("embeddings.token_embedding.weight")

    grown = changed(file, tmp_path / "grown.safetensors", grow)
    text = refused(grown, config=str(model))
    assert f"embeds 838 tokens, and {model / 'text_encoder'} 837: it was trained with tokens of its own" in text
    assert open_pipeline(str(grown), config=str(taught)).pipeline.tokenizer("<mine>").input_ids[1] == 837


def test_no_part_of_an_index_leads_out_of_its_directory(model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"../../elsewhere": ["transformers", "CLIPTokenizer"]}))
    export(base, "diffusers", output=tmp_path / "deep" / "out")
    assert not (tmp_path / "elsewhere").exists() and "../../elsewhere" not in PipelineDirectory(base).parts


def test_a_safety_checker_is_fetched_with_the_rest(published, monkeypatch):
    from sd_scissorhands.models import locate as place

    patterns = []
    monkeypatch.setattr(place, "fetch", lambda model, revision, wanted: patterns.extend(wanted) or published)
    place.locate("some/model")
    assert {"safety_checker/model.safetensors", "feature_extractor/*"} <= set(patterns)
