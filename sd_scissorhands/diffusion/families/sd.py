"""Stable Diffusion 1 and 2: a UNet and one CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from ..noise_process import Process
from .base import Encoder, Family, unet_objection


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2, epsilon or v-prediction.

    2.x differs by its configs alone: OpenCLIP's text encoder is a CLIPTextModel in diffusers, the UNet's projections are
    linear, the scheduler's config has what is predicted.
    """

    @classmethod
    def objection(cls, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
        return unet_objection(configs, added=None)

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        p = self.pipeline
        return (Encoder.of_clip(p.tokenizer, p.text_encoder),)

    def condition(self, ids: Tensor) -> Tensor:
        """The text encoder's last hidden state."""
        return self.encoders[0].model(ids)[0].float()

    def predict(self, noisy: Tensor, t: Tensor, condition: Tensor, process: Process) -> Tensor:
        return self.module(noisy, t, condition).sample

    def sample(self, condition: Tensor, without: Tensor, **how: Any) -> Tensor:
        """See `Family.sample`: both conditions are prompt embeddings."""
        return self.pipeline(
            prompt_embeds=condition, negative_prompt_embeds=without, output_type="latent", **how
        ).images  # fmt: skip
