"""How the embedded model was made: `python -m sd_scissorhands.tiny.train` (seeded, CPU, about an hour on one core).

Stages, each leaving a file in the work directory and skipped when it is there: autoencoder -> text encoder and UNet
together -> judge -> the shipped directory with its measured quality.
"""

from __future__ import annotations

import copy
import json
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

from ..classic import write_classic_names, write_classic_tokenizer
from . import JUDGE_FILE, MODEL_DIR, world
from .judge import CLASSES, JudgeNetwork, load_judge

SAMPLING = {"steps": 20, "guidance": 3.0}  # what the card was measured with; at 5 purple turns too vivid
POSITIONS = 24  # tokens a caption can hold


# ---------------------------------------------------------------- parts


def build_tokenizer():
    """A CLIP tokenizer whose byte-pair merges were made from the world's words.

    Most words are one token; a word that shares a pair of letters with an earlier one is several, as in any CLIP.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    merges: list[tuple[str, str]] = []
    for word in world.words():
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
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


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


def build_unet():
    """Stable Diffusion 1's block types at width 32-64."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, attention_head_dim=4,
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


# ---------------------------------------------------------------- stages


def make_drawings(count: int, seed: int) -> tuple[Tensor, list[world.Drawing]]:
    """Training pictures, (count, 3, 32, 32) uint8, and what each shows."""
    rng = np.random.default_rng(seed)
    drawings = [world.sample(rng) for _ in range(count)]
    return to_pictures([world.draw(d, rng) for d in drawings]), drawings


def to_pictures(pixels: list[np.ndarray]) -> Tensor:
    """A list of (32, 32, 3) uint8 arrays as one (N, 3, 32, 32) uint8 tensor."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def as_input(pictures: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


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
    """Pictures and, per domain, class indices (N,); -100 where no answer is right."""
    targets = {
        domain: torch.tensor([names.index(truth[domain]) if truth[domain] else -100 for _, truth in drawn])
        for domain, names in CLASSES.items()
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
    targets = {domain: rows.repeat(2) for domain, rows in targets.items()}
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
) -> tuple[nn.Module, nn.Module]:
    """Text encoder and UNet together on noise prediction (min-SNR weights, gamma 5); returns their moving averages.

    The state is saved every 500 steps, so that a killed training continues. A `text` encoder that is given stays as it is.
    """
    latents = encode(vae, pictures) * vae.config.scaling_factor
    latents = torch.cat([latents, encode(vae, pictures.flip(-1)) * vae.config.scaling_factor])  # mirrored: same words
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    torch.manual_seed(seed)
    words_of = build_text_encoder(tokenizer) if text is None else text.requires_grad_(False)
    model: Any = nn.ModuleDict({"text": words_of, "unet": build_unet()})
    average: Any = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.99))
    start, state = 0, work / "denoiser.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        start = saved["step"]
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
    abar = torch.as_tensor(scheduler.alphas_cumprod)
    signal = abar / (1 - abar)
    batch = 64
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rng = np.random.default_rng([seed, step])
        set_rate(optimizer, 2e-3, step, steps)
        rows = torch.randint(len(latents), (batch,))
        captions = [training_caption(drawings[row % len(drawings)], rng) for row in rows.tolist()]
        tokens = tokenizer(captions, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt")
        x0, noise, t = latents[rows], torch.randn(batch, 4, 8, 8), torch.randint(1000, (batch,))
        words = model["text"](tokens.input_ids).last_hidden_state
        noisy = scheduler.add_noise(x0, noise, t)  # type: ignore[arg-type]
        predicted = model["unet"](noisy, t, words).sample
        weight = (5 / signal[t]).clamp(max=1)
        loss = (weight * (predicted - noise).square().mean((1, 2, 3))).mean()
        descend(loss, optimizer)
        decay = min(0.998, (1 + step) / (10 + step))
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - decay)
        log("denoiser", step, steps, loss)
        if (step + 1) % 500 == 0:
            states = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({"step": step + 1, **states}, f"{state}.new")
            Path(f"{state}.new").replace(state)
    return average["text"].eval(), average["unet"].eval()


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


# ---------------------------------------------------------------- the shipped directory


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
        values = json.loads(config.read_text()) | ({"dtype": "float32"} if "text_encoder" in config.parts else {})
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")
    state = {n: t.half() if t.is_floating_point() else t for n, t in judge.state_dict().items()}
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "judge.safetensors")
    (folder / "world.json").write_text(json.dumps({"world": "shapes", "sampling": SAMPLING}, indent=2) + "\n")


def measure_judge(judge: JudgeNetwork, *, drawings: int, seed: int) -> dict[str, float]:
    """Share right per domain on unseen drawings, and share of junk called "other" by the heads that should."""
    rng = np.random.default_rng(seed)
    seen = [world.sample(rng) for _ in range(drawings)]
    named = judge_all(judge, to_pictures([world.draw(d, rng) for d in seen]))
    figures = {
        dom: float(np.mean([n[dom] == getattr(d, dom) for n, d in zip(named, seen, strict=True)])) for dom in CLASSES
    }
    drawn = [world.junk(rng) for _ in range(drawings)]
    named = judge_all(judge, to_pictures([pixels for pixels, _ in drawn]))
    for domain in CLASSES:
        rows = [
            n[domain] == world.OTHER for n, (_, truth) in zip(named, drawn, strict=True) if truth[domain] == world.OTHER
        ]
        figures[f"junk {domain}"] = float(np.mean(rows))
    return figures


def judge_all(judge: JudgeNetwork, pictures: Tensor) -> list[dict[str, str]]:
    """What the judge says of uint8 pictures, in batches."""
    return [said for chunk in pictures.split(256) for said in judge.name(as_input(chunk))]


def measure_pipeline(folder: Path, *, prompts: int, seed: int) -> dict[str, float]:
    """Share of what held-out captions name that the judge finds in the pictures, per domain and per shape."""
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
        for text, said in zip(chunk, judge.name(pictures * 2 - 1), strict=True):
            for domain, concept in world.read(text).items():
                right.setdefault(domain, []).append(said[domain] == concept)
                right.setdefault(f"{domain} {concept}", []).append(said[domain] == concept)
    figures = {name: float(np.mean(rows)) for name, rows in sorted(right.items())}
    return {**figures, "cpu_seconds_per_image": (time.process_time() - began) / prompts}


CARD = """---
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


