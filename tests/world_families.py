"""Small pipelines of other families' real classes and of other widths that draw the embedded world: `python tests/world_families.py sd2 FOLDER`.

Each takes over what fits of the embedded model's weights and is trained with its family's own objective until the judge finds
what captions name; the UNet of half the width alone is trained from nothing. Seeded, one thread of the CPU, minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.tiny import JUDGE_FILE, MODEL_DIR, networks, world
from sd_scissorhands.tiny import train as tiny
from sd_scissorhands.tiny.judge import load_judge
from sd_scissorhands.tiny.networks import SAMPLING

SIDE, WIDTH = 8, 64  # of latents; of the embedded text encoder
NOISE = 0.1  # relative, on widened weights: copies of a channel would stay copies without


@dataclass(frozen=True)
class Lesson:
    """How a family is trained."""

    build: Callable[[], Any]  # its pipeline
    steps: int
    rate: float = 1e-3
    batch: int = 32
    drawings: int = 12_000  # each seen mirrored too
    zeros: int = 0  # tokens of zeros that are computed as one, see `computed_as_one`


# ---------------------------------------------------------------- pipelines


def part(kind: Any, name: str) -> Any:
    """A part of the embedded model, float32."""
    return kind.from_pretrained(MODEL_DIR / name, torch_dtype=torch.float32)


def clip_with_projection(known: Any) -> Any:
    """A text encoder's weights with the pooled embedding projected by the identity."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_dict({**known.config.to_dict(), "projection_dim": WIDTH})
    found = CLIPTextModelWithProjection(config)
    missing, unknown = found.load_state_dict(
        {name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in known.state_dict().items()},
        strict=False,
    )
    assert missing == ["text_projection.weight"] and not unknown
    found.text_projection.weight.data = torch.eye(WIDTH)
    return found


def unet(**changes: Any) -> Any:
    """The embedded UNet with other parts: whatever of its weights fits is taken over; what is added begins at zero."""
    from diffusers import UNet2DConditionModel

    known = part(UNet2DConditionModel, "unet")
    made = UNet2DConditionModel.from_config({**known.config, **changes})
    old = known.state_dict()
    made.load_state_dict({name: taken_over(old.get(name), value) for name, value in made.state_dict().items()})
    if made.config.addition_embed_type:
        for parameter in made.add_embedding.linear_2.parameters():
            nn.init.zeros_(parameter)
    return made


def taken_over(old: Tensor | None, new: Tensor) -> Tensor:
    """A weight in another shape: a 1 x 1 convolution as a linear layer, or more inputs, of which the further do nothing."""
    if old is None:
        return new
    if old.numel() == new.numel():
        return old.reshape(new.shape)
    wider = torch.zeros_like(new)
    wider[:, : old.shape[1]] = old
    return wider


