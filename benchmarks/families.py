"""The table of docs/experiments.md on other families: `python benchmarks/families.py [sd2|sdxl|sd3|flux ...]`, SD 2 and SDXL by default.

Each family's real classes as a small pipeline of the embedded world, trained until the judge finds what captions name,
then erased, judged and attacked by the library. Everything goes to runs/families and is kept, so that what was cut off
continues. Everything is seeded, on one thread of the CPU. The transformers of SD 3 and FLUX begin from nothing: their lessons
were not run to the end, and how long they have to be is not known.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from experiments import alone, machine, markdown, publish  # the other tables' helpers, beside this file
from methods import compared
from torch import Tensor, nn

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.families import flux, sd3
from sd_scissorhands.disk import atomic
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.tiny import JUDGE_FILE, MODEL_DIR, world
from sd_scissorhands.tiny import train as school
from sd_scissorhands.tiny.judge import load_judge

ROOT = Path("runs/families")
CONCEPTS = ("heart", "yellow")
TABLED = ("sd2", "sdxl")
RECIPE = "scissorhands-robust"
TITLES = {"sd2": "SD 2", "sdxl": "SDXL", "sd3": "SD 3", "flux": "FLUX"}
BESIDE = ("UA", "UA_generic", "IRA", "CRA", "CRA_forget")  # figures that have the original's beside them
STEPS, SIDE, WIDTH = 20, 8, 64  # of sampling; of latents; of the embedded text encoder
TOKENS = {sd3: 4, flux: 16}  # what T5 reads: SD 3 goes without one and has zeros there
SAVED_EVERY = 200


@dataclass(frozen=True)
class Lesson:
    """How a family is trained."""

    build: Callable[[], Any]  # its pipeline
    steps: int
    rate: float
    batch: int
    guidance: float  # that its pictures are drawn with
    drawings: int = 12_000  # each seen mirrored too
    unread: float = 0.0  # probability, for each text encoder by itself, that it reads nothing
    distilled: int = 0  # further steps, in which it learns to draw by itself as `guidance` would make it draw


# ---------------------------------------------------------------- pipelines


def part(kind: Any, name: str) -> Any:
    """A part of the embedded model, float32."""
    return kind.from_pretrained(MODEL_DIR / name, torch_dtype=torch.float32)


def vae(shift: float | None = None) -> Any:
    """The embedded autoencoder; later families' have a shift beside the scale."""
    from diffusers import AutoencoderKL

    found = part(AutoencoderKL, "vae")
    found.register_to_config(shift_factor=shift)
    return found


def tokenizer() -> Any:
    """The embedded tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")


def clip() -> Any:
    """The embedded text encoder."""
    from transformers import CLIPTextModel

    return part(CLIPTextModel, "text_encoder")


def clip_with_projection() -> Any:
    """The same weights with the pooled embedding projected by the identity."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    known = clip()
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
    """The embedded UNet with other parts: whatever of its weights fits is taken over."""
    from diffusers import UNet2DConditionModel

    known = part(UNet2DConditionModel, "unet")
    made = UNet2DConditionModel.from_config({**known.config, **changes})
    old, new = known.state_dict(), made.state_dict()
    made.load_state_dict({name: taken_over(old.get(name), value) for name, value in new.items()})
    if made.config.addition_embed_type:
        silence(made.add_embedding.linear_2)
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


