"""The unlearning step as the scripts published with Scissorhands take it, written plainly: what steps.py and gpu.py compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from scale import plain_projection
from sd14 import TOKENS
from torch import Tensor, nn

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.methods.project import Rule

PARTS = ("encoding", "forward", "backward", "projection", "optimizer")


@dataclass(frozen=True)
class Batch:
    """One side's samples, as the reference takes them."""

    pictures: Tensor  # (B, 3, h, w) in [-1, 1]
    ids: Tensor  # (B, tokens)
    t: Tensor  # (B,)
    noise: Tensor  # (B, c, h / 8, w / 8)

    @classmethod
    def random(cls, denoiser: Denoiser, count: int = 1) -> Batch:
        """Random pictures, words, timesteps and noise."""
        side = denoiser.module.config.sample_size
        ids, t = torch.randint(1000, (count, TOKENS)), torch.randint(denoiser.timesteps, (count,))
        pictures = torch.rand(count, 3, 8 * side, 8 * side).mul_(2).sub_(1)
        every = (pictures, ids, t, torch.randn(count, 4, side, side))
        return cls(*(one.to(denoiser.device) for one in every))


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done within it to a part."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def timed(self, name: str, function: Callable) -> Callable:
        """A function whose calls count to a part."""

        def call(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return call


class Reference:
    """Scores and repair as in the scripts published with Scissorhands, with the projection of their classification code.

    Every step encodes pictures and words anew, those to be forgotten a second time under the anchor's words; passes forget,
    anchor and retain samples through the model each by itself, the anchor's with a graph that nobody uses; and goes backward once
    through the sum. Kinder than the scripts in one point: weights outside the scope get no gradient.
    """

    def __init__(self, denoiser: Denoiser, vae: nn.Module, words: nn.Module, parameters: dict[str, nn.Parameter]):
        self.denoiser, self.vae, self.words, self.parameters = denoiser, vae, words, parameters
        self.clock, self.conflict = Clock(), True  # whether the memory opposed the last step

    @torch.no_grad()
    def encoded(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of a batch, and the conditions of some words."""
        with self.clock.part("encoding"):
            latents = self.vae.encode(batch.pictures).latent_dist.mode() * self.vae.config.scaling_factor
            return self.denoiser.noised(latents, batch.noise, batch.t), self.words(ids)[0]

    def predicted(self, batch: Batch, ids: Tensor) -> Tensor:
        """The model's output for a batch under some words."""
        noisy, words = self.encoded(batch, ids)
        with self.clock.part("forward"):
            return self.denoiser.module(noisy, batch.t, words).sample

    def loss(self, batch: Batch) -> Tensor:
        """The denoising loss."""
        return nn.functional.mse_loss(self.predicted(batch, batch.ids), batch.noise)

    def scores(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """|theta| * sum of |gradient|, over the sum of all (SNIP's)."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            self.clear()
            self.loss(batch).backward()
            for name, parameter in self.parameters.items():
                sums[name] = sums.get(name, 0) + parameter.grad.abs()
        saliences = [(parameter.detach() * sums[name]).abs() for name, parameter in self.parameters.items()]
        everything = torch.cat([s.flatten() for s in saliences])
        everything = everything / everything.sum()
        parts = everything.split([s.numel() for s in saliences])
        return {name: part.view_as(sums[name]) for (name, part) in zip(sums, parts, strict=True)}

    def prepare(self, lr: float, memory: Sequence[Tensor], rule: Rule, forget_weight: float) -> None:
        """What the steps need."""
        self.memory, self.rule, self.forget_weight = memory, rule, forget_weight
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=lr, foreach=False, fused=False)

    def step(self, forget: Batch, anchor: Tensor, retain: Batch) -> None:
        """One step of the repair; `anchor`: ids of the words that take the concept's place (B, tokens)."""
        self.clear()
        loss = self.loss(retain)
        out = self.predicted(forget, forget.ids)
        target = self.predicted(forget, anchor).detach()
        loss = loss + self.forget_weight * nn.functional.mse_loss(out, target)
        with self.clock.part("backward"):
            loss.backward()
        with self.clock.part("projection"):
            gradients = [p.grad for p in self.parameters.values()]
            moved = [g.cpu() for g in gradients]
            self.conflict = plain_projection(moved, self.memory, self.rule)
            for gradient, own in zip(gradients, moved, strict=True):
                gradient.copy_(own)
        with self.clock.part("optimizer"):
            self.optimizer.step()

    def settle(self, forget: Batch, anchor: Tensor, retain: Batch) -> None:
        """A first step, which makes the optimiser's moments; afterwards the memory opposes the gradient, so that it is projected."""
        self.step(forget, anchor, retain)
        if not self.conflict:
            torch._foreach_neg_(list(self.memory))

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None
