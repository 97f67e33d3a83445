"""How a family adds noise and what its denoiser outputs: diffusion in discrete steps, or flow matching.

t is an index into as many `timesteps` in both, and more noise the higher it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # x_t (B, c, h, w) and t (B,) to the module's output


class Process(Protocol):
    """What the two have in common; shapes (B, c, h, w), t (B,) int64."""

    timesteps: int

    def time(self, t: Tensor) -> Tensor:
        """The module's time input for t: (B,)."""
        ...

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        ...

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the module was trained to output."""
        ...

    def clean(self, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 that an output amounts to."""
        ...

    def leading_to(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The output that leads from x_t to a given x_0, the inverse of `clean`."""
        ...

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio of x_t, variance over variance: (B,)."""
        ...

    def pair_weight(self, t: Tensor) -> Tensor:
        """Weight of a paired target's squared error, min(1, 1 / SNR) with the signal-to-noise ratio of x_t: (B,).

        Two things hold whatever the module outputs. Against the retain term, whose errors of the same output have weight 1,
        forgetting weighs the same in every family at the same noise: all of it where noise hides the picture and its
        shape is decided. And where noise is low, the large output that leads to another picture costs no more than a few
        times that picture's own error.
        """
        ...

    def retain_weight(self, t: Tensor) -> Tensor:
        """Weight of a squared error of the output in what is retained, mean 1 over all timesteps: (B,).

        A sampler moves by the velocity, and what a picture shows is decided while there is much noise. There an error of the noise is
        small in number and large in effect: as a velocity's it is 1 / abar times as much. The weight is the root of that, halfway
        between the two (ours); that of a velocity is 1.
        """
        ...

    def times(self, steps: int) -> Tensor:
        """The timesteps at which a sampling of so many steps predicts, the noisiest first: (steps,) int64."""
        ...

    def descend(
        self, predict: Predict, noisy: Tensor, *, steps: int, stop: int, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """A sampling's steps from `start` to before `stop` of `steps`, and the timestep that it stands at: (B, c, h, w), (B,).

        Args:
            noisy: x_t at the first of these steps; at `start` 0 noise.
        """
        ...


class Discrete(Process):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e; the module outputs e, or the velocity sqrt(abar) e - sqrt(1 - abar) x_0."""

    def __init__(self, scheduler: Any, device: torch.device):
        """`scheduler`: with alphas_cumprod, and a prediction_type of epsilon or v_prediction."""
        self.scheduler, self.device = scheduler, device
        self.alphas = scheduler.alphas_cumprod.to(device, torch.float32)
        self.timesteps = len(self.alphas)
        self.velocity = scheduler.config.prediction_type == "v_prediction"

    def time(self, t: Tensor) -> Tensor:
        return t

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """See `Process.target`: the noise, or v = sqrt(abar) eps - sqrt(1 - abar) x_0."""
        if not self.velocity:
            return noise
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def clean(self, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """See `Process.clean`."""
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        if self.velocity:
            return alpha.sqrt() * noisy - (1 - alpha).sqrt() * output
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()

    def leading_to(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """See `Process.leading_to`."""
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        if self.velocity:
            return (alpha.sqrt() * noisy - clean) / (1 - alpha).sqrt()
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """abar / (1 - abar)."""
        return self.alphas[t] / (1 - self.alphas[t])

    def pair_weight(self, t: Tensor) -> Tensor:
        """min(1, 1 / SNR) = min(1, (1 - abar) / abar), see `Process`."""
        return ((1 - self.alphas[t]) / self.alphas[t]).clamp_max(1)

    def retain_weight(self, t: Tensor) -> Tensor:
        """abar^-1/2 over its mean where the module outputs noise, see `Process`."""
        if self.velocity:
            return torch.ones_like(self.alphas[t])
        every = self.alphas.rsqrt()
        return every[t] / every.mean()

    def _sampler(self, steps: int) -> Any:
        from diffusers import DDIMScheduler

        config = {"clip_sample": False, **self.scheduler.config}  # DDIM's own default is True
        sampler = DDIMScheduler.from_config(config)
        sampler.set_timesteps(steps)  # on the CPU, so that nothing waits for the device to read them
        return sampler

    def times(self, steps: int) -> Tensor:
        """Spaced as the scheduler's config has it."""
        return self._sampler(steps).timesteps.to(self.device)

    def descend(
        self, predict: Predict, noisy: Tensor, *, steps: int, stop: int, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """By DDIM, as ESD samples (Gandikota et al., section 4.1); latents are clipped only where the config asks for it."""
        sampler = self._sampler(steps)
        on_device = sampler.timesteps.to(self.device)[:, None].expand(-1, len(noisy))
        for number in range(start, stop):
            predicted = predict(noisy, on_device[number])
            noisy = sampler.step(predicted, sampler.timesteps[number], noisy).prev_sample
        return noisy, on_device[min(stop, steps - 1)]


class FlowMatching(Process):
    """x_t = (1 - s) x_0 + s e with s = sigmas[t]; the module outputs the velocity e - x_0 (Lipman et al. 2023, Liu et al. 2023).

    The sigmas are those that the scheduler would sample at, shifted as it shifts them, one for each timestep that it was
    trained with: drawn uniformly, t falls as densely as sampling passes. Training draws t otherwise (SD 3's logit-normal).
    """

    def __init__(self, sigmas: Tensor):
        """`sigmas`: (timesteps,) float32, ascending in (0, 1]."""
        self.sigmas, self.timesteps = sigmas, len(sigmas)

    @classmethod
    def of(cls, scheduler: Any, device: torch.device, *, tokens: int) -> FlowMatching:
        """From a flow-matching scheduler's config, whatever it was last used for.

        Args:
            tokens: patches of a picture of the model's own size, by which a dynamic shift goes.
        """
        fresh = type(scheduler).from_config(scheduler.config)
        sigmas = fresh.sigmas
        if fresh.config.use_dynamic_shifting:
            sigmas = fresh.time_shift(shift_of(fresh.config, tokens), 1.0, sigmas)
        return cls(sigmas.flip(0).to(device, torch.float32))

    def time(self, t: Tensor) -> Tensor:
        """The sigma, in as many parts of 1 as there are timesteps: (B,) float32."""
        return self.sigmas[t] * self.timesteps

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigmas[t].view(-1, 1, 1, 1)

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - latents

    def clean(self, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return noisy - self._sigma(t) * output

    def leading_to(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        return (noisy - clean) / self._sigma(t)

    def snr(self, t: Tensor) -> Tensor:
        """((1 - s) / s)^2."""
        sigma = self.sigmas[t]
        return ((1 - sigma) / sigma).square()

    def pair_weight(self, t: Tensor) -> Tensor:
        """min(1, 1 / SNR) = min(1, (s / (1 - s))^2), see `Process`."""
        sigma = self.sigmas[t]
        return (sigma / (1 - sigma)).square().clamp_max(1)

    def retain_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(self.sigmas[t])

    def _stations(self, steps: int) -> Tensor:
        """Evenly spaced timesteps, the last where a sampling ends: (steps + 1,)."""
        return torch.linspace(self.timesteps - 1, 0, steps + 1).round().long().to(self.sigmas.device)

    def times(self, steps: int) -> Tensor:
        """Evenly spaced."""
        return self._stations(steps)[:-1]

    def descend(
        self, predict: Predict, noisy: Tensor, *, steps: int, stop: int, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """By Euler's method."""
        stations = self._stations(steps)
        sigmas, at = self.sigmas[stations], stations[:, None].expand(-1, len(noisy))
        for number in range(start, stop):
            noisy = noisy + (sigmas[number + 1] - sigmas[number]) * predict(noisy, at[number])
        return noisy, at[min(stop, steps - 1)]


def shift_of(config: Any, tokens: int) -> float:
    """The dynamic shift mu of a picture of so many patches: linear between the config's two ends."""
    low, high = config.base_image_seq_len, config.max_image_seq_len
    return config.base_shift + (config.max_shift - config.base_shift) * (tokens - low) / (high - low)
