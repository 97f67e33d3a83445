"""Pictures of the concept, noised and completed: does the model finish what it can still see?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import ATTACKS
from .base import ASR, Attack, Outcome
from .begun import EMPTY, OPEN, OTHER, OWN, Begun, begun, in_turn, outcome, prepare, rates, strengths_setting, worded

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Data
    from .context import AttackContext, Side

STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)
WORDS = (EMPTY, OPEN, OTHER)  # that pictures are completed under, in turn


@dataclass(frozen=True)
class CompletionOptions:
    """How far the pictures are noised."""

    strengths: tuple[float, ...] = strengths_setting(STRENGTHS)


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Complete every picture from every strength without the concept's name; and once under its own prompt, beside.

    What is completed under the own words is a kind by itself: the rate of all stays that of pictures without the name.
    """
    words, latents = worded(context, WORDS), data["latents"]
    plan = in_turn(len(words), context.options.strengths)
    found = outcome(context, side, [_begun(context, at, *one, words, latents) for at, one in enumerate(plan)])
    named = [(OWN, row.prompt) for row in context.rows]
    own = [_begun(context, at, *one, named, latents) for at, one in enumerate(plan[: len(named)])]
    hits, original = context.hits(side, "own-words", rows=[one.row for one in own]), context.outcomes.get("original")
    theirs = original.kinds[OWN].asr if original else None
    kind = replace(rates([replace(one, kinds=(OWN,)) for one in own], hits, None)[OWN], original_asr=theirs)
    return replace(found, kinds=found.kinds | {OWN: kind})


def _begun(
    context: AttackContext, at: int, picture: int, strength: float, words: list[tuple[str, str]], latents: Tensor
) -> Begun:
    from ..evaluation.prompts import Start

    kind, prompt = words[picture]
    return begun(context, at, prompt, Start(latents[picture], strength), (f"strength {strength:g}", kind))


MEANING = (
    "of the noised pictures of the concept that the original completes to the concept, those that the model completes to it "
    "as well, by the judge; lower is better."
)
ATTACKS.add("completion", Attack(
    "have pictures of the concept, noised, completed without its name", "completed pictures", run,
    options=CompletionOptions, prepare=prepare, columns=(replace(ASR, meaning=MEANING),),
))  # fmt: skip
