"""Stable Diffusion 1.4's published configuration with random weights, whole or with its widths divided.

Time and memory do not depend on the weights' values.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.erasure_task import ErasureTask
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.tiny import MODEL_DIR

SD14 = dict(
    sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32,
)  # fmt: skip
VAE = dict(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=512,
)  # fmt: skip
WORDS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
TOKENS, ROWS = 77, 4  # tokens of a prompt; cached samples of each kind
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


class StableDiffusionPipeline(SimpleNamespace):
    """What a denoiser needs of one that encodes no prompts."""


def narrowed(divisor: int) -> dict[str, Any]:
    """The UNet's configuration with its widths divided by 1, 2, 4 or 8."""
    widths = tuple(width // divisor for width in SD14["block_out_channels"])
    other = {name: SD14[name] // divisor for name in ("cross_attention_dim", "norm_num_groups")}
    return SD14 | other | {"block_out_channels": widths}


def build_unet(divisor: int = 1, sample_size: int = 64) -> nn.Module:
    """The UNet, frozen, with uniform weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**narrowed(divisor) | {"sample_size": sample_size})
    unet.to_empty(device="cpu").requires_grad_(False).eval()
    some = torch.empty(1 << 20).uniform_(-1, 1)  # drawn once and repeated, which takes a tenth of the time
    for name, parameter in unet.named_parameters():
        if parameter.dim() > 1:
            bound = parameter[0].numel() ** -0.5
            for part in parameter.data.view(-1).split(len(some)):
                torch.mul(some[: len(part)], bound, out=part)
        else:
            parameter.fill_(float(name.endswith("weight")))  # norm layers'
    return unet


def build(divisor: int = 1, sample_size: int = 64, device: str = "cpu") -> Denoiser:
    """The UNet in a bare pipeline."""
    from diffusers import DDIMScheduler

    unet = build_unet(divisor, sample_size).to(device)
    return Denoiser(StableDiffusionPipeline(unet=unet, scheduler=DDIMScheduler(**SCHEDULE)))


def build_encoders(divisor: int = 1) -> tuple[nn.Module, nn.Module]:
    """The VAE and CLIP's text encoder (ViT-L/14), frozen."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    widths = tuple(width // divisor for width in VAE["block_out_channels"])
    vae = AutoencoderKL(**VAE | {"block_out_channels": widths, "norm_num_groups": 32 // divisor})
    own = {name: WORDS[name] // divisor for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    heads = {"num_attention_heads": max(1, own["num_attention_heads"])}
    words = CLIPTextModel(CLIPTextConfig(**WORDS | own | heads))
    return vae.requires_grad_(False).eval(), words.requires_grad_(False).eval()


def save_pipeline(folder: Path, divisor: int = 1, sample_size: int = 64) -> None:
    """A pipeline of this configuration as safetensors, with the embedded model's tokenizer made longer."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    vae, words = build_encoders(divisor)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer", model_max_length=TOKENS)
    StableDiffusionPipeline(
        vae=vae, text_encoder=words, tokenizer=tokenizer, unet=build_unet(divisor, sample_size),
        scheduler=DDIMScheduler(**SCHEDULE, steps_offset=1, set_alpha_to_one=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip


def random_data(denoiser: Denoiser) -> dict[str, Tensor]:
    """Random latents and conditions in the place of the cached ones: ROWS of each kind."""
    config = denoiser.module.config
    shape, width = (ROWS, config.in_channels, config.sample_size, config.sample_size), config.cross_attention_dim
    sides = ("forget", "anchor", "retain")
    data = {f"{side}_latents": torch.randn(shape) for side in sides}
    data |= {f"{side}_condition": torch.randn(ROWS, TOKENS, width) for side in sides}
    return data | {"empty_condition": torch.randn(TOKENS, width)}


def erasure(denoiser: Denoiser, **settings: Any) -> tuple[ErasureTask, dict[str, nn.Parameter], EraseSettings]:
    """A task on random data, its trainable scope, and a recipe's settings as Stable Diffusion's profile has them."""
    resolved = EraseSettings(**{"scope": "attn", "threshold_scope": "scope", **settings}).resolved("large")
    parameters = denoiser.scope(resolved.scope)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    task = ErasureTask(denoiser, random_data(denoiser), resolved)
    task.teacher = denoiser.teacher(parameters)
    return task, parameters, resolved
