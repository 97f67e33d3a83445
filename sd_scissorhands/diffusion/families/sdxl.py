"""SDXL: a UNet, two CLIPs, the second's pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..noise_process import Process
from .base import Encoder, Family, sampled_with_pooled, unet_objection, with_pooled, without_pooled


class StableDiffusionXL(Family):
    """SDXL, base model (Podell et al. 2023, arXiv 2307.01952).

    A condition's tokens are both encoders' last hidden states but one, side by side. A vector that takes a word's place is
    the pair of what the two encoders would look up: they share a vocabulary. The time ids are the pipeline's
    defaults: pictures of the size that they have, uncropped.
    """

    title, hub_tags = "Stable Diffusion XL", ("stable-diffusion", "stable-diffusion-xl")
    texts = ("text_encoder", "text_encoder_2")
    guidance = 5.0  # the pipeline's own

    @classmethod
    def objection(cls, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
        """See `Family.objection`: a VAE with channel means is refused."""
        if configs["vae"].get("latents_mean"):
            return "its VAE has means of its own for every channel"
        return unet_objection(configs, added="text_time")

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """Both CLIPs."""
        p = self.pipeline
        return (
            Encoder.of_clip(p.tokenizer, p.text_encoder),
            Encoder.of_clip(p.tokenizer_2, p.text_encoder_2),
        )

    @property
    def pooled(self) -> int:
        """Width of the pooled embedding."""
        return self.pipeline.text_encoder_2.config.projection_dim

    def condition(self, ids: Tensor) -> Tensor:
        """See `Family.condition`: both CLIPs' last but one states side by side, then the second's pooled output."""
        outputs = [
            e.model(own, output_hidden_states=True) for e, own in zip(self.encoders, self.apart(ids), strict=True)
        ]
        return with_pooled(torch.cat([one.hidden_states[-2] for one in outputs], 2), outputs[1][0]).float()

    def unconditional(self, count: int) -> Tensor:
        """Zeros where the pipeline has them for no negative prompt, as SDXL was trained; else the empty prompt."""
        empty = super().unconditional(count)
        return torch.zeros_like(empty) if self.pipeline.config.force_zeros_for_empty_prompt else empty

    def predict(self, noisy: Tensor, t: Tensor, condition: Tensor, process: Process) -> Tensor:
        """See `Family.predict`: pooled output and picture size go in beside the words."""
        words, pooled = without_pooled(condition, self.pooled)
        height, width = (side * self.pipeline.vae_scale_factor for side in noisy.shape[2:])
        size = torch.tensor([[height, width, 0, 0, height, width]], dtype=condition.dtype, device=condition.device)
        added = {"text_embeds": pooled, "time_ids": size.expand(len(noisy), -1)}
        return self.module(noisy, t, words, added_cond_kwargs=added).sample

    def sample(self, condition: Tensor, without: Tensor, **how: Any) -> Tensor:
        return sampled_with_pooled(self.pipeline, condition, without, self.pooled, **how)