@torch.no_grad()
def silence(*layers: Any) -> None:
    """Layers that say zero at the start of a training."""
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def sd2() -> Any:
    """Stable Diffusion 2: linear projections, a velocity predicted."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler.from_config(school.build_scheduler().config, prediction_type="v_prediction")
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=tokenizer(), unet=unet(use_linear_projection=True), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    """SDXL: two encoders' last states but one, a pooled embedding, time ids, zeros for the empty prompt."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    denoiser = unet(
        use_linear_projection=True, cross_attention_dim=2 * WIDTH, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    known = school.build_scheduler().config
    betas = {name: known[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=tokenizer(), text_encoder_2=clip_with_projection(), tokenizer_2=tokenizer(),
        unet=denoiser, scheduler=EulerDiscreteScheduler(**betas), force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def sd3_() -> Any:
    """SD 3 without T5: a transformer from nothing, both CLIPs' states but one and pooled embeddings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    denoiser = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=24,
        num_attention_heads=4, joint_attention_dim=2 * WIDTH, caption_projection_dim=96, pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=4, qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=identity_at_first(denoiser), vae=vae(shift=0.06), tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        tokenizer_3=None, text_encoder=clip_with_projection(), text_encoder_2=clip_with_projection(), text_encoder_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux_() -> Any:
    """FLUX.1 dev: transformer and T5 from nothing, CLIP's pooled embedding, guidance as an input."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    denoiser = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=24, num_attention_heads=4,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(8, 8, 8),
    )  # fmt: skip
    encoder, words = t5()
    return FluxPipeline(
        transformer=identity_at_first(denoiser), vae=vae(shift=0.11), tokenizer=tokenizer(), tokenizer_2=words, text_encoder=clip(),
        text_encoder_2=encoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )  # fmt: skip


def t5() -> tuple[Any, Any]:
    """A T5 encoder from nothing and its tokenizer, which knows the world's words."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocabulary += [(f"▁{word}", -2.0) for word in world.words()]
    vocabulary += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = T5TokenizerFast(vocab=vocabulary, extra_ids=0)
    config = T5Config(
        vocab_size=len(words), d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=1, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return T5EncoderModel(config), words


def identity_at_first(transformer: Any) -> Any:
    """Every block passes on what it is given and nothing is said, as DiT begins (Peebles and Xie 2023, section 3.2)."""
    modulations = [
        module for name, module in transformer.named_modules() if "norm" in name and name.endswith(".linear")
    ]
    silence(*modulations, transformer.proj_out)
    return transformer


# ---------------------------------------------------------------- training


LESSONS = {
    "sd2": Lesson(sd2, steps=500, rate=1e-3, batch=32, guidance=3.0),
    "sdxl": Lesson(sdxl, steps=900, rate=1e-3, batch=32, guidance=3.0),
    "sd3": Lesson(sd3_, steps=2000, rate=2e-3, batch=32, guidance=3.0, drawings=3_000),
    "flux": Lesson(
        flux_, steps=1800, rate=2e-3, batch=32, guidance=flux.Flux.guidance, drawings=3_000, unread=0.2, distilled=300
    ),
}


@contextmanager
def small() -> Iterator[None]:
    """What FLUX's and SD 3's families hold as constants, at the size of the embedded world."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(flux.Flux, "side", SIDE))
        for module, tokens in TOKENS.items():
            stack.enter_context(patch.object(module, "T5_LENGTH", tokens))
        yield


make_drawings = cache(school.make_drawings)


def trained(name: str, *, seed: int = 0) -> Path:
    """The directory of a family's trained pipeline, made or found, with what the judge says of it in quality.json."""
    folder = ROOT / name / "base"
    if not (folder / "quality.json").exists():
        teach(LESSONS[name], folder, seed=seed)
        right = quality(folder, prompts=400, seed=seed + 11)
        (folder / "quality.json").write_text(json.dumps({"right": right}, indent=2) + "\n")
        print(name, right, flush=True)
    return folder


def teach(lesson: Lesson, folder: Path, *, seed: int) -> None:
    """Build a pipeline, train it, and save it as one of the embedded world's; what was cut off continues."""
    torch.manual_seed(seed)
    pipeline = lesson.build()
    course = Course(Denoiser(pipeline), lesson, *make_drawings(lesson.drawings, seed), seed=seed + 1)
    course.learn(folder.with_name("learning.pt"), lesson.steps)
    if lesson.distilled:
        course.distil(folder.with_name("distilling.pt"))
    pipeline.save_pretrained(folder)
    facts = json.loads((MODEL_DIR / "world.json").read_text())
    facts["sampling"] = {"steps": STEPS, "guidance": lesson.guidance}
    (folder / "world.json").write_text(json.dumps(facts, indent=2) + "\n")


class Course:
    """A denoiser, and a T5 beside it, that learn to draw the world with their family's own objective.

    The state is saved every `SAVED_EVERY` steps, so that a killed training continues. What is left in the pipeline is the
    weights' moving average.
    """

    def __init__(self, d: Denoiser, lesson: Lesson, pictures: Tensor, drawings: list[world.Drawing], *, seed: int):
        self.d, self.lesson, self.drawings, self.seed = d, lesson, drawings, seed
        for part in d.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        vae, (shift, scale) = d.pipeline.vae, d._shift_and_scale()
        both = torch.cat([pictures, pictures.flip(-1)])  # mirrored: same words
        self.latents = (school.encode(vae, both) - shift) * scale

    def learn(self, state: Path, steps: int) -> None:
        """By the denoising loss."""
        pupils = [self.d.module, *(e.model for e in self.d.family.encoders if "T5" in type(e.model).__name__)]
        self._train(state, nn.ModuleList(pupils), steps, self._loss)

    def distil(self, state: Path) -> None:
        """By what it says with guidance, until it says so by itself; the words are read as before."""
        teacher = self.d.teacher(self.d.parameters)
        self._train(state, nn.ModuleList([self.d.module]), self.lesson.distilled, partial(self._guided_loss, teacher))

    def _train(self, state: Path, model: nn.ModuleList, steps: int, loss_of: Callable[[int], Tensor]) -> None:
        model.requires_grad_(True)
        average, log = copy.deepcopy(model), school.Log()
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lesson.rate, betas=(0.9, 0.99), weight_decay=0.0)
        held = {"model": model, "average": average, "optimizer": optimizer}
        for step in range(restored(held, state), steps):
            torch.manual_seed(self.seed * 1_000_003 + step)
            school.set_rate(optimizer, self.lesson.rate, step, steps)
            loss = loss_of(step)
            school.descend(loss, optimizer)
            decay = min(0.998, (1 + step) / (10 + step))
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.data.lerp_(fast.data, 1 - decay)
            log(str(state), step, steps, loss)
            if (step + 1) % SAVED_EVERY == 0:
                save(held, state, step + 1)
        model.load_state_dict(average.state_dict())
        model.requires_grad_(False)

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, conditions, noise and timesteps; one caption in ten is empty, as the family has it."""
        rng, count = np.random.default_rng([self.seed, step]), self.lesson.batch
        rows = torch.randint(len(self.latents), (count,))
        captions = [school.training_caption(self.drawings[row % len(self.drawings)], rng) for row in rows.tolist()]
        read = [
            ["" if rng.random() < self.lesson.unread else text for text in captions] for _ in self.d.family.encoders
        ]
        ids = torch.cat([e.ids(texts) for e, texts in zip(self.d.family.encoders, read, strict=True)], 1)
        empty = torch.tensor([not text for text in captions])[:, None, None]
        words = torch.where(empty, self.d.family.unconditional(count), self.d.family.condition(ids))
        return self.latents[rows], words, torch.randn(count, 4, SIDE, SIDE), torch.randint(self.d.timesteps, (count,))

    def _loss(self, step: int) -> Tensor:
        return self.d.loss(*self._batch(step)).mean()

    def _guided_loss(self, teacher: Mapping[str, Tensor], step: int) -> Tensor:
        clean, words, noise, t = self._batch(step)
        noisy = self.d.noised(clean, noise, t)
        with torch.no_grad():
            asked = torch.cat([self.d.unconditional(len(words)), words])
            without, told = self.d.predict(torch.cat([noisy, noisy]), torch.cat([t, t]), asked, teacher).chunk(2)
        wanted = without + self.lesson.guidance * (told - without)
        return (self.d.predict(noisy, t, words) - wanted).square().mean()


def restored(held: Mapping[str, Any], state: Path) -> int:
    """The step that a saved training stands at, with its state in what is `held`; 0 where there is none."""
    if not state.exists():
        return 0
    saved = torch.load(state, weights_only=True)
    for name, one in held.items():
        one.load_state_dict(saved[name])
    return saved["step"]


def save(held: Mapping[str, Any], state: Path, step: int) -> None:
    """Keep a training's state, whole or not at all."""
    with atomic(state) as new:
        torch.save({"step": step, **{name: one.state_dict() for name, one in held.items()}}, new)


