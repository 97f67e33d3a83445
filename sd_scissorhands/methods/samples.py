"""What a loss sees of a step: samples; those of a denoiser are noised latents and their conditions."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from .distributed import BatchSlice

PARTIAL_GUIDANCE = 3.0  # of half-finished pictures (ESD, section 4.1)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device, without waiting until the device has done what it was given before."""
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Samples:
    """Samples of one side, retain or forget, in a slice of a batch: (B, ...) each."""

    slice: BatchSlice
    batch_size: int  # of this side, all slices together

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error, or cross entropy, of every sample: (B,)."""
        raise NotImplementedError

    def own_errors(self, prediction: Tensor) -> Tensor:
        """The same against what the data have, the noise or the label: (B,)."""
        raise NotImplementedError

    def mean(self, values: Tensor, count: int | None = None) -> Tensor:
        """See `BatchSlice.mean`. `count`: how many values the whole batch has, where not every sample has one."""
        return self.slice.mean(values, self.batch_size if count is None else count)

    def take(self, rows: Tensor) -> Self:
        """Some of these samples, by their number."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        taken: Any = {name: value[sent(rows, value.device)] for name, value in values if isinstance(value, Tensor)}
        return replace(self, **taken)

    def none(self) -> Self:
        """No sample."""
        return self.take(torch.arange(0))


@dataclass(frozen=True)
class NoisedSamples(Samples):
    """Samples of a denoiser."""

    denoiser: Any  # a `diffusion.denoiser.Denoiser`
    guidance: float  # that the pictures were drawn with
    places: Tensor  # in the batch: (B,)
    latents: Tensor  # x_0: (B, c, h, w)
    t: Tensor  # timesteps: (B,)
    noise: Tensor  # (B, c, h, w)
    words: Tensor  # the condition that the student is given: (B, tokens, width)
    no_words: Tensor  # the condition of the empty prompt
    bare: int = 0  # of these samples, the last ones, which are there again without words

    def __len__(self) -> int:
        return len(self.t)

    @cached_property
    def noisy(self) -> Tensor:
        """x_t: (B, c, h, w)."""
        return self.denoiser.noised(self.latents, self.noise, self.t)

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error, its mean over channels and space: (B,)."""
        return (prediction - target).square().mean((1, 2, 3))

    def own_errors(self, prediction: Tensor) -> Tensor:
        """Denoising loss: (B,)."""
        return self.errors(prediction, self.denoiser.target(self.latents, self.noise, self.t))

    @property
    def retain_weight(self) -> Tensor:
        """Weight of an error in what is retained, see `Process.retain_weight`: (B,)."""
        return self.denoiser.process.retain_weight(self.t)

    def with_bare(self, count: int) -> Self:
        """These samples, and behind them those among the first `count` of the batch again without words."""
        again = (self.places < count).nonzero().view(-1)
        both = self.take(torch.cat([torch.arange(len(self)), again]))
        both.words[len(self) :] = both.no_words[len(self) :]
        return replace(both, bare=len(again))


@dataclass(frozen=True, kw_only=True)
class ConceptSamples(NoisedSamples):
    """Samples of the concept, which a forget loss is about, with more conditions (B, tokens, width)."""

    own_words: Tensor  # of the prompts that the pictures were drawn for
    anchor_words: Tensor  # of the same with the anchor in the concept's place
    other_words: Tensor  # of random retain samples' prompts
    pair_latents: Tensor  # what the anchor's words gave from the same start noise: (B, c, h, w)
    steps: int  # of sampling
    stop: int  # random, below `steps`
    half: Tensor | None = None  # x_t, where it is no noised latent: (B, c, h, w)

    @cached_property
    def noisy(self) -> Tensor:
        """x_t: (B, c, h, w)."""
        return super().noisy if self.half is None else self.half

    def half_finished(self) -> Self:
        """Pictures that the student draws from the noise under the words and leaves after `stop` steps (ESD, section 4.1)."""
        how: Any = dict(steps=self.steps, stop=self.stop, guidance=PARTIAL_GUIDANCE)
        half, t = self.denoiser.half_finished(self.words, self.noise, **how)
        return replace(self, half=half, t=t)

    @property
    def pair(self) -> Tensor:
        """x_t of the pair: (B, c, h, w)."""
        return self.denoiser.noised(self.pair_latents, self.noise, self.t)

    @property
    def pair_weight(self) -> Tensor:
        """Weight of a paired target's error, see `Process.pair_weight`: (B,)."""
        return self.denoiser.process.pair_weight(self.t)

    def leading_to(self, noisy: Tensor, output: Tensor) -> Tensor:
        """What the student should output to go where an output leads from another x_t, `noisy`: (B, c, h, w)."""
        process = self.denoiser.process
        return process.leading_to(process.clean(noisy, output, self.t), self.noisy, self.t)
