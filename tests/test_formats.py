"""What the formats do for families beside Stable Diffusion 1 and 2: SDXL in one file, half precision for all."""

from __future__ import annotations

import hashlib

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import BUILDERS, build
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sd_scissorhands.models.diff import difference
from sd_scissorhands.models.export import export
from sd_scissorhands.models.keys import Blocks, canonical, ldm_locations
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.models.tensor_files import TensorFile
from sd_scissorhands.settings import UserError

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


def test_a_transformer_has_no_single_file(folder, tmp_path):
    if (folder / "unet").exists():
        return
    with pytest.raises(UserError, match=r"has a transformer.*choose diffusers, unet-only .* or delta"):
        export(folder, "single-file", output=tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
