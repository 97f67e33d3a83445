"""Prompts with a slot for vectors that are no word's, such as an attack puts where a concept's name was.

Every text encoder has the slot. Encoders that share a vocabulary are a group: SDXL has one, SD 3 two (the CLIPs, T5). A
vector is what all encoders look up for a token, side by side: d numbers, in the order of the groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .denoiser import Denoiser


@dataclass(frozen=True)
class Slotted:
    """Tokenised prompts with a slot each."""

    ids: Tensor  # (B, ids) int64, every encoder's side by side; in the slots any token but the last
    free: Tensor  # (B, ids) bool, the slots, every encoder's

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Slotted:
        return Slotted(self.ids[rows], self.free[rows])


def slotted(denoiser: Denoiser, prompts: Sequence[str], *, width: int | Sequence[int]) -> Slotted:
    """Tokenise prompts, each with a slot at `SLOT`; what does not fit is cut off behind it.

    Args:
        width: vectors in a slot, in all groups of encoders or in each.
    """
    groups = denoiser.family.groups
    widths = [width] * len(groups) if isinstance(width, int) else width
    own = [(encoder, own) for own, group in zip(widths, groups, strict=True) for encoder in group]
    rows = [[encoder.slotted(prompt, width) for encoder, width in own] for prompt in prompts]
    ids, free = (torch.stack([torch.cat([one[what] for one in row]) for row in rows]) for what in (0, 1))
    return Slotted(ids.to(denoiser.device), free.to(denoiser.device))


def encode(denoiser: Denoiser, prompts: Slotted, vectors: Tensor | Sequence[Tensor]) -> Tensor:
    """Conditions of slotted prompts with `vectors` in their slots, differentiable in the vectors.

    Args:
        vectors: (width, d) for all prompts alike, or (B, width, d), or B times (own width, d), one set each. Of a group
            with fewer places than `width` the last vectors are not read.

    Returns:
        (B, tokens, width of a condition) float32.
    """
    if not isinstance(vectors, Tensor):
        vectors = pad_sequence(list(vectors), batch_first=True)
    elif vectors.ndim == 2:
        vectors = vectors.expand(len(prompts), -1, -1)
    with denoiser.family.instead(prompts.free, vectors):
        return denoiser.family.condition(prompts.ids)


def side_by_side(vectors: Sequence[Tensor]) -> Tensor:
    """Every group's vectors, (..., own width, its d), as `encode` has them: (..., greatest width, d), filled up with zeros."""
    width = max(own.shape[-2] for own in vectors)
    return torch.cat([F.pad(own, (0, 0, 0, width - own.shape[-2])) for own in vectors], -1)


def by_group(denoiser: Denoiser, vectors: Tensor) -> tuple[Tensor, ...]:
    """Views of every group's own numbers in vectors (..., d)."""
    return vectors.split([sum(encoder.width for encoder in group) for group in denoiser.family.groups], -1)


def width_of(denoiser: Denoiser, prompts: Slotted) -> int:
    """The most vectors that an encoder's slot has."""
    return max(int(own.sum(1).max()) for own in denoiser.family.apart(prompts.free))


def vocabularies(denoiser: Denoiser) -> list[Tensor]:
    """The token embeddings that vectors take the place of, by group: (tokens, its d) float32 each, without gradient."""
    return denoiser.family.vocabularies()


def looked_up(tables: Sequence[Tensor], ids: Iterable[Any]) -> list[Tensor]:
    """Rows of every group's table, such as the embeddings of tokens (own width, its d)."""
    return [table[own] for table, own in zip(tables, ids, strict=True)]


def tokens_of(denoiser: Denoiser, text: str) -> list[list[int]]:
    """The tokens of a text in every group's vocabulary, without the first and the last that a prompt has."""
    return [group[0].tokenizer(text, add_special_tokens=False).input_ids for group in denoiser.family.groups]


def plain_tokens(denoiser: Denoiser) -> list[list[int]]:
    """Every group's tokens but the special ones."""
    tokenizers = [group[0].tokenizer for group in denoiser.family.groups]
    return [sorted(set(own.get_vocab().values()) - set(own.all_special_ids)) for own in tokenizers]


def spelled(denoiser: Denoiser, ids: Sequence[Sequence[int]]) -> str:
    """Tokens (width, groups) as text, the groups' with | between: a pipeline takes a prompt for each encoder."""
    pairs = zip(denoiser.family.groups, zip(*ids, strict=True), strict=True)
    return " | ".join(group[0].tokenizer.decode(list(own)).strip() for group, own in pairs)
