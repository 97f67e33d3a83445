"""Prompts with a place for vectors that are no word's: what an attack may put where a concept's name stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser

SLOT = "{}"  # where the vectors go; at the end of a prompt that has none


@dataclass(frozen=True)
class Slotted:
    """Tokenised prompts with `width` free places each."""

    ids: Tensor  # (B, tokens) int64; any token stands in the free places
    free: Tensor  # (B, tokens) bool

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Slotted:
        return Slotted(self.ids[rows], self.free[rows])


def slotted(denoiser: Denoiser, prompts: Sequence[str], *, width: int) -> Slotted:
    """Tokenise prompts, each with `width` places where `SLOT` stands; what does not fit is cut off behind them."""
    tokenizer = denoiser.pipeline.tokenizer
    length, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = torch.full((len(prompts), length), pad)  # (B, tokens)
    free = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        before, _, after = prompt.partition(SLOT)
        head, tail = (tokenizer(part, add_special_tokens=False).input_ids for part in (before.strip(), after.strip()))
        head = head[: length - 2 - width]
        inside = [*head, *[last] * width, *tail][: length - 2]
        rows[row, : len(inside) + 2] = torch.tensor([first, *inside, last])
        free[row, 1 + len(head) : 1 + len(head) + width] = True
    return Slotted(rows.to(denoiser.device), free.to(denoiser.device))


def encode(denoiser: Denoiser, prompts: Slotted, vectors: Tensor | Sequence[Tensor]) -> Tensor:
    """Conditions of slotted prompts with `vectors` in their places, differentiable in the vectors.

    Args:
        vectors: (width, d) for all prompts alike, or (B, width, d), or B times (own width, d), one set each; d is the
            token embeddings' width.

    Returns:
        (B, tokens, width of the text encoder) float32.
    """
    if not isinstance(vectors, Tensor):
        vectors = torch.cat(list(vectors))
    elif vectors.ndim == 2:
        vectors = vectors.expand(len(prompts), -1, -1)
    with _instead(denoiser, prompts.free, vectors):
        return denoiser.pipeline.text_encoder(prompts.ids)[0].float()


def vocabulary(denoiser: Denoiser) -> Tensor:
    """The token embeddings: (tokens, d) float32, without gradient."""
    return denoiser.pipeline.text_encoder.get_input_embeddings().weight.detach().float()


def spelled(denoiser: Denoiser, ids: Sequence[int]) -> str:
    """Tokens as text."""
    return denoiser.pipeline.tokenizer.decode(list(ids)).strip()


@contextmanager
def _instead(denoiser: Denoiser, free: Tensor, vectors: Tensor) -> Iterator[None]:
    """Put vectors in the free places of what the token embedding gives, for as long as the block lasts."""
    module = denoiser.pipeline.text_encoder.get_input_embeddings()

    def put(module, ids, embedded: Tensor) -> Tensor:
        return embedded.masked_scatter(free[..., None], vectors.to(embedded.dtype))

    handle = module.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
