"""The embedded pipeline's networks, and the directory that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..classic import write_classic_names, write_classic_tokenizer
from ..files import read_object
from . import world
from .judge import JudgeNetwork

SAMPLING = {"steps": 20, "guidance": 3.0}  # what the card was measured with; at 5 purple turns too vivid
POSITIONS = 24  # tokens a caption can hold


def to_pictures(pixels: list[np.ndarray]) -> Tensor:
    """A list of (32, 32, 3) uint8 arrays as one (N, 3, 32, 32) uint8 tensor."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def as_input(pictures: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def build_tokenizer(words: Sequence[str] | None = None):
    """A CLIP tokenizer whose byte-pair merges were made from some words, the world's by default.

    Most words are one token; a word that shares a pair of letters with an earlier one is several, as in any CLIP.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    merges: list[tuple[str, str]] = []
    for word in world.words() if words is None else words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            pieces = ["".join(pair), *pieces[2:]]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # File names are silently ignored by transformers 5 here (the result knows two tokens): pass the objects.
    parts: Any = dict(vocab=vocabulary, merges=merges)  # as pairs, which transformers takes and does not declare
    return CLIPTokenizer(**parts, model_max_length=POSITIONS)


def build_text_encoder(tokenizer):
    """CLIP's text transformer, two layers of width 64, with the token ids that its pooling needs."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=POSITIONS, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def build_vae():
    """An autoencoder that maps (3, 32, 32) to (4, 8, 8)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=world.SIZE,
    )  # fmt: skip


def build_unet(width: int = 32):
    """Stable Diffusion 1's block types at a width and twice that."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(width, 2 * width), layers_per_block=1, cross_attention_dim=64, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def build_scheduler():
    """DDIM with Stable Diffusion 1's noise schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def save_pipeline(vae: Any, text: nn.Module, unet: nn.Module, judge: JudgeNetwork, folder: Path) -> None:
    """Write the pipeline and the judge as fp16 safetensors."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=build_tokenizer(), unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    write_classic_tokenizer(folder / "tokenizer")
    write_classic_names(folder / "text_encoder" / "model.safetensors")
    for config in folder.glob("*/config.json"):  # where transformers 5 reads what to load in, and where this model lay
        values = read_object(config) | ({"dtype": "float32"} if "text_encoder" in config.parts else {})
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")
    state = {n: t.half() if t.is_floating_point() else t for n, t in judge.state_dict().items()}
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "judge.safetensors")
    (folder / "world.json").write_text(json.dumps({"world": "shapes", "sampling": SAMPLING}, indent=2) + "\n")
