"""ComfyUI and kohya's scripts read our files, by their own loaders: `make clients COMFYUI=/checkout KOHYA=/checkout`.

The model has the size of Stable Diffusion 1, without which neither takes it for one, and random weights in float16.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from small_pipelines import tokenizer
from test_export import SD1_TEXT, SD1_UNET, SD1_VAE, UNET_FILE
from transformers import CLIPTextConfig, CLIPTextModel

from sd_scissorhands.disk import write_json
from sd_scissorhands.models.export import export
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.models.tensor_files import hash_tensors

SCRIPT = Path(__file__).with_name("clients.py")
FAR = 1e-5  # relative: the programs add in another order
RANK = 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, a run with another UNet, and everything that is exported of them, in one folder."""
    folder = tmp_path_factory.mktemp("clients")
    base, run, files = folder / "base", folder / "run", folder / "files"
    files.mkdir()
    _base(base)
    weights = load_file(base / UNET_FILE)
    erased = _erased(weights)
    for file in base.rglob("*"):
        if file.is_file() and file != base / UNET_FILE:
            (new := run / "model" / file.relative_to(base)).parent.mkdir(parents=True, exist_ok=True)
            new.hardlink_to(file)
    save_file(erased, _made(run / "model" / UNET_FILE), {"format": "pt"})
    facts = dict(recipe="esd", concepts=["heart"], anchors=["star"], seed=0)
    source = {"model": str(base), "weights_sha256": hash_tensors(weights.items())}
    result = facts | {"weights_sha256": hash_tensors(erased.items())}
    write_json(
        run / "run.json",
        {
            "settings": facts | {"model": str(base)},
            "source": source,
            "result": result,
            "stages": {"model": {"file": "model"}},
        },
    )
    export(run, "single-file", output=files / "whole.safetensors")
    export(run, "unet-only", output=files / "unet.safetensors")
    print(export(run, "lycoris", dtype="float32", output=files / "lycoris.safetensors").addon)
    write_json(
        files / "rank.json", export(run, "lycoris", rank=RANK, output=files / "rank.safetensors").addon.to_json()
    )
    export(base, "single-file", output=files / "base.safetensors")
    for name, part in (("vae", "vae/diffusion_pytorch_model"), ("text", "text_encoder/model")):
        (files / f"{name}.safetensors").hardlink_to(base / f"{part}.safetensors")
    save_file(_passed(run / "model"), files / "pass.safetensors")
    return files


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@torch.no_grad()
def _base(folder: Path) -> None:
    """A pipeline of Stable Diffusion 1's networks as they begin, norms and biases stirred so that no two tensors are alike."""
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, hidden_act="quick_gelu", **SD1_TEXT)
    )
    networks = [UNet2DConditionModel(**SD1_UNET), AutoencoderKL(**SD1_VAE), text]
    for network in networks:
        for one in network.parameters():
            if one.dim() == 1:
                one.add_(0.02 * torch.randn_like(one))
    unet, vae, text = (network.half() for network in networks)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    made = StableDiffusionPipeline(
        vae, text, tokenizer(), unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )  # fmt: skip
    made.save_pretrained(folder)


def _erased(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross attention changed by a matrix of low rank, and a few biases a little."""
    changed = dict(weights)
    for name, one in weights.items():
        if ".attn2." in name and one.dim() == 2:
            out, into = one.shape
            change = torch.randn(out, RANK) @ torch.randn(RANK, into)
            changed[name] = (one.float() + 0.02 * one.float().std() * change).half()
        elif name in ("conv_in.bias", "time_embedding.linear_1.bias") or name.endswith("attn2.to_out.0.bias"):
            changed[name] = (one.float() + 1e-3 * torch.randn(one.shape)).half()
    return changed


@torch.no_grad()
def _passed(model: Path) -> dict[str, torch.Tensor]:
    """One pass of diffusers' UNet: what goes in and what comes out, float32."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32)
    given = {
        "latents": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([500.0]),
        "context": torch.randn(1, 77, 768),
    }
    return given | {"noise": unet(*given.values()).sample.contiguous()}


def answer(program: str, files: Path) -> dict:
    checkout = os.environ.get(program.upper())
    if not checkout:
        pytest.skip(f"no checkout of it is named: make clients {program.upper()}=/path/to/checkout")
    python = os.environ.get("CLIENTS_PYTHON", sys.executable)
    done = subprocess.run([python, SCRIPT, program, checkout, files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_world_is_what_it_should_be(world):
    model = PipelineDirectory(world.parent / "run" / "model")
    assert len(model.denoiser.keys) == 686
    assert {key.rpartition(".")[2] for key in load_file(world / "lycoris.safetensors")} == {"diff", "diff_b"}


@pytest.mark.parametrize("program", ["comfyui", "kohya"])
def test_a_program_reads_every_file(program, world):
    found, fit = answer(program, world), json.loads((world / "rank.json").read_text())
    assert not [line for line in found.get("warnings", ()) if "not loaded" in line or "left over" in line]
    for name, one in found.items():
        if name not in ("warnings", "rank"):
            assert one["equal"] == one["tensors"] and not one["only_one"] and one.get("far", 0) < FAR, (name, one)
    assert found["rank"]["equal"] == pytest.approx(fit["equal"], abs=3)  # which is counted with another order of sums
    assert FAR < found["rank"]["far"] < 0.01  # the biases are not in it
    assert not found["rank"].get("unknown")
    if program == "comfyui":
        assert found["lycoris"]["patches"] == len(load_file(world / "lycoris.safetensors"))
        assert found["single file, text encoder"]["tokens"][:3] == [
            49406,
            320,
            1125,
        ]  # of the real vocabulary: start, a, photo
