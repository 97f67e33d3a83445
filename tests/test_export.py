"""Exports: other programs' names, every tensor back through diffusers' own converters, and nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import struct

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.models import tensor_files as stream
from sd_scissorhands.models.addon import change_of, nearest
from sd_scissorhands.models.export import export
from sd_scissorhands.models.keys import Blocks, canonical, ldm_locations
from sd_scissorhands.models.locate import find_pipeline
from sd_scissorhands.models.modelspec import architecture
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.models.tensor_files import TensorFile, TensorToWrite, cast, check_no_pickle, write_tensor_file
from sd_scissorhands.models.verify import verify
from sd_scissorhands.publishing import format_of
from sd_scissorhands.tiny import MODEL_DIR

runner = CliRunner()
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"

# Configs as Stable Diffusion 1.4 publishes them.
SD1_UNET = dict(
    sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)  # fmt: skip
SD1_VAE = dict(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
    up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
)  # fmt: skip
SD1_TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
# How many names a published file of SD 1 holds per part, and the sha256 of these names, sorted, a line each.
SD1_NAMES = {
    "model.diffusion_model": (686, "a635fa777e57c17aa014b0cb53066680fbcafb6c4c219fe796c8b5415a059dcd"),
    "first_stage_model": (248, "21416c5ccb2f84d7fd9e0d9d7f17876a0830a060538dd437ab040334b64d5f60"),
    "cond_stage_model": (196, "24b784cf2ebc807b77ad3282980c7028efdd42b22611c215ced4310dd1d8e434"),
}


def build(folder, *, levels=2, layers=1, attention=None, linear=False, gelu=False, prediction="epsilon"):
    """A small pipeline of diffusers' real classes with Stable Diffusion's block types."""
    attention = attention or [True] * (levels - 1) + [False]
    channels = tuple(8 * min(n + 1, 2) for n in range(levels))
    down = tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attention)
    up = tuple(f"{'CrossAttn' if yes else ''}UpBlock2D" for yes in reversed(attention))
    torch.manual_seed(levels + 10 * layers)
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL_DIR, safety_checker=None, torch_dtype=torch.float32)
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4, layers_per_block=layers,
        block_out_channels=channels, down_block_types=down, up_block_types=up, use_linear_projection=linear,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 8)[: max(levels - 1, 1)], norm_num_groups=4, latent_channels=4, layers_per_block=layers,
        down_block_types=("DownEncoderBlock2D",) * max(levels - 1, 1), up_block_types=("UpDecoderBlock2D",) * max(levels - 1, 1),
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=837, hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=24, hidden_act="gelu" if gelu else "quick_gelu",
        )
    )  # fmt: skip
    for network in (unet, vae, text):  # no two tensors alike, as norms and biases are when fresh
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    made = StableDiffusionPipeline(
        vae, text, pipeline.tokenizer, unet,
        type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=prediction),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small pipeline."""
    return build(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture(scope="module")
def run(tmp_path_factory, short):
    """A finished run of seconds."""
    folder = tmp_path_factory.mktemp("runs") / "heart"
    erase(short, folder)
    return folder


def weights(directory):
    """Every tensor of a pipeline directory, by part and canonical name."""
    return {
        f"{part}.{name}": found.tensor(name)
        for part, found in PipelineDirectory(directory).components.items()
        for name in found.keys
    }


def loaded(file, directory):
    """Every tensor of a single file as diffusers' own loaders make networks of it."""
    components = PipelineDirectory(directory).components
    how = dict(config=str(directory), local_files_only=True)
    networks = {
        "unet": UNet2DConditionModel.from_single_file(str(file), subfolder="unet", **how),
        "vae": AutoencoderKL.from_single_file(str(file), subfolder="vae", **how),
        "text_encoder": create_diffusers_clip_model_from_ldm(
            CLIPTextModel, load_file(file), subfolder="text_encoder", **how
        ),
    }
    assert components.keys() == networks.keys()
    return {
        f"{part}.{canonical(part, name)}": tensor
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
        if canonical(part, name)
    }


def located(component, names, *, blocks=None, open_clip=False):
    """Where the tensors of one component stand in an LDM file."""
    return ldm_locations({component: names}, xl=False, open_clip=open_clip, blocks=blocks)[component]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(*arguments):
    """The one line of a command that must fail."""
    done = runner.invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 1 and done.stdout == "" and isinstance(done.exception, UserError), done.exception
    assert "\n" not in str(done.exception)
    return str(done.exception)


# ---------------------------------------------------------------- names


def ldm_names(channels, layers, attention):
    """The names of the original UNetModel's blocks, appended in the order of its constructor (openaimodel.py)."""
    found, at, inputs, width = {"time_embed.0", "time_embed.2", "input_blocks.0.0"}, 1, [channels[0]], channels[0]

    def block(place, width_in, width_out, attends):
        inner = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
        found.update(f"{place}.0.{name}" for name in inner + ["skip_connection"] * (width_in != width_out))
        if attends:
            found.add(f"{place}.1")

    for level, out in enumerate(channels):
        for _ in range(layers):
            block(f"input_blocks.{at}", width, out, attention[level])
            width, at = out, at + 1
            inputs.append(out)
        if level + 1 < len(channels):
            found.add(f"input_blocks.{at}.0.op")
            at += 1
            inputs.append(out)
    for place in (0, 2):
        found.update(f"middle_block.{place}.{name}" for name in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"))  # fmt: skip
    found.add("middle_block.1")
    at = 0
    for level in reversed(range(len(channels))):
        for n in range(layers + 1):
            block(f"output_blocks.{at}", width + inputs.pop(), channels[level], attention[level])
            width = channels[level]
            if level and n == layers:
                found.add(f"output_blocks.{at}.{1 + attention[level]}.conv")
            at += 1
    return found | {"out.0", "out.2"}


def modules_of(keys):
    """What `ldm_names` says of the same UNet: attention as one, everything else by its module."""
    found = set()
    for key in keys:
        name = key.removeprefix("model.diffusion_model.").rpartition(".")[0]
        parts = name.split(".")
        attends = parts[0] in ("input_blocks", "output_blocks") and parts[2] == "1" and parts[3:] != ["conv"]
        attends, short = attends or name.startswith("middle_block.1"), 2 if parts[0] == "middle_block" else 3
        found.add(".".join(parts[:short]) if attends else name)
    return found


@pytest.mark.parametrize(
    ("layers", "attention", "linear"),
    [
        (1, [True, False], False),
        (2, [True, True, True, False], False),
        (2, [True, True, True, False], True),
        (1, [False, True, True], True),  # as SDXL: none at the top, and the last level has it
        (3, [True, False, True], False),
    ],
)
def test_names_are_those_that_the_original_constructor_gives(layers, attention, linear):
    channels = [32 * min(2**n, 4) for n in range(len(attention))]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            layers_per_block=layers, block_out_channels=channels, cross_attention_dim=12, attention_head_dim=4, use_linear_projection=linear,
            down_block_types=["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attention],
            up_block_types=["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attention)],
        )  # fmt: skip
    names = list(unet.state_dict())
    blocks = Blocks.of_config(dict(unet.config))
    keys = [place.key for place in located("unet", names, blocks=blocks).values()]
    assert len(set(keys)) == len(keys) == len(names)
    assert modules_of(keys) == ldm_names(channels, layers, attention)
    assert Blocks.of_names(names) == blocks


def test_the_names_of_stable_diffusion_1_are_those_of_its_published_file():
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SD1_UNET), AutoencoderKL(**SD1_VAE)
        text = CLIPTextModel(CLIPTextConfig(**SD1_TEXT))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    places = [
        located("unet", unet.state_dict(), blocks=Blocks.of_config(dict(unet.config))),
        located("vae", vae.state_dict()),
        located("text_encoder", filter(None, (canonical("text_encoder", name) for name in text.state_dict()))),
    ]
    for (prefix, (count, digest)), found in zip(SD1_NAMES.items(), places, strict=True):
        keys = sorted(place.key for place in found.values())
        assert len(keys) == count and all(key.startswith(f"{prefix}.") for key in keys)
        assert hashlib.sha256("\n".join(keys).encode()).hexdigest() == digest
    keys = {place.key.removeprefix("model.diffusion_model."): name for name, place in places[0].items()}
    assert keys["input_blocks.0.0.weight"] == "conv_in.weight" and keys["out.2.weight"] == "conv_out.weight"
    assert keys["time_embed.0.weight"] == "time_embedding.linear_1.weight"
    to_q = "transformer_blocks.0.attn1.to_q.weight"
    assert keys[f"input_blocks.1.1.{to_q}"] == f"down_blocks.0.attentions.0.{to_q}"
    assert keys[f"middle_block.1.{to_q}"] == f"mid_block.attentions.0.{to_q}"
    assert keys[f"output_blocks.11.1.{to_q}"] == f"up_blocks.3.attentions.2.{to_q}"


def test_the_open_clip_of_stable_diffusion_2_joins_query_key_and_value():
    with torch.device("meta"):
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=1024, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
        )
    names = [own for name in text.state_dict() if (own := canonical("text_encoder", name))]
    places = located("text_encoder", names, open_clip=True)
    keys = {place.key.removeprefix("cond_stage_model.model.") for place in places.values()}
    assert len(names) == 23 * 16 + 4 and len(keys) == 23 * 12 + 4
    assert {"positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias"} < keys
    assert {"transformer.resblocks.22.attn.in_proj_weight", "transformer.resblocks.22.mlp.c_proj.bias"} < keys
    thirds = [places[f"encoder.layers.22.self_attn.{one}_proj.bias"].qkv_index for one in "qkv"]
    assert thirds == [0, 1, 2]


def test_what_has_no_place_is_refused_by_its_name():
    blocks = Blocks(2, (True, False), (False, True))
    for name in ("encoder_hid_proj.weight", "down_blocks.1.attentions.0.norm.weight", "down_blocks.0.motion.0.weight",
                 "down_blocks.7.resnets.0.conv1.weight", "down_blocks.0.resnets.0.conv3.weight"):  # fmt: skip
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            located("unet", [name], blocks=blocks)
    with pytest.raises(UserError, match="SimpleCrossAttnDownBlock2D"):
        Blocks.of_config({"down_block_types": ["SimpleCrossAttnDownBlock2D"], "up_block_types": ["UpBlock2D"]})
    with pytest.raises(UserError, match="layers_per_block"):
        Blocks.of_config(
            {"layers_per_block": [1, 2], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
        )
    with pytest.raises(UserError, match=r"encoder\.mid_block\.attentions\.0\.to_add"):
        located("vae", ["encoder.mid_block.attentions.0.to_add.weight"])
    with pytest.raises(UserError, match="OpenCLIP"):
        located("text_encoder", ["visual.weight"], open_clip=True)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "shape",
    [
        dict(levels=2, layers=1), dict(levels=4, layers=2), dict(levels=3, layers=2, linear=True, gelu=True, prediction="v_prediction"),
        dict(levels=3, layers=1, attention=[False, True, True]), dict(levels=2, layers=2, attention=[True, True], gelu=True),
    ],
    ids=str,
)  # fmt: skip
def test_diffusers_loads_every_tensor_back(shape, tmp_path):
    directory = build(tmp_path / "sd", **shape)
    told = export(directory, "single-file", output=tmp_path / "one.safetensors")
    assert same(loaded(tmp_path / "one.safetensors", directory), weights(directory))
    assert told.tensors == len(TensorFile.open(tmp_path / "one.safetensors").entries)
    if shape["levels"] == 4:
        return
    half = tmp_path / "half.safetensors"
    export(directory, "single-file", output=half, dtype="float16")
    assert {tensor.dtype for tensor in load_file(half).values()} == {torch.float16}
    asked = {name: tensor.half().float() for name, tensor in weights(directory).items()}
    assert same(loaded(half, directory), asked)


def test_the_whole_pipeline_draws_the_same_picture_from_the_single_file(tmp_path):
    file = tmp_path / "one.safetensors"
    export(MODEL_DIR, "single-file", output=file, dtype="float32")
    there = StableDiffusionPipeline.from_single_file(str(file), config=str(MODEL_DIR), local_files_only=True)
    here = StableDiffusionPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32)
    for pipeline in (there, here):
        pipeline.safety_checker = None
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = type(here.scheduler).from_config(here.scheduler.config)
    drawn = [
        pipeline(
            "a red heart", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
        ).images
        for pipeline in (there, here)
    ]
    assert (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_unet_and_directory_in_every_precision(model, dtype, tmp_path):
    kind = stream.DTYPES.get(dtype, torch.float32)
    asked = {name: tensor.to(kind) for name, tensor in weights(model).items()}
    export(model, "unet-only", output=tmp_path / "u.safetensors", dtype=dtype)
    unet = load_file(tmp_path / "u.safetensors")
    assert same({f"unet.{name}": tensor for name, tensor in unet.items()}, {n: t for n, t in asked.items() if n[:5] == "unet."})  # fmt: skip
    UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet")).load_state_dict(unet)
    export(model, "diffusers", output=tmp_path / "d", dtype=dtype)
    assert same(weights(tmp_path / "d"), asked)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "d", torch_dtype=kind)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == kind
    assert json.loads((tmp_path / "d/text_encoder/config.json").read_text())["dtype"] == str(kind)[6:]
    assert (tmp_path / "d/tokenizer/tokenizer.json").read_bytes() == (model / "tokenizer/tokenizer.json").read_bytes()


