"""The words under which a concept is unlearned: its name, what lies near it, anything at all in its place, and less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .slots import SLOT, Slotted, encode, slotted, tokens_of, vocabulary

SHARES = {  # of the kinds of condition, in the mixtures that `EraseSettings.conditions` names
    "mixture": {"name": 0.45, "near": 0.25, "arbitrary": 0.15, "generic": 0.15},
    "longer": {"name": 0.38, "longer": 0.15, "near": 0.21, "arbitrary": 0.13, "generic": 0.13},
}
TOWARDS = {"mixture": 1.0, "longer": 0.5}  # how far the concept's words go at most to others, which are to be kept
WIDTHS = (1, 2, 4, 8)  # how many vectors stand in the concept's place or behind the prompt
FARTHEST = 4.0  # arbitrary vectors are up to so many times as spread out as the vocabulary
NOISIEST = 1.5  # noise on the concept's own words, in standard deviations of the vocabulary
BLENDED = 4  # words in a random mixture


@dataclass(frozen=True)
class Place:
    """Where a concept stands in a prompt."""

    template: str  # with `SLOT` in the concept's place
    word: str  # what fills it
    generic: tuple[str, ...]  # what says less in its place

    def filled(self, word: str) -> str:
        """The template with a word in the concept's place."""
        return " ".join(self.template.replace(SLOT, word).split())


class Mixture:
    """Draws conditions for rows of concept latents (ours).

    A model that unlearned a concept under its name still draws it for a word embedding that an attacker learns. Kinds of
    condition, in `SHARES`, leave no way round:

    - name: the row's own prompt.
    - longer: the same with one to eight vectors behind it, words of the vocabulary or arbitrary ones. Not in "mixture".
    - near: the prompt with the word's embeddings under normal noise, or moved part of the way to other words.
    - arbitrary: one to eight vectors in the word's place, normal with the vocabulary's moments or mixtures of its words,
      both also stretched.
    - generic: the prompt with a generic word in the concept's place, or no prompt at all.
    """

    def __init__(self, denoiser: Denoiser, places: Sequence[Place], which: str = "mixture"):
        """`places`: the concept's place in the prompt of every row; `which`: of `SHARES`."""
        self.denoiser, self.known = denoiser, vocabulary(denoiser).cpu()  # (tokens, d)
        self.shares, self.towards = SHARES[which], TOWARDS[which]
        templates = [place.template for place in places]
        tokens = [tokens_of(denoiser, place.word) for place in places]
        self.words = [self.known[ids] for ids in tokens]  # rows of (own width, d)
        self.slots = {w: slotted(denoiser, templates, width=w) for w in {*WIDTHS, *map(len, tokens)}}
        named = [place.filled(place.word) for place in places]
        self.names = denoiser.encode(named)
        behind = WIDTHS if "longer" in self.shares else ()
        self.behind = {w: slotted(denoiser, [f"{prompt} {SLOT}" for prompt in named], width=w) for w in behind}
        every = dict.fromkeys(word for place in places for word in place.generic)
        less = {word: denoiser.encode([place.filled(word) for place in places]) for word in every}
        nothing = denoiser.unconditional(len(places))
        self.generic = [
            [*(less[word][row] for word in place.generic), nothing[row]] for row, place in enumerate(places)
        ]

    @torch.no_grad()
    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of some rows: (B, tokens, width) float32. Every draw comes from `generator`, on the CPU."""
        numbers, conditions = rows.tolist(), self.names[rows].clone()
        lots = torch.multinomial(torch.tensor(list(self.shares.values())), len(numbers), True, generator=generator)
        kinds = [list(self.shares)[lot] for lot in lots.tolist()]
        vectors: dict[int, Tensor] = {}  # place in the batch -> (own width, d)
        for at, (row, kind) in enumerate(zip(numbers, kinds, strict=True)):
            if kind == "generic":
                own = self.generic[row]
                conditions[at] = own[int(torch.randint(len(own), (1,), generator=generator))]
            elif kind == "longer":
                vectors[at] = longer(self.known, generator)
            elif kind == "near":
                vectors[at] = near(self.words[row], self.known, generator, most=self.towards)
            elif kind == "arbitrary":
                vectors[at] = arbitrary(self.known, generator)
        if vectors:
            where = {at: self.behind if kinds[at] == "longer" else self.slots for at in vectors}
            slots = [(where[at][len(own)], numbers[at]) for at, own in vectors.items()]
            prompts = Slotted(
                torch.stack([s.ids[row] for s, row in slots]), torch.stack([s.free[row] for s, row in slots])
            )
            placed = [vector.to(self.denoiser.device) for vector in vectors.values()]
            conditions[list(vectors)] = encode(self.denoiser, prompts, placed)
        return conditions


def longer(known: Tensor, generator: torch.Generator) -> Tensor:
    """One to eight rows of `known` (tokens, d), or as many `arbitrary` vectors."""
    if torch.rand(1, generator=generator) < 0.5:
        return arbitrary(known, generator)
    width = WIDTHS[int(torch.randint(len(WIDTHS), (1,), generator=generator))]
    return known[torch.randint(len(known), (width,), generator=generator)]


def near(word: Tensor, known: Tensor, generator: torch.Generator, *, most: float = 1.0) -> Tensor:
    """A word's embeddings (width, d) under normal noise, or part of the way to other words of `known` (tokens, d).

    Args:
        most: that part at most.
    """
    share = torch.rand(1, generator=generator)
    if torch.rand(1, generator=generator) < 0.5:
        return word + NOISIEST * share * known.std(0) * torch.randn(word.shape, generator=generator)
    other = known[torch.randint(len(known), (len(word),), generator=generator)]
    return word + most * share * (other - word)


def arbitrary(known: Tensor, generator: torch.Generator) -> Tensor:
    """One to eight vectors, normal with the moments of `known` (tokens, d) or mixtures of its rows, both stretched."""
    width = WIDTHS[int(torch.randint(len(WIDTHS), (1,), generator=generator))]
    stretch = FARTHEST ** torch.rand(1, generator=generator)
    if torch.rand(1, generator=generator) < 0.5:
        away = known.std(0) * torch.randn(width, known.shape[1], generator=generator)
    else:
        uniform = torch.rand(width, BLENDED, generator=generator).clamp_min(torch.finfo(torch.float32).tiny)
        lots = -uniform.log()  # exponential, so that their shares are uniform (Dirichlet's distribution with 1s)
        picked = known[torch.randint(len(known), (width, BLENDED), generator=generator)]  # (width, BLENDED, d)
        away = ((lots / lots.sum(1, keepdim=True))[..., None] * picked).sum(1) - known.mean(0)
    return known.mean(0) + stretch * away
