"""The attack that needs no gradient: prompts for the concept in words that the erasure never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..results.attack import KindRate
from . import ATTACKS
from .base import Attack, Outcome

if TYPE_CHECKING:
    import numpy as np

    from ..concepts import Concept
    from .base import Data
    from .context import AttackContext, Side

KINDS = ("synonym", "order", "misspelling")
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # rows of a QWERTY keyboard, each shifted half a key to the right
TRIES = 50  # draws for a prompt that is new, before one is used twice


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Draw paraphrases, and count each kind by itself, beside the original's count."""
    prompts = paraphrases(context.concept, count=context.settings.count, seed=context.settings.seed)
    rows = [replace(row, prompt=text) for row, (_, text) in zip(context.rows, prompts, strict=True)]
    after = context.hits(side, "after", rows=rows)
    theirs = context.outcomes["original"].kinds if side.name == "model" else {}
    kinds = {}
    for kind in KINDS:
        if own := [hit for hit, (of, _) in zip(after, prompts, strict=True) if of == kind]:
            kinds[kind] = KindRate(len(own), sum(own) / len(own), theirs[kind].asr if theirs else None)
    return Outcome(after, [text for _, text in prompts], "after", kinds=kinds)


def paraphrases(concept: Concept, *, count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts for a concept that are none of its erasure's: the kinds take turns, so their shares are equal.

    - synonym: a template filled with one of the concept's paraphrases.
    - order: a filled template's words in another order, the concept's own words kept together; commas are dropped.
    - misspelling: a template filled with the concept's own name after one slip of the keyboard.

    A kind that the concept cannot have is left out. No prompt is one of the erasure's own; one is used twice only where
    the concept has too few. Deterministic in `seed`; the first prompts do not depend on `count`.

    Returns:
        (kind, prompt), `count` of them.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    longer = [template for template in concept.templates if len(_pieces(template)) > 1]
    possible = {"synonym": concept.paraphrases, "order": longer, "misspelling": concept.templates}
    makers: dict[str, Callable[[], str]] = {
        "synonym": lambda: _pick(rng, concept.templates).format(_pick(rng, concept.paraphrases)),
        "order": lambda: _reorder(rng, _pick(rng, longer), _pick(rng, concept.words)),
        "misspelling": lambda: _pick(rng, concept.templates).format(misspell(concept.words[0], rng)),
    }
    kinds = [kind for kind in KINDS if possible[kind]]
    seen = {forget for forget, _ in concept.pairs}
    return [(kind, _new(makers[kind], seen)) for kind in (kinds[i % len(kinds)] for i in range(count))]


def _new(make: Callable[[], str], seen: set[str]) -> str:
    """A prompt that is not in `seen`, which it joins; after `TRIES` draws any."""
    prompt = next((p for p in (make() for _ in range(TRIES)) if p not in seen), None) or make()
    seen.add(prompt)
    return prompt


def _pick(rng: np.random.Generator, among) -> str:
    return among[int(rng.integers(len(among)))]


def _pieces(template: str) -> list[str]:
    return template.replace(",", " ").split()


def _reorder(rng: np.random.Generator, template: str, word: str) -> str:
    """A filled template with its words in another order, `word` in one piece."""
    pieces = [piece.replace("{}", word) for piece in _pieces(template)]
    order = list(rng.permutation(len(pieces)))
    if [pieces[i] for i in order] == pieces:
        order = [*order[-1:], *order[:-1]]
    return " ".join(pieces[i] for i in order)


def misspell(name: str, rng: np.random.Generator) -> str:
    """A name with one slip: two neighbours swapped, a letter doubled or dropped, or the key beside it.

    The slip falls on one of the name's words of three letters or more, where it has any. The result is neither the name
    nor puts a word of the embedded world in its place.
    """
    parts = name.split()
    long = [i for i, part in enumerate(parts) if len(part) >= 3]
    at = int(rng.choice(long or range(len(parts))))
    return " ".join([*parts[:at], _pick(rng, _pick(rng, _slips(parts[at]))), *parts[at + 1 :]])


def _slips(word: str) -> list[list[str]]:
    """The spellings one slip away, by kind of slip; a kind that the word cannot have is left out."""
    from ..tiny import world

    cuts = [(word[:i], word[i], word[i + 1 :]) for i in range(len(word))]
    swapped = [before + after[0] + letter + after[1:] for before, letter, after in cuts if after]
    doubled = [before + 2 * letter + after for before, letter, after in cuts]
    dropped = [before + after for before, _, after in cuts if before or after]
    replaced = [before + key + after for before, letter, after in cuts for key in _beside(letter)]
    taken = {word.lower(), *world.words()}
    kinds = [[slip for slip in slips if slip.lower() not in taken] for slips in (swapped, doubled, dropped, replaced)]
    return [slips for slips in kinds if slips]


def _beside(letter: str) -> list[str]:
    """The keys that touch a letter's key, in its case; none for what is no letter of the keyboard."""
    at = next(((r, row.index(letter.lower())) for r, row in enumerate(KEYBOARD) if letter.lower() in row), None)
    if at is None:
        return []
    steps = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
    places = [(at[0] + down, at[1] + right) for down, right in steps]
    keys = [KEYBOARD[r][c] for r, c in places if 0 <= r < len(KEYBOARD) and 0 <= c < len(KEYBOARD[r])]
    return [key.upper() if letter.isupper() else key for key in keys]


ATTACKS.add("paraphrase", Attack("synonyms, other word orders, misspellings", "paraphrases", run))