def test_a_vae_and_a_text_encoder_under_their_old_names(model, tmp_path):
    old = tmp_path / "sd"
    shutil.copytree(model, old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = old / "vae/diffusion_pytorch_model.safetensors"

    def aged(name):
        return next((name.replace(f".{new}.", f".{was}.") for new, was in names.items() if f".{new}." in name), name)

    save_file({aged(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    file = old / "text_encoder/model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(24)}, file, {"format": "pt"})
    export(old, "single-file", output=tmp_path / "old.safetensors")
    export(model, "single-file", output=tmp_path / "new.safetensors")
    assert same(load_file(tmp_path / "old.safetensors"), load_file(tmp_path / "new.safetensors"))


def test_no_second_weights_slip_into_an_exported_directory(model, tmp_path):
    more = tmp_path / "sd"
    shutil.copytree(model, more)
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors", "old.bin"):
        (more / "unet" / name).write_bytes(b"the concept, whole")
    export(more, "diffusers", output=tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out/unet").iterdir()) == ["config.json", UNET_FILE.split("/")[1]]
    assert (tmp_path / "out/text_encoder/config.json").read_bytes() == (model / "text_encoder/config.json").read_bytes()


def test_a_run_becomes_a_delta_that_gives_its_model_back(run, tmp_path):
    done = runner.invoke(
        app, ["export", str(run), "--to", "delta", "--output", str(tmp_path / "d.safetensors"), "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["delta_weights"] > 0 and told["format"] == "delta"
    again = runner.invoke(app, ["apply", "tiny", told["output"], "--output-dir", str(tmp_path / "m"), "--quiet"])
    assert again.exit_code == 0, again.output
    assert same(load_file(tmp_path / "m" / UNET_FILE), load_file(run / "model" / UNET_FILE))
    assert "was made by no run" in refused("export", MODEL_DIR, "--to", "delta", "--output", tmp_path / "x.safetensors")


# ---------------------------------------------------------------- an add-on


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 6, 3, 3)])
def test_the_factors_are_those_of_the_nearest_matrix(shape):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    up, down = nearest(change, 5)
    assert up.shape == (shape[0], 5, *(1,) * (len(shape) - 2)) and down.shape == (5, *shape[1:])
    parts = {".lora_up.weight": up, ".lora_down.weight": down, ".alpha": torch.tensor(5.0)}
    missed = (change_of("a.weight", parts) - change).square().sum()
    torch.testing.assert_close(missed, torch.linalg.svdvals(change.flatten(1))[5:].square().sum())
    low = change_of("a.weight", parts)
    again, more = nearest(low, 9)  # no more than it has
    assert again.shape[1] == more.shape[0] == 5
    whole = nearest(change, 1000)
    torch.testing.assert_close((whole[0].flatten(1) @ whole[1].flatten(1)).reshape(shape), change, atol=1e-5, rtol=1e-4)


def addon(run, path, *more):
    """What `export --to lycoris` says of an add-on at a path."""
    done = runner.invoke(
        app, ["export", str(run), "--to", "lycoris", "--output", str(path), "--json", *more], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def applied(path, folder):
    done = runner.invoke(app, ["apply", "tiny", str(path), "--output-dir", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_run_becomes_an_addon_that_gives_its_model_back(run, tmp_path):
    path = tmp_path / "a.safetensors"
    told = addon(run, path, "--dtype", "float32")
    assert told["addon"]["base"] == "tiny" and told["addon"]["energy_lost"] < 1e-6 and "left out" in told["note"]
    made = applied(path, tmp_path / "m")
    before, after = (load_file(folder / UNET_FILE) for folder in (MODEL_DIR, run / "model"))
    back = load_file(tmp_path / "m" / UNET_FILE)
    assert told["addon"]["equal"] == sum(torch.equal(after[name].float(), back[name].float()) for name in after)
    assert ("erased_sha256" in made) == (told["addon"]["equal"] < told["addon"]["unet_tensors"] == len(after))
    moved = [name for name in after if not torch.equal(before[name].float(), after[name].float())]
    tensors = load_file(path)
    for name in moved:
        layer, _, kind = name.rpartition(".")
        end = {"weight": "diff", "bias": "diff_b"}[kind]
        assert torch.equal(
            tensors[f"lora_unet_{layer.replace('.', '_')}.{end}"], after[name].float() - before[name].float()
        )
    assert {f"lora_unet_{name.rpartition('.')[0].replace('.', '_')}" for name in moved} == {
        key.split(".")[0] for key in tensors
    }
    assert format_of(path) == "lycoris" and "is an add-on: make" in refused("diff", path, run)
    shutil.copy(path, copy := run / "heart-lycoris.safetensors")
    try:
        assert {f"export {copy.name}"} <= {check.what for check in verify(run).checks if check.holds}
    finally:
        copy.unlink()


def test_a_low_rank_is_refused_where_it_loses_much_and_counted_where_not(run, tmp_path):
    path = tmp_path / "a.safetensors"
    error = refused("export", run, "--to", "lycoris", "--rank", 1, "--output", path)
    assert (
        "--rank 1 loses" in error
        and "5% at most" in error
        and "raise it, or leave it out" in error
        and not path.exists()
    )
    told = addon(run, path, "--rank", "32", "--dtype", "float32")
    assert told["addon"]["rank"] == 32 and 0 <= told["addon"]["energy_lost"] < 0.05
    assert {key.split(".", 1)[1] for key in load_file(path)} == {"lora_up.weight", "lora_down.weight", "alpha"}
    applied(path, tmp_path / "m")
    before, after, made = (load_file(folder / UNET_FILE) for folder in (MODEL_DIR, run / "model", tmp_path / "m"))
    change, missed = (
        sum((one[name].float() - after[name].float()).double().square().sum() for name in after)
        for one in (before, made)
    )
    assert told["addon"]["energy_lost"] == pytest.approx((missed / change).item(), rel=0.01, abs=1e-9)


def test_addons_that_cannot_be_made_or_applied(run, foreign, tmp_path):
    path, bad = tmp_path / "a.safetensors", tmp_path / "bad.safetensors"
    addon(run, path)
    assert "made by no run" in refused("export", MODEL_DIR, "--to", "lycoris", "--output", bad)
    assert "--rank is for --to lycoris" in refused("export", run, "--rank", 4, "--output", bad)
    assert "at least 1" in refused("export", run, "--to", "lycoris", "--rank", 0, "--output", bad)
    whole = path.read_bytes()
    bad.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "other tensors than its header says" in refused("apply", "tiny", bad, "--output-dir", tmp_path / "m")
    other = tmp_path / "other"
    shutil.copytree(foreign, other)
    tensors = load_file(other / UNET_FILE)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"] + 1}, other / UNET_FILE, {"format": "pt"})
    assert "made from another model" in refused("apply", other, path, "--output-dir", tmp_path / "m")
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------- a user's own file


def user_file(path, model, dtype=torch.float32):
    """What somebody uses in another program: another UNet, other parts, tensors of many types, and metadata."""
    export(model, "single-file", output=path)
    tensors = {
        name: (tensor + 0.5).to(dtype) if name.startswith("model.") else tensor.half()
        for name, tensor in load_file(path).items()
    }
    tensors |= {
        "alphas_cumprod": torch.rand(7, dtype=torch.float64), "flags": torch.tensor([True, False, True]),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(5)[None],
        "model.odd": torch.tensor(3.0), "f8": torch.rand(3).to(torch.float8_e4m3fn),
    }  # fmt: skip
    save_file(
        tensors,
        path,
        {"modelspec.author": "somebody", "modelspec.title": "theirs", "own": "kept", "sshs_model_hash": "1"},
    )
    return tensors


@pytest.mark.parametrize("held", [torch.float32, torch.float16])
def test_only_the_unet_of_a_users_file_is_replaced(run, held, tmp_path):
    mine, out = tmp_path / "mine.safetensors", tmp_path / "clean.safetensors"
    tensors = user_file(mine, MODEL_DIR, held)
    before = mine.read_bytes()
    done = runner.invoke(app, ["export", str(run), "--base", str(mine), "--output", str(out), "--json"])
    assert done.exit_code == 0, done.output
    base, made = TensorFile.open(mine), TensorFile.open(out)
    assert base.entries.keys() == made.entries.keys() == tensors.keys() and mine.read_bytes() == before
    for key in tensors:
        assert made.entries[key]["dtype"] == base.entries[key]["dtype"] and made.shape(key) == base.shape(key)
        if not key.startswith("model.diffusion_model."):
            assert b"".join(made.raw(key)) == b"".join(base.raw(key)), key
    unet = find_pipeline(run).components["unet"]
    places = located(
        "unet", unet.keys, blocks=Blocks.of_config(json.loads((run / "model/unet/config.json").read_text()))
    )
    for name, place in places.items():
        assert torch.equal(made.tensor(place.key), unet.tensor(name).to(held))
    told = made.metadata
    assert told["own"] == "kept" and told["modelspec.author"] == "somebody" and "sshs_model_hash" not in told
    assert told["modelspec.title"] == "tiny without heart"  # ours, since the file is another now
    export(run, "single-file", base=mine, dtype="bfloat16", output=tmp_path / "b.safetensors")
    made = TensorFile.open(tmp_path / "b.safetensors")
    assert {made.entries[place.key]["dtype"] for place in places.values()} == {"BF16"}
    assert made.entries["f8"]["dtype"] == "F8_E4M3" and made.entries["alphas_cumprod"]["dtype"] == "F64"


def test_bases_that_cannot_be_used(model, run, tmp_path):
    mine, out = tmp_path / "mine.safetensors", tmp_path / "out.safetensors"

    def fails(base=mine):
        text = refused("export", model, "--base", base, "--output", out)
        assert str(base) in text and not list(tmp_path.glob(".*"))
        return text

    export(model, "single-file", output=mine)
    tensors, key = load_file(mine), "model.diffusion_model.input_blocks.0.0.weight"
    save_file(tensors | {key: torch.zeros(8, 9, 3, 3)}, mine)  # as an inpainting model has it
    assert f"{key} is [8, 9, 3, 3] there, [8, 4, 3, 3] here" in fails()
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, mine)
    assert f"lacks {key}" in fails()
    save_file(tensors | {"model.diffusion_model.label_emb.0.0.bias": torch.zeros(3)}, mine)
    assert "another kind of model, it has model.diffusion_model.label_emb" in fails()
    save_file(tensors | {"model_ema.diffusion_modelout2bias": torch.zeros(3)}, mine)
    assert "in which the concept would survive" in fails()
    save_file(tensors | {key: tensors[key].to(torch.float8_e5m2)}, mine)
    assert f"{key} as F8_E5M2" in fails()
    assert "has no model.diffusion_model.* tensors" in fails(model / UNET_FILE)
    save_file(tensors, mine)
    whole = mine.read_bytes()
    for length in (0, 100, len(whole) - 1):
        mine.write_bytes(whole[:length])
        assert "truncated or no safetensors file" in fails()
    assert "cannot be read" in fails(tmp_path / "none.safetensors")
    mine.write_bytes(whole)
    for to in ("diffusers", "unet-only", "delta"):
        assert "--base is for --to single-file" in refused("export", model, "--to", to, "--base", mine)
    assert not out.exists() and mine.read_bytes() == whole


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_is_refused_with_the_line_that_converts_it(model, old, tmp_path):
    file = tmp_path / "my model.ckpt"
    export(model, "single-file", output=tmp_path / "asked.safetensors")
    tensors = load_file(tmp_path / "asked.safetensors")
    torch.save({"state_dict": tensors, "global_step": 7}, file, _use_new_zipfile_serialization=not old)
    text = refused("export", model, "--base", file, "--output", tmp_path / "out.safetensors")
    assert "never loaded" in text and "weights_only=True" in text
    shutil.copyfile(file, tmp_path / "disguised.safetensors")
    assert "is a pickle" in refused("export", model, "--base", tmp_path / "disguised.safetensors", "--output", tmp_path / "o.safetensors")  # fmt: skip


# ---------------------------------------------------------------- the file


def test_the_header_says_what_it_is_and_hashes_what_follows(run, model, tmp_path):
    for to, ldm in (("single-file", True), ("unet-only", False)):
        file = tmp_path / f"{to}.safetensors"
        export(run, to, output=file)
        raw, told = file.read_bytes(), safe_open(file, "pt").metadata()
        (length,) = struct.unpack("<Q", raw[:8])
        assert told["modelspec.hash_sha256"] == "0x" + hashlib.sha256(raw[8 + length :]).hexdigest()
        assert told["modelspec.sai_model_spec"] == "1.0.1" and told["modelspec.prediction_type"] == "epsilon"
        assert told["modelspec.resolution"] == "32x32" and told["modelspec.title"] == "tiny without heart"
        assert (told["modelspec.implementation"] == "diffusers") is not ldm
        manifest = json.loads((run / "run.json").read_text())
        assert told["sdscissor.recipe"] == manifest["result"]["recipe"] and told["sdscissor.seed"] == "0"
        assert json.loads(told["sdscissor.concepts"]) == ["heart"] and told["sdscissor.base"] == "tiny"
        assert told["sdscissor.base_sha256"] == manifest["source"]["weights_sha256"]
        assert told["sdscissor.weights_sha256"] == manifest["result"]["weights_sha256"]
    export(run, "single-file", output=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "single-file.safetensors").read_bytes()
    export(model, "single-file", output=tmp_path / "plain.safetensors")
    told = safe_open(tmp_path / "plain.safetensors", "pt").metadata()
    assert told["modelspec.title"] == "sd" and "sdscissor.recipe" not in told


def test_architectures_have_the_standards_names():
    assert architecture({"cross_attention_dim": 768}, "epsilon") == "stable-diffusion-v1"
    assert architecture({"cross_attention_dim": 1024}, "epsilon") == "stable-diffusion-v2-512"
    assert architecture({"cross_attention_dim": 1024}, "v") == "stable-diffusion-v2-768-v"
    assert architecture({"cross_attention_dim": 12}, "epsilon") == "stable-diffusion-of-another-size"


@pytest.mark.parametrize("pad", range(0, 256, 32))
def test_a_stream_is_what_safetensors_reads(pad, tmp_path):
    tensors = {
        "b": torch.randn(3, 5), "a.half": torch.randn(7).half(), "c": torch.tensor(2.5), "none": torch.zeros(0, 4),
        "byte": torch.arange(3, dtype=torch.uint8), "long": torch.arange(4), "brain": torch.randn(1).bfloat16(),
        "double": torch.randn(2, 1, dtype=torch.float64), "yes": torch.tensor([True]),
    }  # fmt: skip
    pieces = {name: TensorToWrite.of(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}
    write_tensor_file(tmp_path / "x", pieces, {"said": "é" + "x" * pad}, hash_key="h")
    assert same(load_file(tmp_path / "x"), tensors)
    raw = (tmp_path / "x").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    digest = hashlib.sha256(raw[8 + length :]).hexdigest()
    assert safe_open(tmp_path / "x", "pt").metadata() == {"said": "é" + "x" * pad, "h": f"0x{digest}"}
    assert length % 8 == 0


def test_a_header_whose_length_begins_as_a_pickle_does_is_none(tmp_path):
    piece = {"w": TensorToWrite.of((2,), torch.float32, lambda: torch.ones(2))}
    write_tensor_file(tmp_path / "x", piece, {"said": ""}, hash_key="h")
    (length,) = struct.unpack("<Q", (tmp_path / "x").read_bytes()[:8])
    write_tensor_file(tmp_path / "x", piece, {"said": "x" * (0x280 - length)}, hash_key="h")
    assert (tmp_path / "x").read_bytes()[:1] == b"\x80"
    check_no_pickle(tmp_path / "x")


def test_a_precision_that_cannot_hold_a_value_is_refused_by_its_name(model, tmp_path):
    loud = tmp_path / "loud"
    shutil.copytree(model, loud)
    tensors = load_file(loud / UNET_FILE)
    tensors["conv_in.bias"][2] = 70_000.0
    save_file(tensors, loud / UNET_FILE, {"format": "pt"})
    for to in ("single-file", "unet-only", "diffusers"):
        out = tmp_path / ("out" if to == "diffusers" else "out.safetensors")
        text = refused("export", loud, "--to", to, "--dtype", "float16", "--output", out)
        assert "unet.conv_in.bias holds 7e+04, which float16 cannot" in text and "bfloat16" in text
        assert [file.name for file in tmp_path.iterdir()] == ["loud"]
    export(loud, "unet-only", output=tmp_path / "ok.safetensors", dtype="bfloat16")
    with pytest.raises(UserError, match="w holds NaN"):
        cast("w", torch.tensor([torch.nan]), torch.float16)


# ---------------------------------------------------------------- nothing half-done


def test_what_is_there_is_never_touched(model, run, tmp_path):
    taken = tmp_path / "taken.safetensors"
    taken.write_text("thesis")
    for to in ("single-file", "unet-only", "diffusers", "delta"):
        assert "exists already" in refused("export", run, "--to", to, "--output", taken)
    assert taken.read_text() == "thesis"
    assert "end it with .safetensors" in refused("export", run, "--output", tmp_path / "model.ckpt")
    assert "--to 'gguf' is unknown" in refused("export", run, "--to", "gguf")
    assert "--dtype 'int4' is unknown" in refused("export", run, "--dtype", "int4")
    assert "--dtype is not for --to delta" in refused("export", run, "--to", "delta", "--dtype", "float16")
    assert "does not exist" in refused("export", tmp_path / "nowhere")
    assert "no diffusers pipeline" in refused("export", tmp_path, "--output", tmp_path / "x.safetensors")


def test_a_full_disk_leaves_everything_as_it_was(run, tmp_path, monkeypatch):
    earlier = tmp_path / "earlier.safetensors"
    export(run, "single-file", output=earlier)
    before = {file: file.read_bytes() for file in [earlier, *run.rglob("*")] if file.is_file()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stream.os, "fsync", full)  # when all is written and nothing has its name
    for to in ("single-file", "unet-only", "diffusers"):
        out = tmp_path / ("out" if to == "diffusers" else "out.safetensors")
        assert "No space left on device; free some space" in refused("export", run, "--to", to, "--output", out)
    assert [file.name for file in tmp_path.iterdir()] == ["earlier.safetensors"]
    assert before == {file: file.read_bytes() for file in [earlier, *run.rglob("*")] if file.is_file()}


def test_a_file_that_does_not_read_back_is_not_kept(model, tmp_path, monkeypatch):
    genuine = TensorFile.open

    def flipped(path):
        if path.name.endswith(".partial"):
            raw = bytearray(path.read_bytes())
            raw[-5] ^= 1
            path.write_bytes(raw)
        return genuine(path)

    monkeypatch.setattr(TensorFile, "open", flipped)
    for to in ("single-file", "unet-only"):
        assert "does not read back" in refused("export", model, "--to", to, "--output", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_the_runs_are_not_labelled_as_such(run, tmp_path):
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    file = changed / "model" / UNET_FILE
    tensors = load_file(file)
    tensors["conv_in.bias"][0] += 1
    save_file(tensors, file, {"format": "pt"})
    assert "has other weights" in refused("export", changed)
    manifest = json.loads((changed / "run.json").read_text())
    del manifest["stages"]["model"]
    (changed / "run.json").write_text(json.dumps(manifest))
    assert "has not ended: continue it with erase --resume" in refused("export", changed)


# ---------------------------------------------------------------- at the end of an erasure


def test_erase_writes_the_format_asked_for_beside_the_model(run, short, tmp_path, monkeypatch):
    folder = tmp_path / "heart"
    shutil.copytree(run, folder)
    told = erase(short, folder, resume=True, output_format="single-file")
    assert told.exported == str(folder / "heart.safetensors") and (folder / "model/model_index.json").exists()
    assert same(loaded(folder / "heart.safetensors", folder / "model"), weights(folder / "model"))
    written = (folder / "heart.safetensors").stat().st_mtime_ns
    erase(short, folder, resume=True, output_format="single-file")
    assert (folder / "heart.safetensors").stat().st_mtime_ns == written
    assert erase(short, folder, resume=True, output_format="delta").exported == str(folder / "delta.safetensors")
    assert erase(short, folder, resume=True).exported is None
    with pytest.raises(UserError, match="--output-format 'ckpt' is unknown"):
        erase(short, tmp_path / "other", output_format="ckpt")
    assert not (tmp_path / "other").exists()


def test_people_are_told_in_words(run, tmp_path, monkeypatch):
    folder = tmp_path / "heart"
    shutil.copytree(run, folder)
    done = runner.invoke(app, ["export", str(folder), "--dtype", "float16"])
    assert done.exit_code == 0 and done.stdout == "" and (folder / "heart-fp16.safetensors").exists()
    assert "read back and equal" in done.stderr
    assert "ComfyUI" in runner.invoke(app, ["export", "--help"]).stdout
