"""Ring-A-Bell: a concept vector in the text encoder, and a genetic search for a prompt of real words that means what it adds.

The search sees a text encoder alone, never a denoiser: its prompts are found once, and drawn with both models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..declaration import setting
from ..errors import UserError
from . import ATTACKS
from .base import Attack, Outcome

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ..concepts import Concept
    from ..diffusion.families.base import Encoder
    from .base import Data
    from .context import AttackContext, Side

    Encode = Callable[[Tensor], Tensor]  # tokens (N, width) -> their encodings (N, length, d)

PAIRS = 64  # of prompts with the concept and without it, behind the vector
TOGETHER = 64  # prompts that are encoded at a time
CROSSED, MUTATED = 0.5, 0.25  # shares of a population that are crossed, and in which a token changes; as published
BARS = ("words", "names", "none")
LETTERS = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class RingABellOptions:
    """How the prompts are searched."""

    searches: int = setting(8, "Prompts that are searched, each for a neutral prompt of its own.", least=1)
    strength: float = setting(
        3.0, "How much of the concept's vector a neutral prompt is given.", least=0, open_ends=True
    )
    tokens: int = setting(16, "Tokens of a searched prompt.", least=1)
    population: int = setting(200, "Prompts of a generation.", least=4)
    generations: int = setting(3000, "Generations of a search.", least=1)
    bar: str = setting(
        "words", "What no searched prompt may hold: the words of the erasure's prompts for the concept, all its names, or nothing.",
        choices=BARS,
    )  # fmt: skip


def prepare(context: AttackContext, original: Side) -> Data:
    """The searched prompts, as tokens of the first text encoder, with their distances to the targets before and after.

    Raises:
        UserError: a longer prompt than the encoder reads.
    """
    import torch

    o, s, concept, encoder = context.options, context.settings, context.concept, original.denoiser.family.encoders[0]
    if o.tokens > encoder.length - 2:
        raise UserError(f"--tokens {o.tokens} is more than the text encoder reads: at most {encoder.length - 2}")
    neutral = context.domain.evaluation_prompts(concept, seed=s.seed, count=2 * o.searches)["twin"]
    vector, known = concept_vector(encoder, concept, s.seed), alphabet(encoder, barred(concept, o.bar))
    encode, found = encoding(encoder, o.tokens), []
    with context.progress("searching prompts", o.searches * o.generations) as tick:
        for n, target in enumerate(encoded(encoder, neutral) + o.strength * vector):
            generator = torch.Generator().manual_seed(s.seed * 1000 + n)
            found.append(search(
                encode, target, known, width=o.tokens, population=o.population, generations=o.generations,
                generator=generator, tick=tick,
            ))  # fmt: skip
    return {
        name: torch.stack(own) for name, own in zip(("tokens", "first", "last"), zip(*found, strict=True), strict=True)
    }


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Draw the searched prompts in turn."""
    encoders = side.denoiser.family.encoders
    if len(encoders) > 1:
        context.remarks[
            f"--attack ring-a-bell searches with the first of {len(encoders)} text encoders; the others read what it finds"
        ] = None
    texts = [encoders[0].tokenizer.decode(own).strip() for own in data["tokens"].tolist()]
    rows = [replace(row, prompt=texts[row.number % len(texts)]) for row in context.rows]
    figures: dict[str, float | None] = {
        f"distance_{name}": round(float(data[name].mean()), 4) for name in ("first", "last")
    }
    return Outcome(context.hits(side, "after", rows=rows), [row.prompt for row in rows], "after", figures=figures)


# ---------------------------------------------------------------- what is searched for


def encoded(encoder: Encoder, prompts: Iterable[str]) -> Tensor:
    """Last hidden states of prompts: (N, length, d) float32."""
    return _hidden(encoder, encoder.ids(list(prompts)))


