"""How the embedded model was made: `python -m sd_scissorhands.tiny.train` (seeded, CPU, about an hour on one core).

Stages, each leaving a file in the work directory and skipped when it is there: autoencoder -> text encoder and UNet
together -> judge -> the shipped directory with its measured quality.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import JUDGE_FILE, MODEL_DIR, world
from .judge import CLASSES, JudgeNetwork, load_judge
from .networks import (
    POSITIONS,
    as_input,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    save_pipeline,
    to_pictures,
)
from .quality import write_card

# ---------------------------------------------------------------- stages


def make_drawings(count: int, seed: int) -> tuple[Tensor, list[world.Drawing]]:
    """Training pictures, (count, 3, 32, 32) uint8, and what each shows."""
    rng = np.random.default_rng(seed)
    drawings = [world.sample(rng) for _ in range(count)]
    return to_pictures([world.draw(d, rng) for d in drawings]), drawings


def train_vae(pictures: Tensor, *, steps: int, seed: int, log) -> Any:
    """Autoencoder under squared and absolute error with a light KL term; registers its own scaling factor 1/std."""
    torch.manual_seed(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        set_rate(optimizer, 2e-3, step, steps)
        x = as_input(pictures[torch.randint(len(pictures), (32,))])
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.mse_loss(decoded, x) + 0.2 * F.l1_loss(decoded, x) + 2e-4 * posterior.kl().mean() / 256
        descend(loss, optimizer)
        log("vae", step, steps, loss)
    latents = encode(vae.eval(), pictures[:4096])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae


@torch.no_grad()
def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Posterior means, unscaled: (N, 4, 8, 8)."""
    return torch.cat([vae.encode(as_input(chunk)).latent_dist.mean for chunk in pictures.split(256)])


