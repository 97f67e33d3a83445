"""Concept Inversion: a word embedding is learned on pictures of the concept, and takes its name's place in the prompts.

Every text encoder reads vectors of its own there, learned together, so that none reads the name. The budget "published" is
what the authors' script for ESD runs (Pham et al. 2024, arXiv 2308.01508; repository circumventing-concept-erasure,
esd/train.sh): one vector that begins at a word, 25 pictures, 5,000 steps of 4 x 4 pictures, AdamW with a weight decay of
.01 at a constant rate of 5e-3 times the 16 pictures of a step. That rate is in the units of the embedding itself, some six
times the spread of Stable Diffusion's vocabulary: vectors may end far outside it, so their norm is reported. Departs in
the prompts that are learned from, which are the concept's own, and in float32 in the place of fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..declaration import setting
from ..results.attack import Restart
from . import ATTACKS
from .base import Attack, Outcome, images_setting

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Data
    from .context import AttackContext, Side
    from .learn import Target

CHECK_EVERY = 50  # steps between checkpoints
PICTURES_A_STEP = 16  # 4 a pass, accumulated over 4
PUBLISHED = {
    "learn_from": 25, "steps": 5000, "restarts": 1, "lr": 5e-3 * PICTURES_A_STEP, "tokens": 1,
    "batch_size": PICTURES_A_STEP,
}  # fmt: skip
DECAY = 0.01  # AdamW's in the published budget


@dataclass(frozen=True)
class EmbeddingOptions:
    """How an embedding is learned."""

    images: str | None = images_setting()
    learn_from: int = setting(48, "Pictures of the concept that are learned from.", least=1)
    steps: int = setting(200, "Steps of learning.", least=1)
    restarts: int = setting(4, "Embeddings learned from different starts; the strongest counts.", least=1)
    lr: float = setting(0.3, "Learning rate, as a share of the vocabulary's spread.", least=0, open_ends=True)
    tokens: int = setting(1, "Learned vectors in the place of the name, in every text encoder.", least=1)
    batch_size: int = setting(4, "Pictures per step.", least=1)
    budget: str | None = setting(
        None, "published: the authors' steps, rate (then in units of the embedding), pictures and vectors.",
        choices=("published",), default_text="none",
    )  # fmt: skip


def prepare(context: AttackContext, original: Side) -> Data:
    """Pictures of the concept."""
    return {"latents": context.concept_latents(original, context.training(context.options.learn_from))}


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Learn an embedding from each start, and draw the prompts with it; the strongest counts."""
    from ..concepts import SLOT
    from ..diffusion import slots
    from .learn import Target, encoder

    o, d = context.options, side.denoiser
    pairs = context.training(o.learn_from)
    target = Target(d, data["latents"].to(d.device), slots.slotted(d, [text for text, _ in pairs], width=o.tokens))
    prompts = slots.slotted(d, [text for text, _ in context.named], width=o.tokens)
    hits, restarts = [], []
    for restart in range(o.restarts):
        learned = context.cached(
            f"{side.name}-embedding-{restart}", partial(_learn, context, side, target, restart), side
        )
        hits.append(context.hits(side, f"after-{restart}", encode=encoder(d, prompts, learned["vectors"].to(d.device))))
        norm, known = _norms(side, learned["vectors"].to(d.device))
        restarts.append(Restart(sum(hits[-1]) / len(hits[-1]), round(float(learned["loss"]), 5), norm))
    best = max(range(o.restarts), key=lambda n: sum(hits[n]))
    texts = [text.replace(SLOT, "<learned>") for text, _ in context.named]
    figures = {"norm": restarts[best].norm, "vocabulary_norm": known}
    if original := context.outcomes.get("original"):
        figures["original_norm"] = original.figures["norm"]
    return Outcome(hits[best], texts, f"after-{best}", restarts=restarts, figures=figures)


def _norms(side: Side, vectors: Tensor) -> tuple[float, float]:
    """Mean L2 norm of learned vectors, and of the vocabulary's; of the group of encoders that they exceed it most in."""
    from ..diffusion import slots

    groups = zip(slots.by_group(side.denoiser, vectors), slots.vocabularies(side.denoiser), strict=True)
    norms = [
        (round(float(learned.norm(dim=-1).mean()), 4), round(float(known.norm(dim=-1).mean()), 4))
        for learned, known in groups
    ]
    return max(norms, key=lambda both: both[0] / both[1])


def _learn(context: AttackContext, side: Side, target: Target, restart: int) -> Data:
    """One restart, continued from its last checkpoint if it was cut off: the vectors, and their loss on all pictures."""
    import torch

    from ..diffusion import slots
    from ..disk import read_tensors, write_tensors
    from .learn import Embedding, learn_embedding, start_embedding

    o, seed, d = context.options, context.settings.seed, side.denoiser
    checkpoint = context.folder / f"{side.name}-embedding-{restart}.checkpoint.safetensors"
    word = slots.looked_up(slots.vocabularies(d), slots.tokens_of(d, context.concept.words[0]))
    state = start_embedding(target, seed=seed, restart=restart, word=word)
    if checkpoint.exists():
        tensors, _ = read_tensors(checkpoint, d.device)
        state = Embedding(tensors["vectors"], tensors["mean"], tensors["square"], int(tensors["step"]))
    with context.progress(f"embedding {restart + 1}, {side.name}", o.steps) as tick:
        tick(state.step)

        def after_step(state: Embedding) -> None:
            """Save a checkpoint every few steps."""
            tick(1)
            if state.step % CHECK_EVERY == 0:
                write_tensors(checkpoint, vars(state) | {"step": torch.tensor(state.step)})

        state = learn_embedding(
            target,
            state,
            steps=o.steps,
            lr=o.lr,
            batch_size=o.batch_size,
            seed=seed * 100 + restart,
            decay=DECAY if o.budget == "published" else None,
            callback=after_step,
        )
    checkpoint.unlink(missing_ok=True)
    with torch.no_grad():
        everything = torch.arange(len(target.latents))
        loss = target.loss(everything, state.vectors, torch.Generator().manual_seed(seed))
    return {"vectors": state.vectors, "loss": loss}


ATTACKS.add("embedding", Attack(
    "learn one word embedding on pictures of the concept (white box)", "learned embedding", run, options=EmbeddingOptions,
    profiles={"small": {"batch_size": 16}}, budgets={"published": PUBLISHED}, prepare=prepare,
))  # fmt: skip
