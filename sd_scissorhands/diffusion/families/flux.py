"""FLUX.1: a transformer with flow matching over packed latents, a T5, and a CLIP's pooled embedding."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..noise_process import Process
from .base import Encoder, with_pooled, without_pooled
from .flow import Flow


class Flux(Flow):
    """FLUX.1 dev and schnell.

    dev was distilled: guidance is an input and takes no second pass. Passes that train take `guidance`, whatever
    pictures are drawn with; what leads away from a concept (ESD) has its second pass all the same.

    A condition's tokens are T5's, and the pooled embedding is CLIP's. A vector that takes a word's place is
    what CLIP would look up, side by side with what T5 would (`prompt` and `prompt_2` of the pipeline). `xattn` holds the
    double blocks' words alone: in the single blocks words and picture share their projections.

    Our latents are (B, c, h, w); the transformer sees them in patches of 2 x 2, (B, h/2 w/2, 4 c).
    """

    title, hub_tags = "FLUX.1", ("flux",)
    texts = ("text_encoder", "text_encoder_2")
    guidance, two_passes = 3.5, False  # the pipeline's own
    t5_length = 512  # tokens, as the pipeline has it
    side = 128  # of the latents of the pictures it was made for, which is in no config

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """CLIP, of which only the pooled output is used, and T5."""
        p = self.pipeline
        return (
            Encoder.of_clip(p.tokenizer, p.text_encoder),
            Encoder(p.tokenizer_2, p.text_encoder_2, self.t5_length),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.module.config.in_channels // self.patch**2, self.side, self.side

    def condition(self, ids: Tensor) -> Tensor:
        (clip, t5), (first, second) = self.encoders, self.apart(ids)
        return with_pooled(t5.model(second)[0], clip.model(first).pooler_output).float()

    def predict(self, noisy: Tensor, t: Tensor, condition: Tensor, process: Process) -> Tensor:
        """See `Family.predict`: the transformer takes patches, their positions and the guidance."""
        words, pooled = without_pooled(condition, self.module.config.pooled_projection_dim)
        guidance = torch.full((len(noisy),), self.guidance, device=noisy.device)
        output = self.module(
            hidden_states=packed(noisy), timestep=process.time(t) / 1000, encoder_hidden_states=words,
            pooled_projections=pooled, guidance=guidance if self.module.config.guidance_embeds else None,
            txt_ids=words.new_zeros(words.shape[1], 3), img_ids=places(noisy),
        ).sample  # fmt: skip
        return unpacked(output, noisy.shape[2] // 2)

    def sample(self, condition: Tensor, without: Tensor, **how: Any) -> Tensor:
        """See `Family`; `without` is not looked at."""
        how |= {"latents": packed(how["latents"])} if "latents" in how else {}
        words, pooled = without_pooled(condition, self.module.config.pooled_projection_dim)
        drawn = self.pipeline(prompt_embeds=words, pooled_prompt_embeds=pooled, output_type="latent", **how).images
        return unpacked(drawn, how["height"] // self.multiple)


def packed(latents: Tensor) -> Tensor:
    """Patches of 2 x 2, row by row, each channel's four numbers together: (B, c, h, w) to (B, h/2 w/2, 4 c)."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, c, h/2, 2, w/2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(patches: Tensor, rows: int) -> Tensor:
    """The inverse of `packed`; `rows`: of patches, h/2."""
    apart = patches.unflatten(2, (-1, 2, 2)).unflatten(1, (rows, -1))  # (B, h/2, w/2, c, 2, 2)
    return apart.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(latents: Tensor) -> Tensor:
    """Row and column of every patch, for the rotary embedding: (h/2 w/2, 3), the first number 0."""
    rows, columns = (torch.arange(side // 2, device=latents.device) for side in latents.shape[2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), 2).flatten(0, 1)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1).to(latents.dtype)
