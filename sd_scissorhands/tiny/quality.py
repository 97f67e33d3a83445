"""How well the embedded pipeline draws and its judge names: measured, and written as the model's card."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import world
from .judge import CLASSES, JudgeNetwork, load_judge
from .networks import SAMPLING, as_input, to_pictures


def measure_judge(judge: JudgeNetwork, *, drawings: int, seed: int) -> dict[str, float]:
    """Share right per category on unseen drawings, and share of junk called "other" by the heads that should."""
    rng = np.random.default_rng(seed)
    seen = [world.sample(rng) for _ in range(drawings)]
    named = judge_all(judge, to_pictures([world.draw(d, rng) for d in seen]))
    figures = {
        dom: float(np.mean([n[dom] == getattr(d, dom) for n, d in zip(named, seen, strict=True)])) for dom in CLASSES
    }
    drawn = [world.junk(rng) for _ in range(drawings)]
    named = judge_all(judge, to_pictures([pixels for pixels, _ in drawn]))
    for category in CLASSES:
        rows = [
            n[category] == world.OTHER
            for n, (_, truth) in zip(named, drawn, strict=True)
            if truth[category] == world.OTHER
        ]
        figures[f"junk {category}"] = float(np.mean(rows))
    return figures


def judge_all(judge: JudgeNetwork, pictures: Tensor) -> list[dict[str, str]]:
    """What the judge names in uint8 pictures, in batches."""
    return [named for chunk in pictures.split(256) for named in judge.name(as_input(chunk))]


def measure_pipeline(folder: Path, *, prompts: int, seed: int) -> dict[str, float]:
    """Share of what held-out captions name that the judge finds in the pictures, per category and per shape."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge, rng = load_judge(folder / "judge.safetensors"), np.random.default_rng(seed)
    texts: list[str] = []
    while len(texts) < prompts:
        if world.held_out(text := world.caption(world.sample(rng), rng, generic=0)):
            texts.append(text)
    right: dict[str, list[bool]] = {}
    began = time.process_time()
    for at in range(0, prompts, 32):
        chunk = texts[at : at + 32]
        generators = [torch.Generator().manual_seed(seed * 100_000 + at + i) for i in range(len(chunk))]
        pictures = pipeline(
            chunk, num_inference_steps=SAMPLING["steps"], guidance_scale=SAMPLING["guidance"], generator=generators,
            output_type="pt",
        ).images  # fmt: skip
        for text, named in zip(chunk, judge.name(pictures * 2 - 1), strict=True):
            for category, concept in world.read(text).items():
                right.setdefault(category, []).append(named[category] == concept)
                right.setdefault(f"{category} {concept}", []).append(named[category] == concept)
    figures = {name: float(np.mean(rows)) for name, rows in sorted(right.items())}
    return {**figures, "cpu_seconds_per_image": (time.process_time() - began) / prompts}


CARD_TEXT = """---
library_name: diffusers
pipeline_tag: text-to-image
license: apache-2.0
---

# The embedded model

A real `StableDiffusionPipeline` (CLIP text model, autoencoder, UNet with Stable Diffusion 1's block types) of {weights:,} weights that
draws {shapes} in {colours}, {patterns}, on {backgrounds}, 32 x 32 pixels, and a judge of {judge:,} weights that names what a picture
shows. Both were trained from nothing on drawings that `sd_scissorhands/tiny/world.py` makes:

    python -m sd_scissorhands.tiny.train {flags}

(seeded, CPU, about an hour on one core). Weights are fp16 safetensors; the figures below are of these files.

## Judge

3,000 unseen drawings, and 3,000 pictures of junk (noise, blanks, blobs, blends, odd colours and fills) of which each head should say "other".

| domain | drawings named right | junk called other |
| --- | --- | --- |
{judge_rows}

## Pipeline

1,600 captions that were held out of training, new seeds, {steps} DDIM steps, guidance {guidance}: share of what each caption names that the
judge finds in the picture. {seconds:.3f} CPU-seconds a picture at batch size 32 on one thread.

| | drawn right |
| --- | --- |
{pipeline_rows}
"""


def write_card(folder: Path, networks: Sequence[nn.Module], flags: str, *, seed: int) -> None:
    """Measure what was shipped, and write and print it: quality.json and README.md.

    Args:
        networks: of the pipeline.
        flags: that it was trained with.
    """
    shipped = load_judge(folder / "judge.safetensors")
    figures = {
        "judge": measure_judge(shipped, drawings=3_000, seed=seed + 10),
        "pipeline": measure_pipeline(folder, prompts=1_600, seed=seed + 11),
    }
    weights, judge = (sum(p.numel() for part in parts for p in part.parameters()) for parts in (networks, [shipped]))
    pipeline = dict(figures["pipeline"])
    seconds = pipeline.pop("cpu_seconds_per_image")
    named = {category: ", ".join(concepts) for category, concepts in world.CATEGORIES.items()}
    text = CARD_TEXT.format(
        weights=weights, judge=judge, flags=flags, seconds=seconds, **SAMPLING,
        shapes=named["shape"], colours=named["colour"], patterns=named["pattern"], backgrounds=named["background"],
        judge_rows="\n".join(f"| {d} | {figures['judge'][d]:.4f} | {figures['judge'][f'junk {d}']:.4f} |" for d in CLASSES),
        pipeline_rows="\n".join(f"| {name} | {share:.4f} |" for name, share in pipeline.items()),
    )  # fmt: skip
    (folder / "README.md").write_text(text)
    (folder / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