def write_card(folder: Path, figures: dict[str, dict[str, float]], weights: int, judge: int, flags: str) -> None:
    """The measured quality as JSON and as a page."""
    pipeline = dict(figures["pipeline"])
    seconds = pipeline.pop("cpu_seconds_per_image")
    named = {domain: ", ".join(concepts) for domain, concepts in world.DOMAINS.items()}
    text = CARD.format(
        weights=weights, judge=judge, flags=flags, seconds=seconds, **SAMPLING,
        shapes=named["shape"], colours=named["colour"], patterns=named["pattern"], backgrounds=named["background"],
        judge_rows="\n".join(f"| {d} | {figures['judge'][d]:.4f} | {figures['judge'][f'junk {d}']:.4f} |" for d in CLASSES),
        pipeline_rows="\n".join(f"| {name} | {share:.4f} |" for name, share in pipeline.items()),
    )  # fmt: skip
    (folder / "README.md").write_text(text)
    (folder / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")


class Log:
    """Prints a stage's running loss every 100 steps, with the time left."""

    def __init__(self) -> None:
        self.began: dict[str, tuple[int, float]] = {}

    def __call__(self, stage: str, step: int, steps: int, loss: Tensor) -> None:
        first, began = self.began.setdefault(stage, (step, time.monotonic()))
        if (step + 1) % 100 == 0:
            left = (time.monotonic() - began) / (step + 1 - first) * (steps - step - 1)
            print(f"{stage} {step + 1}/{steps} loss {float(loss):.4f} left {left / 60:.1f} min", flush=True)


def train_without(
    concepts: set[str],
    pictures: Tensor,
    drawings: list[world.Drawing],
    work: Path,
    output: Path,
    *,
    steps: int,
    seed: int,
) -> None:
    """A UNet from nothing on the drawings that show none of some concepts, beside the other shipped parts: it never knew them."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    vae: Any = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", torch_dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder", torch_dtype=torch.float32).eval()
    rows = [row for row, drawing in enumerate(drawings) if not concepts & set(vars(drawing).values())]
    pictures, drawings = pictures[rows], [drawings[row] for row in rows]
    text, unet = train_denoiser(vae, pictures, drawings, work, steps=steps, seed=seed, log=Log(), text=text)
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
) -> None:
    """Train the embedded model and its judge from nothing, and write them with their measured card."""
    if without and output == MODEL_DIR:
        raise typer.BadParameter("needs an --output of its own", param_hint="--without")
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    log = Log()
    pictures, shown = make_drawings(drawings, seed)
    if without:
        return train_without(set(without), pictures, shown, work, output, steps=steps, seed=seed + 3)
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
    shipped = load_judge(output / "judge.safetensors")
    figures = {
        "judge": measure_judge(shipped, drawings=3_000, seed=seed + 10),
        "pipeline": measure_pipeline(output, prompts=1_600, seed=seed + 11),
    }
    sizes = [sum(p.numel() for p in part.parameters()) for part in (vae, text, unet, shipped)]
    flags = f"--drawings {drawings} --vae-steps {vae_steps} --judge-epochs {judge_epochs} --steps {steps} --seed {seed}"
    write_card(output, figures, sum(sizes[:3]), sizes[3], flags)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
