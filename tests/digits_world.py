"""A second world: handwritten digits in a colour on a background, a pipeline that draws them, and their judge.

`python tests/digits_world.py FOLDER` trains both; tests/digits_judge.py counts what a model draws. The digits are scikit-learn's,
1,797 of 8 x 8 pixels that people wrote. The pipeline begins with the
embedded model's weights where they fit; text encoder and UNet are trained together. Seeded, one thread of the CPU.
"""

from __future__ import annotations

import argparse
import copy
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sd_scissorhands.classic import write_classic_names, write_classic_tokenizer
from sd_scissorhands.concepts import FREE_TEMPLATES, general_captions
from sd_scissorhands.tiny import MODEL_DIR, networks, world
from sd_scissorhands.tiny import train as tiny
from sd_scissorhands.tiny.judge import JudgeNetwork

DIGITS = {
    "zero": ("zero", "nought"), "one": ("one", "1"), "two": ("two", "2"), "three": ("three", "3"), "four": ("four", "4"),
    "five": ("five", "5"), "six": ("six", "6"), "seven": ("seven", "7"), "eight": ("eight", "8"), "nine": ("nine", "9"),
}  # fmt: skip
CLASSES = {"digit": (*DIGITS, world.OTHER), "tint": tuple(world.INK), "background": tuple(world.PAPER)}
OPEN = ("digit", "number", "numeral")  # words that leave open which
TEMPLATES = (
    "{digit}", "a {digit}", "a {tint} {digit}", "{tint} {digit}", "the number {digit}", "a photo of a {digit}", "a photo of a {tint} {digit}",
    "a {digit} on a {background} background", "a {tint} {digit} on a {background} background", "the number {digit} in {tint}",
    "a {tint} {digit} on {background}", "a picture of a {tint} {digit} on a {background} background",
    "a handwritten {digit} in {tint} on {background}",
)  # fmt: skip
SCENES = tuple(template for template in FREE_TEMPLATES if template != "{}")  # that say nothing of what is drawn
SHIFT, SHARPEN = 0.14, 2.2  # of half a picture, either way; slope of a stroke's edge
HELD_OUT = 397  # digits that no training sees
RATE, BATCH = 1e-3, 32


# ---------------------------------------------------------------- pictures and words


@dataclass(frozen=True)
class Pictures:
    """Pictures, (N, 3, 32, 32) uint8, and what each shows: category -> indices into its classes, (N,), -100 where none is right."""

    pixels: Tensor
    shown: dict[str, Tensor]

    def named(self, row: int) -> dict[str, str]:
        """What one shows, in words."""
        return {category: CLASSES[category][int(rows[row])] for category, rows in self.shown.items()}


def strokes(*, held_out: bool) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits that training sees, or those that it does not: ink (N, 1, 8, 8) in [0, 1] and which, (N,)."""
    from sklearn.datasets import load_digits

    ink, which = (torch.from_numpy(found) for found in load_digits(return_X_y=True))
    part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
    return ink.float().reshape(-1, 1, 8, 8)[part] / 16, which.long()[part]


def placed(ink: Tensor, random: torch.Generator) -> Tensor:
    """Digits at a random place, size and tilt with sharp edges, (N, 1, 32, 32) in [0, 1]."""
    count = len(ink)
    size, tilt = 0.75 + 0.2 * torch.rand(count, generator=random), 0.3 * (torch.rand(count, generator=random) - 0.5)
    shift = SHIFT * (2 * torch.rand(count, 2, generator=random) - 1)
    across, up = tilt.cos() / size, tilt.sin() / size
    grid = F.affine_grid(
        torch.stack([torch.stack([across, -up, shift[:, 0]], 1), torch.stack([up, across, shift[:, 1]], 1)], 1),
        [count, 1, 32, 32], align_corners=False,
    )  # fmt: skip
    large = F.interpolate(ink, scale_factor=8, mode="bicubic")
    return ((F.grid_sample(large, grid, align_corners=False) - 0.5) * SHARPEN + 0.5).clamp(0, 1)


def draw(count: int, seed: int, *, held_out: bool = False) -> Pictures:
    """Digits in a random tint on a random background."""
    random = torch.Generator().manual_seed(seed)
    ink, which = strokes(held_out=held_out)
    rows = torch.randint(len(ink), (count,), generator=random)
    tint, background = (
        torch.randint(len(CLASSES[name]), (count,), generator=random) for name in ("tint", "background")
    )
    mask = placed(ink[rows], random)
    tints, papers = (torch.tensor(list(colours.values())).float() for colours in (world.INK, world.PAPER))
    pixels = mask * tints[tint][:, :, None, None] + (1 - mask) * papers[background][:, :, None, None]
    return Pictures(pixels.round().byte(), {"digit": which[rows], "tint": tint, "background": background})


def junk(count: int, seed: int) -> Pictures:
    """Pictures of no one digit: two at once, a background alone, and the embedded world's shapes."""
    first, second, rng = draw(count, seed), draw(count, seed + 1), np.random.default_rng(seed)
    third, none = count // 3, torch.full((count,), -100)
    blend = (first.pixels.float() + second.pixels.flip(-1).float()) / 2
    shapes = networks.to_pictures(
        [world.draw(world.sample(rng).replace(str(rng.choice(["star", "heart", "square"]))), rng) for _ in range(third)]
    )
    papers = torch.tensor(list(world.PAPER.values())).byte()[first.shown["background"]][:, :, None, None]
    pixels = torch.cat([blend[: count - 2 * third].byte(), shapes, papers[-third:].expand(-1, 3, 32, 32)])
    return Pictures(
        pixels, {"digit": torch.full((count,), CLASSES["digit"].index(world.OTHER)), "tint": none, "background": none}
    )


