"""What attacks share that begin with pictures: which picture from which strength under which words, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..declaration import setting
from ..results.attack import KindRate
from .base import Outcome

if TYPE_CHECKING:
    from ..evaluation.prompts import Row, Start
    from .base import Data
    from .context import AttackContext, Side

EMPTY, OPEN, OTHER, OWN = "empty prompt", "open prompts", "other words", "own words"  # that pictures are drawn on under
NOISE_SEED = 80_000_000  # of the noise that is added, apart from what the pictures were drawn from


def strengths_setting(default: tuple[float, ...]) -> Any:
    """The setting of an attack that noises pictures: how far."""
    return setting(
        default, "Shares of the timesteps that pictures are noised to and drawn on from, each in (0, 1).",
        least=0, most=1, open_ends=True, listed=True, default_text=",".join(map(str, default)),
    )  # fmt: skip


@dataclass(frozen=True)
class Begun:
    """A picture to be drawn on from another, and the kinds that it counts to."""

    row: Row
    text: str  # for people: its prompt, and what it begins with
    kinds: tuple[str, ...]


def prepare(context: AttackContext, original: Side) -> Data:
    """What the original draws for the prompts that name the concept."""
    prompts, seeds = [row.prompt for row in context.rows], [row.seed for row in context.rows]
    return {"latents": context.generated(original, "pictures of the concept", prompts, seeds)}


def anchored(context: AttackContext) -> list[str]:
    """The prompts that name the concept, with the anchor in its place."""
    from ..concepts import SLOT

    return [slotted.replace(SLOT, context.concept.anchor) for slotted, _ in context.named]


def worded(context: AttackContext, words: Sequence[str]) -> list[tuple[str, str]]:
    """(kind of words, prompt) for every picture, the kinds in turn; other words are of what the evaluation retains."""
    concept, count, seed = context.concept, len(context.rows), context.settings.seed
    vague = [text for text in context.domain.open_prompts(concept, seed=seed, count=3 * count) if text]
    evaluated = context.domain.evaluation_prompts(concept, seed=seed, count=count)
    texts = {EMPTY: [""], OPEN: vague, OTHER: evaluated["retain"] or evaluated["caption"]}

    def prompt(n: int, kind: str) -> str:
        return context.rows[n].prompt if kind == OWN else texts[kind][n // len(words) % len(texts[kind])]

    kinds = [words[n % len(words)] for n in range(count)]
    return [(kind, prompt(n, kind)) for n, kind in enumerate(kinds)]


def in_turn(count: int, of: Sequence[float]) -> list[tuple[int, float]]:
    """(picture, strength) of every drawing; the first ones have every picture once, at the strengths in turn."""
    return [(n, of[(n + shift) % len(of)]) for shift in range(len(of)) for n in range(count)]


def begun(context: AttackContext, number: int, prompt: str, start: Start, kinds: Sequence[str]) -> Begun:
    """The drawing of a number, with noise of its own."""
    from ..evaluation.prompts import Row

    row = Row(number, prompt, NOISE_SEED + context.settings.seed * 100_000 + number, start=start)
    return Begun(row, f"{prompt or EMPTY}, from {kinds[0]}", tuple(kinds))


def outcome(context: AttackContext, side: Side, drawings: Sequence[Begun]) -> Outcome:
    """Draw all; rates are of those in which the original shows the concept, and those of kinds of all of the kind.

    Where the original shows it in none, rates are of all, and the attack is broken.
    """
    hits, original = context.hits(side, "after", rows=[one.row for one in drawings]), context.outcomes.get("original")
    theirs = original.hits if original else hits
    kinds = rates(drawings, hits, theirs if original else None)
    return Outcome(hits, [one.text for one in drawings], "after", counts=theirs if any(theirs) else None, kinds=kinds)


def rates(drawings: Sequence[Begun], hits: list[bool], theirs: list[bool] | None) -> dict[str, KindRate]:
    """The rate of each kind, beside the original's; in the order in which their places in `Begun.kinds` come."""
    numbers: dict[str, list[int]] = {}
    for place in range(max(len(one.kinds) for one in drawings)):
        for at, one in enumerate(drawings):
            numbers.setdefault(one.kinds[place], []).append(at)

    def rate(numbers: list[int]) -> KindRate:
        original = None if theirs is None else KindRate.of([theirs[n] for n in numbers]).asr
        return KindRate.of([hits[n] for n in numbers], original)

    return {kind: rate(own) for kind, own in numbers.items()}
