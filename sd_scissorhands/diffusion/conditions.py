"""The words under which a concept is unlearned: its name, what lies near it, anything at all in its place, and less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .words import SLOT, Slotted, encode, slotted, vocabulary

SHARES = {"name": 0.45, "near": 0.25, "arbitrary": 0.15, "generic": 0.15}
WIDTHS = (1, 2, 4, 8)  # how many arbitrary vectors stand in the concept's place
FARTHEST = 4.0  # arbitrary vectors are up to so many times as spread out as the vocabulary
NOISIEST = 1.5  # noise on the concept's own words, in standard deviations of the vocabulary
BLENDED = 4  # words in a random mixture


class Mixture:
    """Draws conditions for rows of concept latents (ours).

    A model that unlearned a concept under its name still draws it for a word embedding that an attacker learns. Four kinds
    of condition, in `SHARES`, leave no way round:

    - name: the row's own prompt.
    - near: the prompt with the word's embeddings under normal noise, or moved part of the way to other words.
    - arbitrary: one to eight vectors in the word's place, normal with the vocabulary's moments or mixtures of its words,
      both also stretched.
    - generic: the prompt with a generic word in the concept's place, or no prompt at all.
    """

    def __init__(self, denoiser: Denoiser, places: Sequence[tuple[str, str]], generic: Sequence[str]):
        """`places` are (template with `SLOT`, word), one a row; `generic` the words that say less."""
        self.denoiser, self.known = denoiser, vocabulary(denoiser).cpu()  # (tokens, d)
        templates = [template for template, _ in places]
        tokens = [denoiser.pipeline.tokenizer(word, add_special_tokens=False).input_ids for _, word in places]
        self.words = [self.known[ids] for ids in tokens]  # rows of (own width, d)
        self.slots = {w: slotted(denoiser, templates, width=w) for w in {*WIDTHS, *map(len, tokens)}}
        self.names = denoiser.encode([template.replace(SLOT, word) for template, word in places])
        less = [[" ".join(template.replace(SLOT, word).split()) for template in templates] for word in generic]
        self.generic = [denoiser.encode(prompts) for prompts in [*less, [""] * len(templates)]]

    @torch.no_grad()
    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of some rows: (B, tokens, width) float32. Every draw comes from `generator`, on the CPU."""
        numbers, conditions = rows.tolist(), self.names[rows].clone()
        lots = torch.multinomial(torch.tensor(list(SHARES.values())), len(numbers), True, generator=generator)
        kinds = [list(SHARES)[lot] for lot in lots.tolist()]
        vectors: dict[int, Tensor] = {}  # place in the batch -> (own width, d)
        for at, (row, kind) in enumerate(zip(numbers, kinds, strict=True)):
            if kind == "generic":
                conditions[at] = self.generic[int(torch.randint(len(self.generic), (1,), generator=generator))][row]
            elif kind != "name":
                vectors[at] = (
                    near(self.words[row], self.known, generator) if kind == "near" else arbitrary(self.known, generator)
                )
        if vectors:
            slots = [(self.slots[len(own)], numbers[at]) for at, own in vectors.items()]
            prompts = Slotted(
                torch.stack([s.ids[row] for s, row in slots]), torch.stack([s.free[row] for s, row in slots])
            )
            own = [vector.to(self.denoiser.device) for vector in vectors.values()]
            conditions[list(vectors)] = encode(self.denoiser, prompts, own)
        return conditions


def near(word: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """A word's embeddings (width, d) under normal noise, or part of the way to other words of `known` (tokens, d)."""
    share = torch.rand(1, generator=generator)
    if torch.rand(1, generator=generator) < 0.5:
        return word + NOISIEST * share * known.std(0) * torch.randn(word.shape, generator=generator)
    other = known[torch.randint(len(known), (len(word),), generator=generator)]
    return word + share * (other - word)


def arbitrary(known: Tensor, generator: torch.Generator) -> Tensor:
    """One to eight vectors, normal with the moments of `known` (tokens, d) or mixtures of its rows, both stretched."""
    width = WIDTHS[int(torch.randint(len(WIDTHS), (1,), generator=generator))]
    stretch = FARTHEST ** torch.rand(1, generator=generator)
    if torch.rand(1, generator=generator) < 0.5:
        away = known.std(0) * torch.randn(width, known.shape[1], generator=generator)
    else:
        lots = -torch.rand(
            width, BLENDED, generator=generator
        ).log()  # exponential: their shares are uniform (Dirichlet 1)
        picked = known[torch.randint(len(known), (width, BLENDED), generator=generator)]  # (width, BLENDED, d)
        away = ((lots / lots.sum(1, keepdim=True))[..., None] * picked).sum(1) - known.mean(0)
    return known.mean(0) + stretch * away
