"""Prompts with a slot for vectors that are no word's, such as an attack puts where a concept's name was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser


@dataclass(frozen=True)
class Slotted:
    """Tokenised prompts with a slot of `width` vectors each."""

    ids: Tensor  # (B, ids) int64, every encoder's side by side; in the slots any token but the last
    free: Tensor  # (B, ids) bool, the slots; `width` for each encoder that has one

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Slotted:
        return Slotted(self.ids[rows], self.free[rows])


def slotted(denoiser: Denoiser, prompts: Sequence[str], *, width: int) -> Slotted:
    """Tokenise prompts, each with a slot of `width` vectors at `SLOT`; what does not fit is cut off behind it."""
    rows = [[encoder.slotted(prompt, width) for encoder in denoiser.family.encoders] for prompt in prompts]
    ids, free = (torch.stack([torch.cat([one[what] for one in row]) for row in rows]) for what in (0, 1))
    return Slotted(ids.to(denoiser.device), free.to(denoiser.device))


def encode(denoiser: Denoiser, prompts: Slotted, vectors: Tensor | Sequence[Tensor]) -> Tensor:
    """Conditions of slotted prompts with `vectors` in their slots, differentiable in the vectors.

    Args:
        vectors: (width, d) for all prompts alike, or (B, width, d), or B times (own width, d), one set each; d is
            `vocabulary`'s.

    Returns:
        (B, tokens, width of a condition) float32.
    """
    if not isinstance(vectors, Tensor):
        vectors = torch.cat(list(vectors))
    elif vectors.ndim == 2:
        vectors = vectors.expand(len(prompts), -1, -1)
    with denoiser.family.instead(prompts.free, vectors):
        return denoiser.family.condition(prompts.ids)


def vocabulary(denoiser: Denoiser) -> Tensor:
    """The token embeddings that vectors take the place of: (tokens, d) float32, without gradient."""
    return denoiser.family.vocabulary()


def tokens_of(denoiser: Denoiser, text: str) -> list[int]:
    """The tokens of a text in this vocabulary, without the first and the last that a prompt has."""
    return denoiser.family.slots[0].tokenizer(text, add_special_tokens=False).input_ids


def plain_tokens(denoiser: Denoiser) -> list[int]:
    """The vocabulary's tokens but the special ones."""
    tokenizer = denoiser.family.slots[0].tokenizer
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))


def spelled(denoiser: Denoiser, ids: Sequence[int]) -> str:
    """Tokens as text."""
    return denoiser.family.slots[0].tokenizer.decode(list(ids)).strip()
