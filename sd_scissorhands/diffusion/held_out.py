"""How much of a concept is left in a denoiser, and how far the rest has moved, on what no step learns from. Nothing is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..methods.calibration import Look
from ..methods.distributed import SINGLE_PROCESS, ProcessGroup
from ..methods.interface import Weights
from .conditions import SHARES, Mixture
from .dataset import encode_prompts
from .denoiser import Denoiser
from .drawing_again import DrawLatents

LEFT_AT = (0.05, 0.2, 0.7, 2.0)  # signal-to-noise ratios at which the concept is looked for
MOVED_AT = (0.02, 0.1, 0.5, 2.0)  # and at which the rest is compared
TOLD_AT = (0.05, 0.2, 0.7, 2.0)  # and at which it is found out what a picture shows
CLEAR = 0.01  # by how much the concept's name explains a picture better than other words, at least, for it to show the concept
LEAST = 0.2  # of the way to the concept that the original goes under other words, at least, for what is left of it
NAMED = 0.5  # of what the concept's name changes in the prediction: what other words are taken to change, at least
FIRST_SEED = 1 << 40  # begin here, beyond those of all that is learned from


@dataclass(frozen=True)
class Asked:
    """A prompt that asks for a concept."""

    prompt: str
    named: str  # the same by the concept's own name
    concept: str
    others: tuple[str, ...]  # with the anchor in its place, then vaguer words; as many for every prompt


@dataclass(frozen=True)
class HeldOutPrompts:
    """Prompts of what is held out."""

    named: Sequence[Asked]  # that pairs are made of
    paraphrased: Sequence[Asked]  # by names that nothing learns from
    retained: Sequence[str]  # captions, then open prompts, as many

    @property
    def asked(self) -> list[Asked]:
        """All that ask for a concept."""
        return [*self.named, *self.paraphrased]


@dataclass(frozen=True)
class HeldOutSampling:
    """How what is held out is drawn."""

    steps: int
    guidance: float
    batch_size: int
    seed: int
    scheduler: str = ""  # see `Changes`
    group: ProcessGroup = SINGLE_PROCESS


@dataclass(frozen=True)
class Drawn:
    """What was drawn; nothing was decoded."""

    shown: dict[str, int]  # by concept: of the pictures in which the original shows it, those in which this model does
    changed: float  # distance of retained pictures from the original's, over that of the original's under another seed


def draw_held_out(
    draw: DrawLatents, prompts: HeldOutPrompts, how: HeldOutSampling, tick: Callable[[int], None]
) -> dict[str, Tensor]:
    """What the original draws: latents (N, c, h, w) of `asked`, `pair` (the same seeds), `retained` and `reseeded` (others)."""
    asked, pairs = [one.prompt for one in prompts.asked], [one.others[0] for one in prompts.named]
    texts = {
        "asked": (asked, 0),
        "pair": (pairs, 0),
        "retained": (prompts.retained, 1),
        "reseeded": (prompts.retained, 2),
    }
    return {name: drawn(draw, own, how, seeds, tick).cpu() for name, (own, seeds) in texts.items()}


def drawn(
    draw: DrawLatents,
    texts: Sequence[str],
    how: HeldOutSampling,
    seeds: int,
    tick: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Latents of prompts; `seeds`: which set of seeds, a number."""
    own = [FIRST_SEED + (how.seed * 4 + seeds) * 1_000_000 + row for row in range(len(texts))]
    return draw(
        texts,
        own,
        steps=how.steps,
        guidance=how.guidance,
        batch_size=how.batch_size,
        scheduler=how.scheduler,
        group=how.group,
        tick=tick,
    )


