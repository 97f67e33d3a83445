"""What the formats do for families beside Stable Diffusion 1 and 2: SDXL in one file, half precision for all."""

from __future__ import annotations

import hashlib
import json
import shutil

import diffusers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from small_pipelines import BUILDERS, build
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.errors import UserError
from sd_scissorhands.models import single_file_reader
from sd_scissorhands.models.addon import layer_names
from sd_scissorhands.models.diff import difference
from sd_scissorhands.models.export import export
from sd_scissorhands.models.keys import Blocks, canonical, ldm_locations
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.models.prediction import Prediction
from sd_scissorhands.models.tensor_files import TensorFile

# Configs as SDXL base 1.0 publishes them.
XL_UNET = dict(
    sample_size=128, cross_attention_dim=2048, attention_head_dim=(5, 10, 20), layers_per_block=2, block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), transformer_layers_per_block=(1, 2, 10),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
XL_VAE = dict(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
    up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
)  # fmt: skip
XL_TEXTS = {
    "text_encoder": (CLIPTextModel, dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)),
    "text_encoder_2": (CLIPTextModelWithProjection, dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280)),
}  # fmt: skip
# Per part of the published file: how many names, and the sha256 of them, sorted, a line each. Left out are what has no weights
# in a pipeline: position_ids of the first text encoder, logit_scale of the second.
XL_NAMES = {
    "unet": ("model.diffusion_model.", 1680, "3fb5dddfff0311c8acf5c94bf2de97aa66d64c3333c86c39916e4d08fa691c17"),
    "vae": ("first_stage_model.", 248, "21416c5ccb2f84d7fd9e0d9d7f17876a0830a060538dd437ab040334b64d5f60"),
    "text_encoder": (
        "conditioner.embedders.0.transformer.text_model.",
        196,
        "d6a7c94bf1bcd38bfb92666ba19dfd5f1e86e50d869441a715e2ce6b16eb2db2",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.",
        389,
        "5fe7a31627e5c451d7cc771c0be3733e53f06856ed6901b9f03c9f68a27b017f",
    ),
}


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory):
    """A small pipeline of each family."""
    return build(request.param, tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A small SDXL."""
    return build("sdxl", tmp_path_factory.mktemp("xl") / "base")


def weights(directory):
    """Every tensor of a pipeline directory, by part and canonical name."""
    parts = PipelineDirectory(directory).components
    return {f"{part}.{name}": found.tensor(name) for part, found in parts.items() for name in found.keys}


def held(pipeline, parts):
    """Every tensor of a loaded pipeline, the same way."""
    return {
        f"{part}.{own}": tensor
        for part in parts
        for name, tensor in getattr(pipeline, part).state_dict().items()
        if (own := canonical(part, name))
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        "a red heart", num_inference_steps=2, height=32, width=32, output_type="np", generator=generator
    ).images


# ---------------------------------------------------------------- SDXL in one file


def test_the_names_of_sdxl_are_those_of_its_published_file():
    with torch.device("meta"):
        unet, vae = diffusers.UNet2DConditionModel(**XL_UNET), diffusers.AutoencoderKL(**XL_VAE)
        texts = {part: kind(CLIPTextConfig(**config)) for part, (kind, config) in XL_TEXTS.items()}
    names = {part: filter(None, (canonical(part, name) for name in texts[part].state_dict())) for part in texts}
    names |= {"unet": unet.state_dict(), "vae": vae.state_dict()}
    places = ldm_locations(names, xl=True, open_clip=False, blocks=Blocks.of_config(dict(unet.config)))
    for part, (prefix, count, digest) in XL_NAMES.items():
        keys = sorted({place.key for place in places[part].values()})
        assert len(keys) == count and all(key.startswith(prefix) for key in keys)
        assert hashlib.sha256("\n".join(keys).encode()).hexdigest() == digest, part
    big = {place.key for place in places["text_encoder_2"].values()}
    assert "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight" in big
    assert "conditioner.embedders.1.model.text_projection" in big


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_diffusers_loads_all_of_sdxl_out_of_one_file(xl, dtype, tmp_path):
    file, asked = tmp_path / "xl.safetensors", weights(xl)
    told = export(xl, "single-file", output=file, dtype=dtype)
    assert told.tensors == len(load_file(file))
    kind = torch.float16 if dtype else torch.float32
    there = diffusers.StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(xl), local_files_only=True, torch_dtype=kind, add_watermarker=False
    )
    assert same(
        held(there, PipelineDirectory(xl).components), {name: tensor.to(kind) for name, tensor in asked.items()}
    )
    projection = load_file(file)["conditioner.embedders.1.model.text_projection"]
    assert torch.equal(projection, asked["text_encoder_2.text_projection.weight"].T.to(kind))
    assert projection.shape == (24, 20)
    if not dtype:
        here = diffusers.StableDiffusionXLPipeline.from_pretrained(xl, add_watermarker=False)
        there.scheduler = type(here.scheduler).from_config(here.scheduler.config)
        assert (
            abs(draw(there) - draw(here)).max() < 1e-5
        )  # where a tensor lies in memory decides its products' last bits


def test_one_file_and_its_directory_are_the_same_model(xl, tmp_path):
    file = tmp_path / "xl.safetensors"
    export(xl, "single-file", output=file)
    for a, b in ((xl, file), (file, xl)):
        told = difference(str(a), str(b))
        assert told.identical and told.tensors == len(weights(xl))
    key = "conditioner.embedders.1.model.text_projection"
    tensors = load_file(file)
    tensors[key][3, 2] += 1.0
    save_file(tensors, file)
    told = difference(str(xl), str(file), by="parameter")
    assert [row.name for row in told.rows] == ["text_encoder_2.text_projection.weight"]
    assert told.changed == 1


def test_only_the_unet_of_somebodys_sdxl_is_replaced(xl, tmp_path):
    mine, out = tmp_path / "mine.safetensors", tmp_path / "clean.safetensors"
    export(xl, "single-file", output=mine)
    tensors = load_file(mine)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, mine)
    export(xl, "single-file", output=out, base=mine)
    for key, tensor in load_file(out).items():
        assert torch.equal(tensor, tensors[key] + (not key.startswith("model.diffusion_model."))), key


def test_a_projection_that_does_not_read_back_is_not_kept(xl, tmp_path, monkeypatch):
    genuine = TensorFile.open

    def flipped(path):
        if path.name.endswith(".partial"):
            entry, raw = genuine(path), bytearray(path.read_bytes())
            at = entry.start + entry.entries["conditioner.embedders.1.model.text_projection"]["data_offsets"][0]
            raw[at] ^= 1
            path.write_bytes(raw)
        return genuine(path)

    monkeypatch.setattr(TensorFile, "open", flipped)
    with pytest.raises(UserError, match=r"text_encoder_2\.text_projection"):
        export(xl, "single-file", output=tmp_path / "xl.safetensors")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- every family


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_family_loads_in_half_precision(folder, dtype, tmp_path):
    out, kind = tmp_path / "half", getattr(torch, dtype)
    export(folder, "diffusers", output=out, dtype=dtype)
    asked = {name: tensor.to(kind) for name, tensor in weights(folder).items()}
    assert same(weights(out), asked)
    loaded = diffusers.DiffusionPipeline.from_pretrained(out, torch_dtype=kind, local_files_only=True)
    parts = PipelineDirectory(out).components
    assert {getattr(loaded, part).dtype for part in parts} == {kind}
    assert (
        open_pipeline(str(out)).weights_sha256
        == export(out, "unet-only", output=tmp_path / "u.safetensors").weights_sha256
    )


def test_the_layers_of_an_addon_are_named_as_kohyas_scripts_name_them(xl):
    found = layer_names(PipelineDirectory(xl))
    assert found["conv_in"] == "lora_unet_input_blocks_0_0" and all("down_blocks" not in key for key in found.values())
    assert len(set(found.values())) == len(found)


def test_a_transformer_has_no_single_file(folder, tmp_path):
    if (folder / "unet").exists():
        return
    for to in ("single-file", "lycoris"):
        with pytest.raises(UserError, match=r"has a transformer.*choose diffusers, unet-only .* or delta"):
            export(folder, to, output=tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is predicted


def rescaled(folder, spacing="trailing"):
    """A pipeline whose scheduler predicts v from zero terminal SNR."""
    config = folder / "scheduler/scheduler_config.json"
    values = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing=spacing)
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    return folder


def scheduler_of(file, config):
    return open_pipeline(str(file), config=str(config)).files.config("scheduler")


def test_v_prediction_and_zero_snr_are_in_markers_and_metadata(xl, tmp_path):
    model, file = rescaled(shutil.copytree(xl, tmp_path / "v")), tmp_path / "v.safetensors"
    made = export(model, "single-file", output=file)
    held = load_file(file)
    assert held["v_pred"].shape == held["ztsnr"].shape == (0,) and made.note is None
    assert made.tensors == len(held)
    metadata = TensorFile.open(file).metadata
    assert metadata["modelspec.prediction_type"] == "v" and metadata["sdscissor.zero_terminal_snr"] == "true"
    assert difference(str(model), str(file)).identical
    export(xl, "single-file", output=tmp_path / "plain.safetensors")
    assert not {"v_pred", "ztsnr"} & load_file(tmp_path / "plain.safetensors").keys()
    again = tmp_path / "again.safetensors"
    export(xl, "single-file", base=file, output=again)  # the markers are those of the UNet
    assert not {"v_pred", "ztsnr"} & load_file(again).keys()
    assert "sdscissor.zero_terminal_snr" not in TensorFile.open(again).metadata


@pytest.mark.parametrize("mark", ["markers", "ours", "kohya"])
def test_zero_snr_of_a_file_is_in_its_scheduler(xl, mark, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    export(xl, "single-file", output=tmp_path / "plain.safetensors")
    held = load_file(tmp_path / "plain.safetensors")
    if mark == "markers":
        save_file(held | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "f.safetensors")
    else:
        key = {"ours": "sdscissor.zero_terminal_snr", "kohya": "ss_zero_terminal_snr"}[mark]
        metadata = {"modelspec.prediction_type": "v_prediction", key: "True"}
        save_file(held, tmp_path / "f.safetensors", metadata)
    config = shutil.copytree(xl, tmp_path / "v")
    file = config / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(UserError, match="predicts v"):  # a config that was named and contradicts
        scheduler_of(tmp_path / "f.safetensors", xl)
    found = scheduler_of(tmp_path / "f.safetensors", config)
    assert found["rescale_betas_zero_snr"] and found["timestep_spacing"] == "trailing"
    assert found["prediction_type"] == "v_prediction" and found["_class_name"] == "EulerDiscreteScheduler"


def test_the_config_of_the_family_predicts_what_the_file_says(xl, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    export(rescaled(shutil.copytree(xl, tmp_path / "v")), "single-file", output=tmp_path / "f.safetensors")
    monkeypatch.setattr(single_file_reader, "_fetch_config", lambda path, name: PipelineDirectory(xl))
    found = open_pipeline(str(tmp_path / "f.safetensors")).files.config("scheduler")
    assert found["rescale_betas_zero_snr"] and found["prediction_type"] == "v_prediction"


def test_a_scheduler_without_zero_snr_becomes_one_with_it():
    pndm = diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.001, steps_offset=1)
    found = Prediction(velocity=True, zero_snr=True).scheduler(pndm)
    assert found.alphas_cumprod[-1] == 0 and found.config.prediction_type == "v_prediction"
    assert found.config.beta_start == 0.001 and not found.config.clip_sample
    assert Prediction().scheduler(pndm) is pndm


# ---------------------------------------------------------------- Stable Diffusion 2 in ComfyUI


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    """A small Stable Diffusion 2 whose text encoder has as many blocks as the published one, and its UNet twelve outputs."""
    folder = build("sd2", tmp_path_factory.mktemp("sd2") / "base")
    text = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    text.num_hidden_layers = 23
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16,
        use_linear_projection=True,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    return folder


def test_the_last_text_block_of_sd2_is_there(sd2, tmp_path):
    export(sd2, "single-file", output=tmp_path / "f.safetensors")
    held, block = load_file(tmp_path / "f.safetensors"), "cond_stage_model.model.transformer.resblocks."
    last = {key for key in held if key.startswith(f"{block}23.")}
    assert len(last) == 12
    assert all(torch.equal(held[key], held[key.replace(f"{block}23.", f"{block}22.")]) for key in last)
    for key in last:
        held[key] = held[key] + 1
    save_file(held, tmp_path / "base.safetensors")
    export(sd2, "single-file", base=tmp_path / "base.safetensors", output=tmp_path / "g.safetensors")
    assert same({key: load_file(tmp_path / "g.safetensors")[key] for key in last}, {key: held[key] for key in last})
    assert difference(str(sd2), str(tmp_path / "f.safetensors")).identical


def test_what_comfyui_would_misread_is_said_at_export(sd2, xl, tmp_path):
    file = sd2 / "unet/diffusion_pytorch_model.safetensors"
    name = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
    for scale, velocity, said in (
        (0.5, True, None), (0.01, True, "for epsilon, and it is v"), (0.01, False, None), (0.5, False, "for v, and it is epsilon"),
    ):  # fmt: skip
        model = shutil.copytree(sd2, tmp_path / f"{scale}{velocity}")
        tensors = load_file(file)
        tensors[name] = scale * torch.tensor([1.0, -1.0]).repeat(4)
        save_file(tensors, model / "unet" / file.name, {"format": "pt"})
        config = model / "scheduler/scheduler_config.json"
        kind = "v_prediction" if velocity else "epsilon"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": kind}))
        note = export(model, "single-file", output=tmp_path / f"{scale}{velocity}.safetensors").note
        assert (note is None) if said is None else said in note and "ModelSamplingDiscrete" in note
    done = CliRunner().invoke(app, ["export", str(model), "--output", str(tmp_path / "x.safetensors")])
    assert done.exit_code == 0 and "for v, and it is epsilon" in " ".join(done.output.split())