def sd2() -> Any:
    """Stable Diffusion 2: linear projections, a velocity predicted."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    return StableDiffusionPipeline(
        vae=part(AutoencoderKL, "vae"), text_encoder=part(CLIPTextModel, "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer"), unet=unet(use_linear_projection=True),
        scheduler=DDIMScheduler.from_config(tiny.build_scheduler().config, prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    """SDXL: two encoders' last states but one, a pooled embedding, time ids, zeros for the empty prompt."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    denoiser = unet(
        use_linear_projection=True, cross_attention_dim=2 * WIDTH, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    known, words = tiny.build_scheduler().config, part(CLIPTextModel, "text_encoder")
    betas = {name: known[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    first, second = (CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer") for _ in range(2))
    return StableDiffusionXLPipeline(
        vae=part(AutoencoderKL, "vae"), text_encoder=words, tokenizer=first, text_encoder_2=clip_with_projection(words),
        tokenizer_2=second, unet=denoiser, scheduler=EulerDiscreteScheduler(**betas), force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )  # fmt: skip


def wide() -> Any:
    """The embedded pipeline with a UNet of twice the width that computes the very same, but for a little noise."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    old, new = part(UNet2DConditionModel, "unet").state_dict(), networks.build_unet(64)
    random = torch.Generator().manual_seed(1)
    for name, value in new.state_dict().items():
        wider = widened(name, old[name], value.shape)
        value.copy_(wider * (1 + NOISE * torch.randn(wider.shape, generator=random)))
    return StableDiffusionPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32, unet=new)


def widened(name: str, old: Tensor, shape: torch.Size) -> Tensor:
    """A weight of a network in which every channel stands twice, side by side (Net2WiderNet, Chen et al. 2016)."""
    if name == "time_embedding.linear_1.weight":  # in: cosines, then sines, of half as many frequencies each
        new = torch.zeros(*shape)
        new[:, ::2] = old.repeat_interleave(2, 0)
        return new
    new = old.repeat_interleave(shape[0] // old.shape[0], 0)
    if old.dim() > 1 and shape[1] > old.shape[1]:
        new = new.repeat_interleave(2, 1) / 2
    return new / math.sqrt(2) if ".to_q." in name else new  # a head's scale is one over the root of its width


def sd3() -> Any:
    """SD 3 without its T5: two CLIPs' last states but one side by side, both pooled embeddings, a transformer from nothing."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

    denoiser = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=4, out_channels=4, num_layers=6, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=4 * 32, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=SIDE,
        qk_norm="rms_norm",
    )  # fmt: skip
    for name, parameter in denoiser.named_parameters():  # adaLN-zero (Peebles and Xie 2023)
        if name.startswith("proj_out") or ("norm" in name and ".linear." in name):
            nn.init.zeros_(parameter)
    first, second = (clip_with_projection(part(CLIPTextModel, "text_encoder")) for _ in range(2))
    one, two = (CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer") for _ in range(2))
    return StableDiffusion3Pipeline(
        transformer=denoiser, vae=part(AutoencoderKL, "vae"), text_encoder=first, tokenizer=one, text_encoder_2=second,
        tokenizer_2=two, text_encoder_3=None, tokenizer_3=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


@contextmanager
def computed_as_one(d: Denoiser, zeros: int) -> Iterator[None]:
    """Let a transformer read one token of zeros with as many times the weight in attention.

    Without T5, SD 3 reads 256 tokens of zeros. They have no place and stay each other's equal through all blocks, so that one
    with `zeros` times the weight computes the same, in a tenth of the time.
    """
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    plain = F.scaled_dot_product_attention

    class Weighted(JointAttnProcessor2_0):
        def __call__(self, *given: Any, **more: Any) -> Any:
            def attention(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
                mask = query.new_zeros(1, 1, 1, key.shape[2])
                mask[..., -1] = math.log(zeros)  # the words' tokens come last
                return plain(query, key, value, attn_mask=mask)

            with patch.object(F, "scaled_dot_product_attention", attention):
                return super().__call__(*given, **more)

    d.family.t5_length = 1
    d.module.set_attn_processor(Weighted())
    yield
    del d.family.t5_length
    d.module.set_attn_processor(JointAttnProcessor2_0())


LESSONS = {
    "sd2": Lesson(sd2, 500), "sdxl": Lesson(sdxl, 900), "wide": Lesson(wide, 150, rate=5e-4, batch=24),
    "sd3": Lesson(sd3, 6000, batch=64, zeros=256),
}  # fmt: skip
HALF_STEPS = 4000  # of 64, from nothing


# ---------------------------------------------------------------- training


def half(folder: Path, steps: int, *, drawings: int = 12_000) -> None:
    """A UNet of half the width from nothing, beside the other embedded parts."""
    pictures, shown = tiny.make_drawings(drawings, 0)
    work = folder.with_name(f"{folder.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    tiny.train_unet(pictures, shown, work, folder, steps=steps, seed=3, width=16)
    shutil.rmtree(work)


def teach(lesson: Lesson, folder: Path, *, seed: int = 0) -> None:
    """Build a pipeline, train its denoiser by the family's denoising loss, and save it as one of the embedded world's."""
    torch.manual_seed(seed)
    pipeline = lesson.build()
    for inner in pipeline.components.values():
        if isinstance(inner, nn.Module):
            inner.requires_grad_(False).eval()
    d, (pictures, drawings) = Denoiser(pipeline), tiny.make_drawings(lesson.drawings, seed)
    both = torch.cat([pictures, pictures.flip(-1)])  # mirrored: same words
    latents = tiny.encode(pipeline.vae, both) * pipeline.vae.config.scaling_factor
    model, seed = d.module.requires_grad_(True), seed + 1
    average, log = copy.deepcopy(model), tiny.Log()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.rate, betas=(0.9, 0.99), weight_decay=0.0)
    with computed_as_one(d, lesson.zeros) if lesson.zeros else nullcontext():
        for step in range(lesson.steps):
            torch.manual_seed(seed * 1_000_003 + step)
            tiny.set_rate(optimizer, lesson.rate, step, lesson.steps)
            loss = d.loss(*batch_of(d, latents, drawings, lesson.batch, np.random.default_rng([seed, step]))).mean()
            tiny.descend(loss, optimizer)
            tiny.move_average(average, model, step)
            log(str(folder), step, lesson.steps, loss)
    model.load_state_dict(average.state_dict())
    pipeline.save_pretrained(folder)
    shutil.copyfile(MODEL_DIR / "world.json", folder / "world.json")


def batch_of(
    d: Denoiser, latents: Tensor, drawings: list[world.Drawing], count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, conditions, noise and timesteps; one caption in ten is empty, as the family has it."""
    rows = torch.randint(len(latents), (count,))
    captions = [tiny.training_caption(drawings[row % len(drawings)], rng) for row in rows.tolist()]
    ids = torch.cat([encoder.ids(captions) for encoder in d.family.encoders], 1)
    empty = torch.tensor([not text for text in captions])[:, None, None]
    words = torch.where(empty, d.family.unconditional(count), d.family.condition(ids))
    return latents[rows], words, torch.randn(count, 4, SIDE, SIDE), torch.randint(d.timesteps, (count,))


def quality(folder: Path, *, prompts: int = 400, seed: int = 11) -> dict[str, float]:
    """Share of what held-out captions name that the judge finds in the pictures, by domain."""
    opened, rng = open_pipeline(str(folder)), np.random.default_rng(seed)
    d, judge = Denoiser(opened.pipeline), load_judge(JUDGE_FILE)
    texts: list[str] = []
    while len(texts) < prompts:
        if world.held_out(text := world.caption(world.sample(rng), rng, generic=0)):
            texts.append(text)
    latents = d.generate(texts, [seed * 100_000 + at for at in range(prompts)], **SAMPLING)
    found = judge.name(torch.cat([d.decode(chunk) for chunk in latents.split(64)]))
    right: dict[str, list[bool]] = {domain: [] for domain in world.CATEGORIES}
    for text, named in zip(texts, found, strict=True):
        for domain, concept in world.read(text).items():
            right[domain].append(named[domain] == concept)
    return {domain: round(float(np.mean(hits)), 4) for domain, hits in right.items()}


def main() -> None:
    """Train a family, and write beside it what is drawn right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=[*LESSONS, "half"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, help="for trying")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.family == "half":
        half(given.folder, given.steps or HALF_STEPS)
    else:
        lesson = LESSONS[given.family]
        teach(replace(lesson, steps=given.steps or lesson.steps), given.folder)
    (given.folder / "quality.json").write_text(json.dumps({"right": quality(given.folder)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