@torch.no_grad()
def round_trip(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures through the autoencoder and back, uint8."""
    decoded = [vae.decode(encode(vae, chunk)).sample for chunk in pictures.split(256)]
    return ((torch.cat(decoded).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def labelled(drawn: list[tuple[np.ndarray, dict[str, str | None]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures and, per category, class indices (N,); -100 where no answer is right."""
    targets = {
        category: torch.tensor([names.index(truth[category]) if truth[category] else -100 for _, truth in drawn])
        for category, names in CLASSES.items()
    }
    return to_pictures([pixels for pixels, _ in drawn]), targets


def train_judge(vae: Any, *, drawings: int, epochs: int, seed: int, log) -> JudgeNetwork:
    """Cross entropy over the four heads, on drawings and junk, both as drawn and through the autoencoder."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    seen = [world.sample(rng) for _ in range(drawings)]
    shown = [(world.draw(d, rng), dict(d.__dict__)) for d in seen] + [world.junk(rng) for _ in range(drawings * 2 // 3)]
    pictures, targets = labelled(shown)
    pictures = torch.cat([pictures, round_trip(vae, pictures)])
    targets = {category: rows.repeat(2) for category, rows in targets.items()}
    judge, batch = JudgeNetwork(), 128
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * len(pictures) // batch
    for step in range(steps):
        set_rate(optimizer, 1.5e-3, step, steps)
        rows = torch.randint(len(pictures), (batch,))
        x = as_input(pictures[rows])
        x = x + torch.rand(batch, 1, 1, 1) * 0.08 * torch.randn_like(x)
        loss = torch.stack([F.cross_entropy(logits, targets[d][rows]) for d, logits in judge(x).items()]).sum()
        descend(loss, optimizer)
        log("judge", step, steps, loss)
    return judge.eval()


def train_denoiser(
    vae: Any,
    pictures: Tensor,
    drawings: list[world.Drawing],
    work: Path,
    *,
    steps: int,
    seed: int,
    log,
    text: nn.Module | None = None,
    width: int = 32,
) -> tuple[nn.Module, nn.Module]:
    """Text encoder and UNet together on noise prediction (min-SNR weights, gamma 5); returns their moving averages.

    The state is saved every 500 steps, so that a killed training continues. A `text` encoder that is given stays as it is.
    """
    latents = encode(vae, pictures) * vae.config.scaling_factor
    latents = torch.cat([latents, encode(vae, pictures.flip(-1)) * vae.config.scaling_factor])  # mirrored: same words
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    torch.manual_seed(seed)
    words_of = build_text_encoder(tokenizer) if text is None else text.requires_grad_(False)
    model: Any = nn.ModuleDict({"text": words_of, "unet": build_unet(width)})
    average: Any = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.99))
    start, state, parts = 0, work / "denoiser.pt", {"model": model, "average": average, "optimizer": optimizer}
    if state.exists():
        saved = torch.load(state, weights_only=True)
        start = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rng = np.random.default_rng([seed, step])
        set_rate(optimizer, 2e-3, step, steps)
        rows = torch.randint(len(latents), (64,))
        captions = [training_caption(drawings[row % len(drawings)], rng) for row in rows.tolist()]
        loss = denoising_loss(model, tokenizer, scheduler, latents[rows], captions)
        descend(loss, optimizer)
        move_average(average, model, step)
        log("denoiser", step, steps, loss)
        if (step + 1) % 500 == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step + 1, **states}, f"{state}.new")
            Path(f"{state}.new").replace(state)
    return average["text"].eval(), average["unet"].eval()


def move_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move averaged weights towards a model's, by less the later the step."""
    decay = min(0.998, (1 + step) / (10 + step))
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.data.lerp_(fast.data, 1 - decay)


def denoising_loss(model: Any, tokenizer: Any, scheduler: Any, x0: Tensor, captions: list[str]) -> Tensor:
    """Error of the predicted noise at random timesteps with min-SNR weights, gamma 5: a scalar."""
    tokens = tokenizer(captions, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt")
    noise, t = torch.randn(x0.shape), torch.randint(1000, (len(x0),))
    words = model["text"](tokens.input_ids).last_hidden_state
    predicted = model["unet"](scheduler.add_noise(x0, noise, t), t, words).sample
    abar = torch.as_tensor(scheduler.alphas_cumprod)[t]
    weight = (5 / (abar / (1 - abar))).clamp(max=1)
    return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()


def training_caption(drawing: world.Drawing, rng: np.random.Generator) -> str:
    """A caption that is not held out; one in ten is empty, for classifier-free guidance."""
    if rng.random() < 0.1:
        return ""
    while world.held_out(text := world.caption(drawing, rng)):
        pass
    return text


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Short warm-up, then a cosine to zero."""
    rate = peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step with the gradient's norm clipped at 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


# ---------------------------------------------------------------- the command


class Log:
    """Prints a stage's running loss every 100 steps, with the time left."""

    def __init__(self) -> None:
        self.began: dict[str, tuple[int, float]] = {}

    def __call__(self, stage: str, step: int, steps: int, loss: Tensor) -> None:
        first, began = self.began.setdefault(stage, (step, time.monotonic()))
        if (step + 1) % 100 == 0:
            left = (time.monotonic() - began) / (step + 1 - first) * (steps - step - 1)
            print(f"{stage} {step + 1}/{steps} loss {float(loss):.4f} left {left / 60:.1f} min", flush=True)


def train_unet(
    pictures: Tensor,
    drawings: list[world.Drawing],
    work: Path,
    output: Path,
    *,
    steps: int,
    seed: int,
    without: frozenset[str] = frozenset(),
    width: int = 32,
) -> None:
    """A UNet from nothing beside the other shipped parts, on the drawings that show none of some concepts: it never knew them."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    vae: Any = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", torch_dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder", torch_dtype=torch.float32).eval()
    rows = [row for row, drawing in enumerate(drawings) if not without & set(vars(drawing).values())]
    pictures, drawings = pictures[rows], [drawings[row] for row in rows]
    text, unet = train_denoiser(
        vae, pictures, drawings, work, steps=steps, seed=seed, log=Log(), text=text, width=width
    )
    save_pipeline(vae, text, unet, load_judge(JUDGE_FILE), output)


def main(
    work: Path = typer.Option(Path("runs/tiny"), help="Where the stages leave their files."),
    output: Path = typer.Option(MODEL_DIR, help="Where the shipped directory goes."),
    drawings: int = 24_000,
    vae_steps: int = 2_400,
    judge_epochs: int = 5,
    steps: int = 7_000,
    seed: int = 0,
    threads: int = 1,
    without: list[str] | None = typer.Option(
        None, help="A concept that no drawing shows; trains the UNet alone. Repeatable."
    ),
    width: int = typer.Option(32, help="Of the UNet; another than the shipped one's trains the UNet alone."),
) -> None:
    """Train the embedded model and its judge from nothing, and write them with their measured card."""
    alone = bool(without) or width != 32
    if alone and output == MODEL_DIR:
        raise typer.BadParameter("needs an --output of its own", param_hint="--without" if without else "--width")
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    log = Log()
    pictures, shown = make_drawings(drawings, seed)
    if alone:
        return train_unet(
            pictures, shown, work, output, steps=steps, seed=seed + 3, without=frozenset(without or ()), width=width
        )
    vae, vae_file = build_vae(), work / "vae"
    if vae_file.exists():
        vae = vae.from_pretrained(vae_file).eval()
    else:
        vae = train_vae(pictures, steps=vae_steps, seed=seed + 1, log=log)
        vae.save_pretrained(vae_file)
    text, unet = train_denoiser(vae, pictures, shown, work, steps=steps, seed=seed + 3, log=log)
    judge, judge_file = JudgeNetwork().eval(), work / "judge.safetensors"
    if judge_file.exists():
        judge.load_state_dict(load_file(judge_file))
    else:
        judge = train_judge(vae, drawings=drawings // 2, epochs=judge_epochs, seed=seed + 2, log=log)
        save_file(judge.state_dict(), judge_file)
    save_pipeline(vae, text, unet, judge, output)
    flags = f"--drawings {drawings} --vae-steps {vae_steps} --judge-epochs {judge_epochs} --steps {steps} --seed {seed}"
    write_card(output, [vae, text, unet], flags, seed=seed)


if __name__ == "__main__":
    typer.run(main)
