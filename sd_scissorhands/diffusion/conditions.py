"""Random conditions under which a concept is unlearned: its name, words near it, arbitrary vectors, generic words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import SLOT
from ..methods.samples import sent
from .denoiser import Denoiser
from .slots import Slotted, encode, looked_up, side_by_side, slotted, tokens_of, vocabularies

SHARES = {"name": 0.45, "near": 0.25, "arbitrary": 0.15, "generic": 0.15}  # of the kinds of condition
WIDTHS = (1, 2, 4, 8)  # how many arbitrary vectors fill the concept's slot
FARTHEST = 4.0  # arbitrary vectors are up to so many times as spread out as the vocabulary
NOISIEST = 1.5  # noise on the concept's own words, in standard deviations of the vocabulary
BLENDED = 4  # words in a random mixture


@dataclass(frozen=True)
class ConceptSlot:
    """A prompt with the concept's slot open, and what may fill it."""

    template: str  # with `SLOT` where the concept goes
    word: str  # the concept's
    generic: tuple[str, ...]  # less specific words

    def filled(self, word: str) -> str:
        """The prompt with a word in the slot."""
        return " ".join(self.template.replace(SLOT, word).split())


class Mixture:
    """Draws conditions for rows of concept latents (ours).

    A model that unlearned a concept under its name still draws it for a word embedding that an attacker learns. Kinds of
    condition, in `SHARES`, leave no way round:

    - name: the row's own prompt.
    - near: the prompt with the word's embeddings under normal noise, or moved part of the way to other words.
    - arbitrary: one to eight vectors in the slot, normal with the vocabulary's moments or mixtures of its words, both
      also stretched.
    - generic: the prompt with a generic word in the slot, or no prompt at all.

    Every text encoder's slot is filled. Groups with vocabularies of their own draw one after another, each from its own
    word and its own moments, and as many arbitrary vectors.
    """

    def __init__(self, denoiser: Denoiser, slots: Sequence[ConceptSlot]):
        """`slots`: the prompt of every row."""
        self.denoiser, self.known = denoiser, [known.cpu() for known in vocabularies(denoiser)]  # (tokens, d) a group
        tokens = [tokens_of(denoiser, slot.word) for slot in slots]
        self.words = [looked_up(self.known, own) for own in tokens]  # of each row, (own width, d) a group
        templates, alike = [slot.template for slot in slots], {(width,) * len(self.known) for width in WIDTHS}
        widths = alike | {tuple(map(len, word)) for word in self.words}
        self.slotted = {own: slotted(denoiser, templates, width=own) for own in widths}
        self.names = denoiser.encode([slot.filled(slot.word) for slot in slots])
        every = dict.fromkeys(word for slot in slots for word in slot.generic)
        less = {word: denoiser.encode([slot.filled(word) for slot in slots]) for word in every}
        nothing = denoiser.unconditional(len(slots))
        self.generic = [[*(less[word][row] for word in slot.generic), nothing[row]] for row, slot in enumerate(slots)]

    @torch.no_grad()
    def draw(self, rows: Tensor, generator: torch.Generator, only: str | None = None) -> Tensor:
        """Conditions of some rows: (B, tokens, width) float32. Every draw comes from `generator`, on the CPU.

        Args:
            rows: (B,), best on the CPU, where reading them waits for nothing.
            only: kind of all of them; None: by `SHARES`.
        """
        device = self.names.device
        numbers, conditions = rows.tolist(), self.names[sent(rows, device)]
        lots = torch.multinomial(torch.tensor(list(SHARES.values())), len(numbers), True, generator=generator)
        kinds = [only or list(SHARES)[lot] for lot in lots.tolist()]
        vectors: dict[int, list[Tensor]] = {}  # position in the batch -> (own width, d) a group
        for at, (row, kind) in enumerate(zip(numbers, kinds, strict=True)):
            if kind == "generic":
                own = self.generic[row]
                conditions[at] = own[int(torch.randint(len(own), (1,), generator=generator))]
            elif kind == "near":
                vectors[at] = [near(*own, generator) for own in zip(self.words[row], self.known, strict=True)]
            elif kind == "arbitrary":
                vectors[at] = arbitrary(self.known, generator)
        if vectors:
            prompts = [(self.slotted[tuple(map(len, own))], numbers[at]) for at, own in vectors.items()]
            ids, free = (torch.stack([getattr(s, name)[row] for s, row in prompts]) for name in ("ids", "free"))
            filling = [sent(side_by_side(own), device) for own in vectors.values()]
            places = sent(torch.tensor(list(vectors)), device)
            conditions[places] = encode(self.denoiser, Slotted(ids, free), filling)
        return conditions


def near(word: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """A word's embeddings (width, d) under normal noise, or part of the way to other words of `known` (tokens, d)."""
    share = torch.rand(1, generator=generator)
    if torch.rand(1, generator=generator) < 0.5:
        return word + NOISIEST * share * known.std(0) * torch.randn(word.shape, generator=generator)
    other = known[torch.randint(len(known), (len(word),), generator=generator)]
    return word + share * (other - word)


def arbitrary(known: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """One to eight vectors of every group, as many of each; `known`: the groups' token embeddings, (tokens, d) each."""
    width = WIDTHS[int(torch.randint(len(WIDTHS), (1,), generator=generator))]
    return [_stretched(own, width, generator) for own in known]


def _stretched(known: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Vectors (width, d), normal with the moments of `known` (tokens, d) or mixtures of its rows, both stretched."""
    stretch = FARTHEST ** torch.rand(1, generator=generator)
    if torch.rand(1, generator=generator) < 0.5:
        away = known.std(0) * torch.randn(width, known.shape[1], generator=generator)
    else:
        uniform = torch.rand(width, BLENDED, generator=generator).clamp_min(torch.finfo(torch.float32).tiny)
        lots = -uniform.log()  # exponential, so that their shares are uniform (Dirichlet's distribution with 1s)
        picked = known[torch.randint(len(known), (width, BLENDED), generator=generator)]  # (width, BLENDED, d)
        away = ((lots / lots.sum(1, keepdim=True))[..., None] * picked).sum(1) - known.mean(0)
    return known.mean(0) + stretch * away
