"""Suffixes of real tokens, one learned for each prompt by projected gradient, after UnlearnDiffAtk.

Text encoders with another vocabulary have a suffix of their own, searched at the same time: a pipeline takes a prompt for each.
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

TOGETHER = 32  # prompts whose suffixes are learned at a time


@dataclass(frozen=True)
class TokenOptions:
    """How the suffixes are learned."""

    images: str | None = images_setting()
    steps: int = setting(40, "Steps of learning.", least=1)
    lr: float = setting(0.5, "Learning rate, as a share of the vocabulary's spread.", least=0, open_ends=True)
    tokens: int = setting(5, "Tokens of a suffix.", least=1)


def prepare(context: AttackContext, original: Side) -> Data:
    """For every prompt the original's picture for it: what its suffix is to bring back."""
    if context.options.images:
        return {"latents": context.concept_latents(original, context.named)}
    prompts, seeds = [row.prompt for row in context.rows], [row.seed for row in context.rows]
    return {"latents": context.generated(original, "target pictures", prompts, seeds)}


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Learn a suffix for every prompt, and draw the prompts with it."""
    import torch

    from ..concepts import SLOT
    from ..diffusion import slots
    from .learn import Target, encoder

    d, rows = side.denoiser, context.rows
    prompts = slots.slotted(d, [f"{row.prompt} {SLOT}" for row in rows], width=context.options.tokens)
    target = Target(d, data["latents"].to(d.device), prompts)
    learned = [
        context.cached(f"{side.name}-suffixes-{int(some[0])}", partial(_suffixes, context, side, target, some), side)
        for some in torch.arange(len(rows)).split(TOGETHER if d.small else 2)
    ]
    suffixes = torch.cat([one["ids"] for one in learned])  # (N, width, groups)
    vectors = slots.side_by_side(slots.looked_up(slots.vocabularies(d), suffixes.to(d.device).unbind(-1)))
    after = context.hits(side, "after", encode=encoder(d, prompts, vectors))
    texts = [f"{row.prompt} {slots.spelled(d, own)}" for row, own in zip(rows, suffixes.tolist(), strict=True)]
    loss = round(float(torch.cat([one["losses"] for one in learned]).mean()), 5)
    return Outcome(after, texts, "after", restarts=[Restart(sum(after) / len(after), loss)])


def _suffixes(context: AttackContext, side: Side, target: Target, rows: Tensor) -> Data:
    """The suffixes of some prompts, and their losses."""
    from .learn import learn_tokens

    o, seed = context.options, context.settings.seed + int(rows[0])
    with context.progress(f"suffixes, {side.name}", len(rows) * o.steps) as tick:
        ids, losses = learn_tokens(target, rows, steps=o.steps, lr=o.lr, seed=seed, callback=tick)
    return {"ids": ids, "losses": losses}


ATTACKS.add("token", Attack(
    "learn a suffix of real tokens for each prompt, by projected gradient (white box)", "learned token", run,
    options=TokenOptions, profiles={"small": {"tokens": 3}}, prepare=prepare,
))  # fmt: skip
