"""Stable Diffusion 3 and 3.5: a transformer with flow matching, two CLIPs and a T5."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..noise_process import Process
from .base import Encoder, sampled_with_pooled, with_pooled, without_pooled
from .flow import Flow


class StableDiffusion3(Flow):
    """Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206).

    A condition's tokens are both CLIPs' last hidden states but one, side by side, followed by T5's tokens, or by zeros
    where T5 is left out. A vector that takes a word's place is what the two CLIPs would look up, side by side with what
    T5 would: its vocabulary is another, and a word may have more tokens there (`prompt_3` of the pipeline).
    """

    title, hub_tags = "Stable Diffusion 3", ("stable-diffusion", "stable-diffusion-3")
    texts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional = ("text_encoder_3",)
    guidance = 7.0  # the pipeline's own
    t5_length = 256  # tokens, as the pipeline has it

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """Two CLIPs, and T5 where the pipeline has one."""
        p = self.pipeline
        clips = (Encoder.of_clip(p.tokenizer, p.text_encoder), Encoder.of_clip(p.tokenizer_2, p.text_encoder_2))
        if p.text_encoder_3 is None:
            return clips
        return (*clips, Encoder(p.tokenizer_3, p.text_encoder_3, self.t5_length))

    @property
    def pooled(self) -> int:
        """Width of the pooled embedding, both CLIPs' side by side."""
        return self.module.config.pooled_projection_dim

    def condition(self, ids: Tensor) -> Tensor:
        """See `Family.condition`: both CLIPs' words side by side, then T5's, then the pooled outputs."""
        apart = self.apart(ids)
        outputs = [e.model(own, output_hidden_states=True) for e, own in zip(self.encoders[:2], apart[:2], strict=True)]
        words, pooled = (
            torch.cat([one.hidden_states[-2] for one in outputs], 2),
            torch.cat([one[0] for one in outputs], 1),
        )
        width = self.module.config.joint_attention_dim
        empty = words.new_zeros(len(ids), self.t5_length, width)
        more = self.encoders[2].model(apart[2])[0] if len(apart) == 3 else empty
        return with_pooled(torch.cat([F.pad(words, (0, width - words.shape[2])), more], 1), pooled).float()

    def predict(self, noisy: Tensor, t: Tensor, condition: Tensor, process: Process) -> Tensor:
        """See `Family.predict`: words and pooled outputs go in apart."""
        words, pooled = without_pooled(condition, self.pooled)
        return self.module(
            hidden_states=noisy, timestep=process.time(t), encoder_hidden_states=words, pooled_projections=pooled
        ).sample  # fmt: skip

    def sample(self, condition: Tensor, without: Tensor, **how: Any) -> Tensor:
        return sampled_with_pooled(self.pipeline, condition, without, self.pooled, **how)