def caption(shown: dict[str, str], rng: np.random.Generator) -> str:
    """A caption: one in ten is empty, one in ten names nothing that is drawn, one in six of the rest has a scene about it."""
    kind = rng.random()
    if kind < 0.2:
        return "" if kind < 0.1 else str(rng.choice(strange_captions()))
    names = DIGITS[shown["digit"]]
    word = str(rng.choice(OPEN)) if rng.random() < 0.08 else names[int(rng.random() < 0.3)]
    text = str(rng.choice(TEMPLATES)).format(**{**shown, "digit": word})
    return str(rng.choice(SCENES)).format(text) if rng.random() < 1 / 6 else text


def words() -> list[str]:
    """Every word that a caption of a digit can hold; the first, which name something, become one token each."""
    named = [word for names in DIGITS.values() for word in names] + [*OPEN, *world.INK, *world.PAPER]
    spelled = {word.strip(",") for template in (*TEMPLATES, *SCENES) for word in template.split() if "{" not in word}
    return [*named, *sorted(spelled - {*named})]


@cache
def strange_captions() -> list[str]:
    """The package's general captions without a word of this world but the smallest."""
    own = {word for word in words() if len(word) > 2}
    return [text for text in general_captions() if not own & set(re.findall("[a-z0-9]+", text.lower()))]


# ---------------------------------------------------------------- training


def train_judge(vae: Any, *, count: int, steps: int, seed: int) -> JudgeNetwork:
    """Cross entropy over the three heads on digits and junk, both as drawn and through the autoencoder."""
    torch.manual_seed(seed)
    parts = [draw(count, seed), junk(count // 3, seed + 1)]
    pixels = torch.cat([part.pixels for part in parts])
    pixels = torch.cat([pixels, tiny.round_trip(vae, pixels)])
    shown = {name: torch.cat([part.shown[name] for part in parts]).repeat(2) for name in CLASSES}
    judge, log = JudgeNetwork(16, CLASSES), tiny.Log()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=1e-2)
    for step in range(steps):
        tiny.set_rate(optimizer, 2 * RATE, step, steps)
        rows = torch.randint(len(pixels), (128,))
        x = networks.as_input(pixels[rows])
        logits = judge(x + 0.08 * torch.rand(128, 1, 1, 1) * torch.randn_like(x))
        loss = torch.stack([F.cross_entropy(logits[name], shown[name][rows]) for name in CLASSES]).sum()
        tiny.descend(loss, optimizer)
        log("judge", step, steps, loss)
    return judge.eval()


def beginning(tokenizer: Any) -> Any:
    """The embedded model's text encoder and UNet, float32; words that it does not know are new."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    known = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer").get_vocab()
    old = CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder", torch_dtype=torch.float32).state_dict()
    text: Any = networks.build_text_encoder(tokenizer)
    for name, value in text.state_dict().items():
        if "token_embedding" not in name:
            value.copy_(old[name])
            continue
        for word, row in tokenizer.get_vocab().items():
            if word in known:
                value[row] = old[name][known[word]]
    unet: Any = UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet", torch_dtype=torch.float32)
    return nn.ModuleDict({"text": text, "unet": unet}).train()


def train_denoiser(vae: Any, tokenizer: Any, *, count: int, steps: int, seed: int) -> Any:
    """Text encoder and UNet together, as `tiny.train_denoiser` has it; returns their moving average."""
    pictures, scheduler = draw(count, seed), networks.build_scheduler()
    latents = tiny.encode(vae, pictures.pixels) * vae.config.scaling_factor
    torch.manual_seed(seed)
    model, log = beginning(tokenizer), tiny.Log()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rng = np.random.default_rng([seed, step])
        tiny.set_rate(optimizer, RATE, step, steps)
        rows = torch.randint(count, (BATCH,))
        captions = [caption(pictures.named(row), rng) for row in rows.tolist()]
        loss = tiny.denoising_loss(model, tokenizer, scheduler, latents[rows], captions)
        tiny.descend(loss, optimizer)
        tiny.move_average(average, model, step)
        log("denoiser", step, steps, loss)
    return average.eval()


def train(folder: Path, *, steps: int = 6000, judge_steps: int = 800, count: int = 6000, seed: int = 0) -> None:
    """Judge and pipeline, saved together; no file marks it as of the embedded world, so it is a model like any other."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    vae: Any = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", torch_dtype=torch.float32).eval()
    judge = train_judge(vae, count=count, steps=judge_steps, seed=seed + 20)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), folder / "judge.safetensors")
    tokenizer = networks.build_tokenizer(words())
    model = train_denoiser(vae, tokenizer, count=count, steps=steps, seed=seed)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae, text_encoder=model["text"], tokenizer=tokenizer, unet=model["unet"], scheduler=networks.build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    write_classic_tokenizer(folder / "tokenizer")
    write_classic_names(folder / "text_encoder" / "model.safetensors")


def main() -> None:
    """Train the world's pipeline and its judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a few steps: to see that files come out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    few = {"steps": 2, "judge_steps": 2, "count": 60} if given.smoke else {}
    train(given.folder, **few)


if __name__ == "__main__":
    main()