class HeldOut:
    """Pairs and prompts held out, with the original's answers to them: made while the weights are the original's.

    What is left of the concept (ours): on the way from the pair's picture to the concept's, in estimates of x_0, how far
    the student goes. With x the student's estimate from the concept's x_t, b the original's from the pair's x_t under the
    anchor's words, a the original's from the concept's x_t under its own:

        sum <x - b, a - b> / sum |a - b|^2

    over the same of the original, over signal-to-noise ratios of `LEFT_AT`, under the same noise for concept and pair. As a
    projection it does not take a blur for gone. Of several concepts the one that most is left of counts.

    What has moved: sum |g - g_0|^2 / sum |g_0 - u_0|^2 with g the estimate of x_0 under guidance and u that without words, on
    what the original drew for prompts to be retained. Where the model hardly knows their words, as one of a narrow subject the
    general captions, half of what the concept's name changes takes the place of what they change (`NAMED`). Estimates of x_0
    mean the same whatever the module outputs, and differ most where noise is high and a picture's content is decided.
    """

    def __init__(
        self, denoiser: Denoiser, prompts: HeldOutPrompts, latents: Mapping[str, Tensor], how: HeldOutSampling,
        teacher: Weights, mixture: Mixture,
    ):  # fmt: skip
        """`latents`: see `draw_held_out`; `mixture`: the conditions of the pairs' rows."""
        self.denoiser, self.prompts, self.how, self.teacher = denoiser, prompts, how, teacher
        self.latents = {name: tensor.to(denoiser.device) for name, tensor in latents.items()}
        asked, count = prompts.asked, len(prompts.named)
        self.concepts = {name: self._rows_of(name) for name in dict.fromkeys(one.concept for one in asked)}
        self.named = encode_prompts(denoiser, [one.named for one in asked])
        self.others = [
            encode_prompts(denoiser, [one.others[at] for one in asked]) for at in range(len(asked[0].others))
        ]
        generator = torch.Generator().manual_seed(how.seed)
        self.concept = self._noised(self.latents["asked"][:count], LEFT_AT, generator)
        self.pair = self._noised(self.latents["pair"], LEFT_AT, generator.manual_seed(how.seed))
        self.rest = self._noised(self.latents["retained"], MOVED_AT, generator)
        rows = torch.arange(count, device=denoiser.device).repeat(len(LEFT_AT))
        others = {kind: mixture.draw(rows, generator, kind) for kind in tuple(SHARES)[1:]}
        self.words = {"name": self.named[rows], **others}
        self.retained = encode_prompts(denoiser, prompts.retained).repeat(len(MOVED_AT), 1, 1)
        with torch.no_grad():
            self.near = self._clean(*self.pair[:2], self.others[0][rows])
            self.way = self._clean(*self.concept[:2], self.words["name"]) - self.near
            self.before = {kind: self._shares(words) for kind, words in self.words.items()}
            self.guided, empty = self._guided(self.rest, self.retained)
            named = self._noised(self.latents["asked"][:count], MOVED_AT, torch.Generator().manual_seed(how.seed))
            by_name = self._apart(*self._guided(named, self.named[:count].repeat(len(MOVED_AT), 1, 1)))
            self.by_words = [
                max(float(own.sum()), NAMED * float(by_name.mean()) * own.numel())
                for own in self._apart(self.guided, empty).chunk(2, 1)
            ]
            self.clear = self._clarity(self.latents["asked"])

    @property
    def original(self) -> dict[str, int]:
        """By concept: of the pictures that the original draws for `asked` prompts, those that show it clearly."""
        return {name: int((self.clear > CLEAR)[rows].sum()) for name, rows in self.concepts.items()}

    @property
    def pictures(self) -> dict[str, int]:
        """By concept: how many `asked` prompts there are."""
        return {name: len(rows) for name, rows in self.concepts.items()}

    def _rows_of(self, concept: str) -> Tensor:
        """Numbers of a concept's `asked` prompts."""
        rows = [row for row, one in enumerate(self.prompts.asked) if one.concept == concept]
        return torch.tensor(rows, device=self.denoiser.device)

    @cached_property
    def explained(self) -> float:
        """Share of the noise in its own pictures that the original finds, 0 of a network that was never trained."""
        with torch.no_grad():
            errors = self._errors(self.latents["asked"], self.named)
            return 1 - float(errors.mean() / self._errors(self.latents["asked"], None).mean())

    # ------------------------------------------------------------ looking

    @torch.no_grad()
    def look(self) -> Look:
        """What is left and what has moved in the module as it is now."""
        left = [
            float((self._shares(words) / self.before[kind].clamp_min(LEAST)).max())
            for kind, words in self.words.items()
        ]
        off = self._apart(self._guided(self.rest, self.retained)[0], self.guided)
        moved = [float(a.sum()) / b for a, b in zip(off.chunk(2, 1), self.by_words, strict=True)]
        found = self._agreed([*left, *moved])
        return Look(
            dict(zip(self.words, found, strict=False)), dict(zip(("captions", "open"), found[-2:], strict=True))
        )

    @torch.no_grad()
    def draw(self) -> Drawn:
        """What the module draws now."""
        asked = drawn(self.denoiser.generate, [one.prompt for one in self.prompts.asked], self.how, 0)
        rest, before = drawn(self.denoiser.generate, self.prompts.retained, self.how, 1), self.latents["retained"]
        changed = (rest - before).square().sum() / (self.latents["reseeded"] - before).square().sum()
        shown = (self._clarity(asked) > self.clear / 2) & (self.clear > CLEAR)
        *counts, change = self._agreed([*(float(shown[rows].sum()) for rows in self.concepts.values()), float(changed)])
        return Drawn(dict(zip(self.concepts, map(round, counts), strict=True)), change)

    def _agreed(self, values: Sequence[float]) -> list[float]:
        """The first process's figures, by which all decide alike."""
        held = torch.tensor(values, device=self.denoiser.device)
        self.how.group.broadcast([held], 0)
        return held.tolist()

    # ------------------------------------------------------------ predicting

    def _noised(
        self, latents: Tensor, ratios: tuple[float, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and noise of every row at every signal-to-noise ratio, ratio by ratio: (R N, ...) each."""
        process, count = self.denoiser.process, len(latents)
        every = process.snr(torch.arange(self.denoiser.timesteps, device=latents.device)).clamp_min(1e-9).log()
        t = torch.stack([(every - math.log(ratio)).abs().argmin() for ratio in ratios]).repeat_interleave(count)
        noise = torch.randn(len(t), *latents.shape[1:], generator=generator).to(latents)
        return self.denoiser.noised(latents.repeat(len(ratios), 1, 1, 1), noise, t), t, noise

    def _predict(self, noisy: Tensor, t: Tensor, words: Tensor, weights: Weights | None = None) -> Tensor:
        """The module's output, as many rows at a time as are drawn together."""
        size = self.how.batch_size
        rows = [slice(at, at + size) for at in range(0, len(t), size)]
        return torch.cat([self.denoiser.predict(noisy[r], t[r], words[r], weights) for r in rows])

    def _clean(self, noisy: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """Estimate of x_0."""
        return self.denoiser.process.clean(noisy, self._predict(noisy, t, words), t)

    def _shares(self, words: Tensor) -> Tensor:
        """By concept: of the way from pair to concept, how far the module goes under some words: (concepts,)."""
        off, count = self._clean(*self.concept[:2], words) - self.near, len(self.prompts.named)
        went, whole = ((x * self.way).flatten(1).sum(1).view(-1, count).sum(0) for x in (off, self.way))
        return torch.stack(
            [went[r].sum() / whole[r].sum() for r in (rows[rows < count] for rows in self.concepts.values())]
        )

    def _guided(self, noised: tuple[Tensor, Tensor, Tensor], words: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of x_0 under words with guidance, and without words."""
        noisy, t, _ = noised
        empty = self._predict(noisy, t, self.denoiser.unconditional(1).expand_as(words))
        guided = empty + max(self.how.guidance, 1.0) * (self._predict(noisy, t, words) - empty)
        clean = self.denoiser.process.clean
        return clean(noisy, guided, t), clean(noisy, empty, t)

    def _apart(self, one: Tensor, other: Tensor) -> Tensor:
        """Squared distances of estimates: (`MOVED_AT`, N)."""
        return (one - other).square().flatten(1).sum(1).view(len(MOVED_AT), -1)

    # ------------------------------------------------------------ telling

    def _clarity(self, latents: Tensor) -> Tensor:
        """By how much the original explains latents of `asked` prompts better by the concept's name than by other words: (N,) in (-1, 1).

        The diffusion classifier (Li et al., ICCV 2023, arXiv 2303.16203, eq. 7): errors of the output under each of several words.
        """
        mine = self._errors(latents, self.named)
        other = torch.stack([self._errors(latents, words) for words in self.others]).amin(0)
        return (other - mine) / (other + mine)

    def _errors(self, latents: Tensor, words: Tensor | None) -> Tensor:
        """Squared error of the original's output, its mean over `TOLD_AT`, always under the same noise: (N,).

        Args:
            words: (N, tokens, width); None: of an output of zeros.
        """
        noisy, t, noise = self._noised(latents, TOLD_AT, torch.Generator().manual_seed(self.how.seed))
        target = self.denoiser.target(latents.repeat(len(TOLD_AT), 1, 1, 1), noise, t)
        if words is not None:
            target = target - self._predict(noisy, t, words.repeat(len(TOLD_AT), 1, 1), self.teacher)
        return target.square().mean((1, 2, 3)).view(len(TOLD_AT), -1).mean(0)
