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
    """What the reference is given of one side."""

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

        def call(*given, **named):
            with self.part(name):
                return function(*given, **named)

        return call


class Reference:
    """Scores and repair as in the scripts published with Scissorhands, with the projection of their classification code.

    Every step encodes pictures and words anew, those to be forgotten a second time under the anchor's words; passes forget,
    anchor and retain samples through the model each by itself, the anchor's with a graph that nobody uses; and goes back once
    through the sum. Kinder than the scripts, unless `everything`, in one point: weights outside the scope get no gradient.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        vae: nn.Module,
        words: nn.Module,
        parameters: dict[str, nn.Parameter],
        *,
        everything=False,
    ):
        self.denoiser, self.vae, self.words, self.parameters = denoiser, vae, words, parameters
        self.others = [p for p in denoiser.module.parameters() if everything and not p.requires_grad]
        self.optimizer: torch.optim.Optimizer | None = None
        self.clock, self.conflict = Clock(), True  # whether the memory was in the last step's way

    @torch.no_grad()
    def encoded(self, batch: Batch, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t of a batch, and its words' conditions."""
        with self.clock.part("encoding"):
            latents = self.vae.encode(batch.pictures).latent_dist.mode() * self.vae.config.scaling_factor
            words = self.words(batch.ids if ids is None else ids)[0]
            return self.denoiser.noised(latents, batch.noise, batch.t), words

    def said(self, batch: Batch, ids: Tensor | None = None) -> Tensor:
        """The model's output for a batch, under its own words or others."""
        noisy, words = self.encoded(batch, ids)
        with self.clock.part("forward"):
            return self.denoiser.module(noisy, batch.t, words).sample

    def loss(self, batch: Batch) -> Tensor:
        """The denoising loss."""
        return nn.functional.mse_loss(self.said(batch), batch.noise)

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

    def prepare(self, lr: float, memories: Sequence[Sequence[Tensor]], rule: Rule, forget_weight: float) -> Reference:
        """What the steps need."""
        self.memories, self.rule, self.forget_weight = memories, rule, forget_weight
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=lr, foreach=False, fused=False)
        return self

    def step(self, forget: Batch, anchor: Tensor, retain: Batch) -> None:
        """One step of the repair; `anchor`: ids of the words that take the concept's place (B, tokens)."""
        assert self.optimizer
        self.clear()
        for parameter in self.others:
            parameter.requires_grad_(True)
        loss = self.loss(retain)
        out = self.said(forget)
        wanted = self.said(forget, anchor).detach()
        loss = loss + self.forget_weight * nn.functional.mse_loss(out, wanted)
        with self.clock.part("backward"):
            loss.backward()
        gradients = [p.grad for p in self.parameters.values()]
        first = gradients[0].clone()
        with self.clock.part("projection"):
            moved = [g.cpu() for g in gradients]
            plain_projection(moved, self.memories, self.rule)
            for gradient, own in zip(gradients, moved, strict=True):
                gradient.copy_(own)
        self.conflict = not torch.equal(first, gradients[0])
        with self.clock.part("optimizer"):
            self.optimizer.step()

    def clear(self) -> None:
        """Forget the gradients, and ask for none outside the scope."""
        for parameter in (*self.parameters.values(), *self.others):
            parameter.grad = None
        for parameter in self.others:
            parameter.requires_grad_(False)
