"""Real tokens, learned for each prompt by projected gradient: a suffix, or as UnlearnDiffAtk and P4D place and learn them.

Text encoders with another vocabulary have tokens of their own, searched at the same time: a pipeline takes a prompt for each.
Every prompt has tokens of its own, learned on its own picture. Two published budgets:

- unlearndiffatk (Zhang et al. 2024, arXiv 2310.11868; repository Diffusion-MU-Attack, configs/nudity): 5 tokens before the
  prompt, relaxed to weights over the vocabulary, Adam at a rate of .01 with a decay of .1, 40 iterations at each of 50
  timesteps, 2,000 in all, see `token_weights`. Departs in where it ends: the authors look at each timestep's picture with
  the judge and stop at the first success; here no judge is consulted, and the tokens of the least loss are drawn.
- p4d (Chin et al. 2024, arXiv 2309.06135, P4D-N; repository P4D, configs/esd_nudity_optmz_config.json): 16 tokens in the
  place of the prompt, 3,000 steps of one picture, AdamW at a rate of .1 with a decay of .1, nearest tokens by the angle.
  Departs in what is fitted: the noise of the original's picture, not the original's prediction under the prompt; and in
  the tokens drawn: those of the least loss, not the ones whose picture CLIP finds most similar.
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
BUDGETS = {
    "unlearndiffatk": {"tokens": 5, "steps": 40 * 50, "lr": 0.01},
    "p4d": {"tokens": 16, "steps": 3000, "lr": 0.1},
}
PLACES = {"unlearndiffatk": "{slot} {prompt}", "p4d": "{slot}"}  # of the tokens; else behind the prompt
DECAY = 0.1  # P4D's weight decay


@dataclass(frozen=True)
class TokenOptions:
    """How the suffixes are learned."""

    images: str | None = images_setting()
    steps: int = setting(40, "Steps of learning.", least=1)
    lr: float = setting(0.5, "Learning rate, as a share of the vocabulary's spread.", least=0, open_ends=True)
    tokens: int = setting(5, "Tokens of a suffix.", least=1)
    budget: str | None = setting(
        None, "unlearndiffatk or p4d: the authors' tokens, their place, steps and rate.", choices=tuple(BUDGETS),
        default_text="none",
    )  # fmt: skip


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
    place = PLACES.get(context.options.budget, "{prompt} {slot}")
    texts = [place.format(prompt=row.prompt, slot=SLOT) for row in rows]
    prompts = slots.slotted(d, texts, width=context.options.tokens)
    target = Target(d, data["latents"].to(d.device), prompts)
    learned = [
        context.cached(f"{side.name}-suffixes-{int(some[0])}", partial(_suffixes, context, side, target, some), side)
        for some in torch.arange(len(rows)).split(TOGETHER if d.small else 2)
    ]
    suffixes = torch.cat([one["ids"] for one in learned])  # (N, width, groups)
    vectors = slots.side_by_side(slots.looked_up(slots.vocabularies(d), suffixes.to(d.device).unbind(-1)))
    after = context.hits(side, "after", encode=encoder(d, prompts, vectors))
    texts = [text.replace(SLOT, slots.spelled(d, own)) for text, own in zip(texts, suffixes.tolist(), strict=True)]
    loss = round(float(torch.cat([one["losses"] for one in learned]).mean()), 5)
    return Outcome(after, texts, "after", restarts=[Restart(sum(after) / len(after), loss)])


def _suffixes(context: AttackContext, side: Side, target: Target, rows: Tensor) -> Data:
    """The suffixes of some prompts, and their losses."""
    from .learn import learn_tokens
    from .token_weights import learn_weights

    o, seed = context.options, context.settings.seed + int(rows[0])
    learn = learn_weights if o.budget == "unlearndiffatk" else learn_tokens
    if o.budget == "p4d":
        learn = partial(learn_tokens, decay=DECAY)
    with context.progress(f"suffixes, {side.name}", len(rows) * o.steps) as tick:
        ids, losses = learn(target, rows, steps=o.steps, lr=o.lr, seed=seed, callback=tick)
    return {"ids": ids, "losses": losses}


ATTACKS.add("token", Attack(
    "learn a suffix of real tokens for each prompt, by projected gradient (white box)", "learned token", run,
    options=TokenOptions, profiles={"small": {"tokens": 3}}, budgets=BUDGETS, prepare=prepare,
))  # fmt: skip