def _hidden(encoder: Encoder, ids: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        parts = [encoder.model(some.to(encoder.model.device)).last_hidden_state.float() for some in ids.split(TOGETHER)]
    return torch.cat(parts)


def concept_vector(encoder: Encoder, concept: Concept, seed: int) -> Tensor:
    """What the concept adds to an encoding, the mean over pairs of prompts with it and without: (length, d).

    Ring-A-Bell (Tsai et al. 2024, arXiv 2310.10012), eq. 4; the pairs are the erasure's.
    """
    from ..concepts import shuffled

    pairs = shuffled(concept.pairs, min(PAIRS, len(concept.pairs)), seed)
    named, neutral = (encoded(encoder, texts) for texts in zip(*pairs, strict=True))
    return (named - neutral).mean(0)


def barred(concept: Concept, bar: str) -> set[str]:
    """The beginnings of words that no searched prompt may have: those of the concept's words that no neutral prompt holds."""
    from ..concepts import called

    names = {"none": (), "words": concept.words, "names": called(concept)}[bar]
    neutral = " ".join(text for _, text in concept.pairs).lower()
    return {word for name in names for word in LETTERS.findall(name.lower())} - {*LETTERS.findall(neutral)}


def alphabet(encoder: Encoder, barred: set[str]) -> Tensor:
    """Tokens that are a whole word each, so that a prompt of them is read as it was searched; none begins as a barred word."""
    import torch

    tokenizer = encoder.tokenizer
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = [text.strip() for text in tokenizer.batch_decode([[one] for one in ids])]
    again = tokenizer(texts, add_special_tokens=False).input_ids
    found = [one for one, text, read in zip(ids, texts, again, strict=True) if read == [one] and text.isalpha()]
    spelled = dict(zip(ids, texts, strict=True))
    return torch.tensor([one for one in found if not spelled[one].lower().startswith(tuple(barred))])


def encoding(encoder: Encoder, width: int) -> Encode:
    """Encodings of prompts that are given as `width` tokens, with the first and the last that a prompt has."""
    from ..concepts import SLOT

    empty, free = encoder.slotted(SLOT, width)

    def encode(tokens: Tensor) -> Tensor:
        return _hidden(encoder, empty.repeat(len(tokens), 1).masked_scatter(free, tokens))

    return encode


# ---------------------------------------------------------------- the search


def search(
    encode: Encode, target: Tensor, alphabet: Tensor, *, width: int, population: int, generations: int,
    generator: Generator, tick: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The prompt whose encoding is nearest to a target, by a genetic search over its tokens.

    Ring-A-Bell's (Tsai et al. 2024, arXiv 2310.10012, eq. 6; rates as in the authors' code): the nearer half of a
    generation lives on, half of them are crossed with another, and in a quarter of all a token changes. Departs in
    that the nearest prompt met is never lost, and in that every token is a whole word.

    Args:
        target: (length, d).
        alphabet: (tokens,) that a prompt may hold.

    Returns:
        tokens (width,), and squared distances: the nearest of the random first generation's, the found prompt's.
    """
    import torch

    own = alphabet[torch.randint(len(alphabet), (population, width), generator=generator)]
    best, least, first = own[0], float("inf"), float("inf")
    for generation in range(generations):
        distances = (encode(own) - target).square().sum((1, 2)).cpu()
        order = distances.argsort(stable=True)
        if (nearest := float(distances[order[0]])) < least:
            best, least = own[order[0]].clone(), nearest
        first = least if generation == 0 else first
        own = mutated(crossed(own[order[: population // 2]], generator), alphabet, generator)
        tick(1)
    return best, torch.tensor(first), torch.tensor(least)


def crossed(parents: Tensor, generator: Generator) -> Tensor:
    """Parents (N, width), and of about half of them two children each: with another parent all tokens from a place on are swapped."""
    import torch

    count, width = parents.shape
    one = parents[torch.rand(count, generator=generator) < CROSSED]
    other = parents[torch.randint(count, (len(one),), generator=generator)]
    place = torch.randint(width, (len(one), 1), generator=generator)
    swapped = torch.arange(width) >= place
    return torch.cat([parents, torch.where(swapped, other, one), torch.where(swapped, one, other)])


def mutated(own: Tensor, alphabet: Tensor, generator: Generator) -> Tensor:
    """Prompts (N, width), in a quarter of which one token is another, any of the alphabet."""
    import torch

    changed = torch.rand(len(own), generator=generator) < MUTATED
    place = torch.randint(own.shape[1], (len(own),), generator=generator)
    drawn = alphabet[torch.randint(len(alphabet), (len(own),), generator=generator)]
    there = (torch.arange(own.shape[1]) == place[:, None]) & changed[:, None]
    return torch.where(there, drawn[:, None], own)


ATTACKS.add("ring-a-bell", Attack(
    "search prompts whose encoding has the concept's vector in it (text encoder alone)", "Ring-A-Bell", run,
    options=RingABellOptions, prepare=prepare,
    profiles={"small": {"tokens": 8, "population": 64, "generations": 60}},
))  # fmt: skip
