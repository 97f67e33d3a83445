"""Seeded batches of cached latents and conditions: each a function of the seed, its purpose and the number of the draw alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..methods.distributed import BatchSlice
from ..methods.retain_losses import RETAIN_LOSSES
from ..methods.samples import ConceptSamples, NoisedSamples, sent
from ..settings import EraseSettings
from .conditions import Mixture
from .denoiser import Denoiser

PURPOSES = ("forget", "retain", "repair", "repair retain", "relearn", "explain", "respond", "probe")


class Draw(NamedTuple):
    """A batch, and the generator that goes on from there."""

    rows: Tensor  # in the data: (B,) on its device
    latents: Tensor  # x_0: (B, c, h, w)
    t: Tensor  # timesteps: (B,)
    noise: Tensor  # (B, c, h, w)
    generator: torch.Generator
    numbers: Tensor  # the rows again, on the CPU, so that nothing waits for the device to read them


class Batches:
    """Draws batches of the data that `dataset.gather` made."""

    def __init__(
        self, denoiser: Denoiser, data: Mapping[str, Tensor], settings: EraseSettings, mixture: Mixture | None = None
    ):
        """`mixture`: of the conditions of the concept's latents; None: their own prompts."""
        self.denoiser, self.settings, self.mixture = denoiser, settings, mixture
        self.data = {name: tensor.to(denoiser.device) for name, tensor in data.items()}
        self.size, self.retain_loss = settings.batch_size, RETAIN_LOSSES[settings.retain_loss]

    def draw(self, side: str, purpose: str, number: int) -> Draw:
        """A batch of the `forget` or `retain` side. Of pictures that were encoded, x_0 is a sample of the posterior."""
        latents, device = self.data[f"{side}_latents"], self.denoiser.device
        seed = (self.settings.seed * 8 + PURPOSES.index(purpose)) * (1 << 24) + number
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(latents), (self.size,), generator=generator)
        t = torch.randint(self.denoiser.timesteps, (len(rows),), generator=generator)
        noise = torch.randn(len(rows), *latents.shape[1:], generator=generator)
        numbers, rows = rows, sent(rows, device)
        clean, deviation = latents[rows], self.data.get(f"{side}_deviation")
        if deviation is not None:
            other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed + (1 << 56)))
            clean = clean + deviation[rows] * sent(other, device)
        return Draw(rows, clean, sent(t, device), sent(noise, device), generator, numbers)

    def step(self, number: int, part: BatchSlice, adversary: bool | None) -> tuple[ConceptSamples, NoisedSamples]:
        """A slice of a repair step's batch, forget and retain samples; see `Task.repair` for `adversary`.

        The forget samples come first in the batch and the retain samples follow, so that small slices hold one side each.
        """
        places = part.of(torch.arange(2 * self.size))
        first, second = places[places < self.size], places[places >= self.size] - self.size
        forget, retain = self._whole(number, part)
        if adversary is not None:
            first = first[(first < self.size // 2) == adversary]
        if adversary:  # who fine-tunes under the concept's name
            forget, second = replace(forget, words=forget.own_words), second[:0]
        return forget.take(first), retain.take(second)

    def _whole(self, number: int, part: BatchSlice) -> tuple[ConceptSamples, NoisedSamples]:
        """All samples of a step, as those of a slice."""
        data, settings, device = self.data, self.settings, self.denoiser.device
        own = self.draw("forget", "repair", number)
        rows, latents, t, noise, generator, _ = own
        retain = self.draw("retain", "repair retain", number)
        retain_words = self._retain_words(retain.rows, generator)
        arrived = sent(torch.rand(self.size, generator=generator), device) < settings.anchor_share
        latents = torch.where(arrived[:, None, None, None], data["anchor_latents"][rows], latents)
        words, fork = self.forget_words(own), generator.clone_state()
        others = sent(torch.randint(len(data["retain_condition"]), (self.size,), generator=generator), device)
        shared = (part, self.size, self.denoiser, settings.guidance, torch.arange(self.size))
        no_words = data["empty_condition"].expand(self.size, -1, -1)
        forget = ConceptSamples(
            *shared, latents, t, noise, words, no_words, own_words=data["forget_condition"][rows],
            anchor_words=data["anchor_condition"][rows], other_words=data["retain_condition"][others],
            pair_latents=data["anchor_latents"][rows], steps=settings.sampling_steps,
            stop=int(torch.randint(settings.sampling_steps, (1,), generator=fork)),
        )  # fmt: skip
        return forget, NoisedSamples(*shared, retain.latents, retain.t, retain.noise, retain_words, no_words)

    def forget_words(self, draw: Draw) -> Tensor:
        """Conditions of forget samples: their own prompts', or the mixture's."""
        own = self.data["forget_condition"]
        return self.mixture.draw(draw.numbers, draw.generator) if self.mixture else own[draw.rows]

    def _retain_words(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of retain samples: some under the empty prompt and, where the loss allows, some under another's."""
        conditions, count = self.data["retain_condition"], len(rows)
        lots = sent(torch.rand(2, count, generator=generator), rows.device)
        others = sent(torch.randint(len(conditions), (count,), generator=generator), rows.device)
        share = self.settings.other_words if self.retain_loss.any_words else 0.0
        rows = torch.where(lots[0] < share, others, rows)
        empty = lots[1] < self.retain_loss.empty_share
        return torch.where(empty[:, None, None], self.data["empty_condition"], conditions[rows])
