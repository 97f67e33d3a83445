"""Pictures of the concept, noised and completed: does the model finish what it can still see?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING

from ..declaration import setting
from ..results.attack import KindRate
from . import ATTACKS
from .base import ASR, Attack, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.prompts import Row
    from .base import Data
    from .context import AttackContext, Side

STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)
NOISE_SEED = 80_000_000  # of the noise that is added, apart from what the pictures were drawn from
WORDS = ("empty prompt", "open prompts", "other words")  # that pictures are completed under, in turn


@dataclass(frozen=True)
class CompletionOptions:
    """How far the pictures are noised."""

    strengths: tuple[float, ...] = setting(
        STRENGTHS, "Shares of the timesteps that pictures of the concept are noised to and completed from, each in (0, 1).",
        least=0, most=1, open_ends=True, listed=True, default_text=",".join(map(str, STRENGTHS)),
    )  # fmt: skip


def prepare(context: AttackContext, original: Side) -> Data:
    """What the original draws for the prompts that name the concept."""
    prompts, seeds = [row.prompt for row in context.rows], [row.seed for row in context.rows]
    return {"latents": context.generated(original, "pictures of the concept", prompts, seeds)}


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Complete every picture from every strength; rates are of those in which the original completes the concept.

    Where there is none, they are of all, and the attack is broken.
    """
    plan = _plan(len(context.rows), context.options.strengths)
    rows = _rows(context, plan, data["latents"])
    hits, original = context.hits(side, "after", rows=rows), context.outcomes.get("original")
    theirs, kinds = original.hits if original else hits, {}
    for kind, own in _kinds(plan).items():
        kinds[kind] = KindRate(len(own), _share(hits, own), _share(theirs, own) if original else None)
    texts = [
        f"{row.prompt or WORDS[0]}, from strength {strength:g}" for row, (_, strength) in zip(rows, plan, strict=True)
    ]
    return Outcome(hits, texts, "after", counts=theirs if any(theirs) else None, kinds=kinds)


def _plan(count: int, strengths: Sequence[float]) -> list[tuple[int, float]]:
    """(picture, strength) of every completion; the first ones have every picture once, at the strengths in turn."""
    shifts = range(len(strengths))
    return [(n, strengths[(n + shift) % len(strengths)]) for shift in shifts for n in range(count)]


def _rows(context: AttackContext, plan: list[tuple[int, float]], latents: Tensor) -> list[Row]:
    from ..evaluation.prompts import Row, Start

    seed, prompts = NOISE_SEED + context.settings.seed * 100_000, _prompts(context)
    return [Row(at, prompts[n], seed + at, start=Start(latents[n], strength)) for at, (n, strength) in enumerate(plan)]


def _prompts(context: AttackContext) -> list[str]:
    """A prompt a picture, of the kinds of `WORDS` in turn; other words are of what the evaluation retains."""
    concept, count, seed = context.concept, len(context.rows), context.settings.seed
    vague = [text for text in context.domain.open_prompts(concept, seed=seed, count=3 * count) if text]
    evaluated = context.domain.evaluation_prompts(concept, seed=seed, count=count)
    kinds = ([""], vague, evaluated["retain"] or evaluated["caption"])
    return [kind[n // 3 % len(kind)] for n, kind in zip(range(count), cycle(kinds), strict=False)]


def _kinds(plan: list[tuple[int, float]]) -> dict[str, list[int]]:
    """The completions by strength, and by kind of prompt."""
    found: dict[str, list[int]] = {}
    for at, (_, strength) in enumerate(plan):
        found.setdefault(f"strength {strength:g}", []).append(at)
    for at, (n, _) in enumerate(plan):
        found.setdefault(WORDS[n % len(WORDS)], []).append(at)
    return found


def _share(hits: list[bool], numbers: list[int]) -> float:
    return round(sum(hits[n] for n in numbers) / len(numbers), 4)


MEANING = (
    "of the noised pictures of the concept that the original completes to the concept, those that the model completes to it "
    "as well, by the judge; lower is better."
)
ATTACKS.add("completion", Attack(
    "have pictures of the concept, noised, completed without its name", "completed pictures", run,
    options=CompletionOptions, prepare=prepare, columns=(replace(ASR, meaning=MEANING),),
))  # fmt: skip