def quality(folder: Path, *, prompts: int, seed: int) -> dict[str, float]:
    """Share of what held-out captions name that the judge finds in the pictures, by domain."""
    opened, rng = open_pipeline(str(folder)), np.random.default_rng(seed)
    d, judge, sampling = Denoiser(opened.pipeline), load_judge(JUDGE_FILE), (opened.world or {})["sampling"]
    texts: list[str] = []
    while len(texts) < prompts:
        if world.held_out(text := world.caption(world.sample(rng), rng, generic=0)):
            texts.append(text)
    latents = d.generate(texts, [seed * 100_000 + at for at in range(prompts)], **sampling)
    said = judge.name(torch.cat([d.decode(chunk) for chunk in latents.split(64)]))
    named = [
        (domain, own[domain] == what)
        for text, own in zip(texts, said, strict=True)
        for domain, what in world.read(text).items()
    ]
    return {
        domain: round(float(np.mean([right for where, right in named if where == domain])), 4)
        for domain in world.DOMAINS
    }


# ---------------------------------------------------------------- the table


def measured(name: str, concepts: Sequence[str]) -> list[dict[str, Any]]:
    """A family's rows: those of the original, then those of what was erased from it."""
    from sd_scissorhands.settings import EraseSettings

    folder = trained(name)
    targets = tuple({"concepts": (concept,)} for concept in concepts)
    settings = EraseSettings(model=str(folder), guidance=LESSONS[name].guidance, device="cpu")
    return compared(settings, targets, ROOT / name / "erased", 1, (RECIPE,))


