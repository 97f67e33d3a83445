"""Pipelines of every family, built of their real classes with random weights and the embedded model's tokenizer and VAE."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sd_scissorhands.tiny import MODEL_DIR

SIDE = 8  # of latents; the embedded VAE makes 32 pixels of them
SCALED = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
)


def build(family: str, folder: Path, *, world: bool = False, without: bool = False) -> Path:
    """Save a small pipeline of a family; with `world` it passes for one that was made from the embedded model.

    Args:
        without: of SD 3 T5, of FLUX guidance.
    """
    torch.manual_seed(0)
    pipeline = BUILDERS[family](whole=False) if without else BUILDERS[family]()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and part is not pipeline.vae:
            stir(part)
    pipeline.save_pretrained(folder)
    if world:
        for file in ("world.json", "judge.safetensors"):
            shutil.copyfile(MODEL_DIR / file, folder / file)
    return folder


@torch.no_grad()
def stir(module: nn.Module) -> None:
    """Noise on every weight, so that nothing that a pass is given goes unnoticed."""
    for parameter in module.parameters():
        parameter.add_(0.08 * torch.randn_like(parameter))


def vae(shift: float | None = None):
    from diffusers import AutoencoderKL

    found = AutoencoderKL.from_pretrained(MODEL_DIR / "vae")
    found.register_to_config(shift_factor=shift)
    return found


def tokenizer(pad: str | None = None):
    from transformers import CLIPTokenizer

    found = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    if pad:
        found.pad_token = pad
    return found


def clip(width: int, kind: str = "CLIPTextModel", **more: Any):
    import transformers

    words = tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id, **more,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def unet(**more: Any):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, **more,
    )  # fmt: skip


def sd2():
    """Stable Diffusion 2: linear projections, padding with a token of its own, velocity; SDXL predicts epsilon."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(16, hidden_act="gelu"), tokenizer=tokenizer(pad="a</w>"), unet=unet(cross_attention_dim=16),
        scheduler=DDIMScheduler(**SCALED, prediction_type="v_prediction"), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    """SDXL: two encoders of different widths and paddings, a pooled embedding narrower than both, time ids."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    denoiser = unet(
        cross_attention_dim=40, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(16), tokenizer=tokenizer(), text_encoder_2=clip(24, "CLIPTextModelWithProjection", projection_dim=20),
        tokenizer_2=tokenizer(pad="a</w>"), unet=denoiser, force_zeros_for_empty_prompt=True, add_watermarker=False,
        scheduler=EulerDiscreteScheduler(**{k: v for k, v in SCALED.items() if k != "clip_sample"}, steps_offset=1),
    )  # fmt: skip


def t5(width: int):
    """A T5 encoder and its tokenizer, which knows the embedded world's words."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    from sd_scissorhands.tiny import world

    known = sorted({word for domain in world.CATEGORIES.values() for names in domain.values() for word in names})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), ("▁a", -2.0), ("▁on", -2.0)]
    vocabulary += [(f"▁{word}", -2.0) for word in known if " " not in word]
    vocabulary += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = T5TokenizerFast(vocab=vocabulary, extra_ids=0)
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config), words


def sd3(whole: bool = True):
    """SD 3: both CLIPs' pooled embeddings, a T5, a transformer with one block of dual attention and normed queries."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    denoiser = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=16 + 24, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    encoder, words = t5(48) if whole else (None, None)
    return StableDiffusion3Pipeline(
        transformer=denoiser, vae=vae(shift=0.06), tokenizer=tokenizer(), tokenizer_2=tokenizer(pad="a</w>"), tokenizer_3=words,
        text_encoder=clip(16, "CLIPTextModelWithProjection", projection_dim=16),
        text_encoder_2=clip(24, "CLIPTextModelWithProjection", projection_dim=24), text_encoder_3=encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(whole: bool = True):
    """FLUX.1: CLIP's pooled embedding beside T5's tokens, a double and a single block; dev has guidance as an input."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    denoiser = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=whole, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    encoder, words = t5(32)
    return FluxPipeline(
        transformer=denoiser, vae=vae(shift=0.11), tokenizer=tokenizer(), tokenizer_2=words, text_encoder=clip(16),
        text_encoder_2=encoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=whole),
    )  # fmt: skip


BUILDERS = {"sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux": flux}