def table(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """What was erased from every family, beside the original."""
    header = (
        "family; drawn right: shape, colour, pattern, background; concept; UA / original; UA synonyms; UA generic / original; "
        "IRA / original; CRA / original; CRA forget / original; embedding ASR / original; seconds"
    )
    lines = [line for name, own in rows.items() for line in lines_of(name, own)]
    training = ", ".join(map(trained_by, rows))
    n = next(iter(rows.values()))[0]["n"]
    counts = f"{n['UA']} pictures for UA, {n['UA_synonyms']} for UA synonyms, {n['UA_generic']} for UA generic, {n['IRA']} for IRA, {n['asr']} for the attack"
    return f"{markdown(header, lines)}\n\nTraining: {training}. Seed 0; per run {counts}; 400 pictures behind what is drawn right. {machine()}"


def lines_of(name: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """The lines of a family, one a concept."""
    right = json.loads((ROOT / name / "base" / "quality.json").read_text())["right"]
    lines = []
    theirs_of = {row["concept"]: row for row in rows if row["recipe"] == "original"}
    for ours in (row for row in rows if row["recipe"] == RECIPE):
        theirs, concept = theirs_of[ours["concept"]], ours["concept"]
        both = {figure: f"{ours[figure]:.3f} / {theirs[figure]:.3f}" for figure in BESIDE}
        synonyms, attacked = f"{ours['UA_synonyms']:.3f}", f"{ours['asr']:.2f} / {theirs['asr']:.2f}"
        first = [TITLES[name], ", ".join(f"{share:.3f}" for share in right.values()), concept, both["UA"], synonyms]
        lines.append([*first, *[both[figure] for figure in BESIDE[1:]], attacked, f"{ours['seconds']:.0f}"])
    return lines


def trained_by(name: str) -> str:
    """How a family was trained, in a few words."""
    lesson = LESSONS[name]
    distilled = f" and {lesson.distilled} of distilled guidance" if lesson.distilled else ""
    return f"{TITLES[name]} {lesson.steps} steps{distilled} of {lesson.batch}"


def main() -> None:
    """Train, erase and measure the families named, and print the table of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"{', '.join(LESSONS)}; {' and '.join(TABLED)} by default")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--train-only", action="store_true", help="print no table")
    given = parser.parse_args()
    alone()
    with small():
        names = given.families or TABLED
        if given.train_only:
            for name in names:
                trained(name)
            return
        publish("families", table({name: measured(name, given.concepts) for name in names}))


if __name__ == "__main__":
    main()
