"""Erasing a concept from a denoiser, as a Task: losses over cached latents and conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..methods.distributed import FULL_BATCH, BatchSlice
from ..methods.interface import Weights
from ..methods.losses import Answers, Questions
from ..methods.objectives import loss_of
from ..methods.samples import NoisedSamples
from ..settings import EraseSettings
from . import probes
from .batches import Batches
from .conditions import Mixture
from .denoiser import Denoiser

PERTURBED = 0.1  # noise on prompt embeddings, as a share of their standard deviation (L-CODEC's sigma)


class ErasureTask:
    """A denoiser with a concept to forget: a `Task` over cached latents.

    The repair's forget loss is that of `settings.repair`, under the concept's own words or a `Mixture`; its retain loss
    that of `settings.retain_loss`. Both may ask the teacher, the frozen original.
    """

    def __init__(
        self, denoiser: Denoiser, data: Mapping[str, Tensor], settings: EraseSettings, mixture: Mixture | None = None
    ):
        """`data`: see `dataset.gather`."""
        self.denoiser, self.module = denoiser, denoiser.module
        self.batches = Batches(denoiser, data, settings, mixture)
        self.data = self.batches.data
        self.forget_loss, self.retain_loss = loss_of(settings.repair, "diffusion"), self.batches.retain_loss.diffusion
        self.teacher: Weights | None = None  # taken before the edit, by the one who edits

    # ------------------------------------------------------------ the repair

    def repair(self, draw: int, part: BatchSlice = FULL_BATCH, adversary: bool | None = None) -> tuple[Tensor, Tensor]:
        """Forget and retain loss of a slice of a batch, see `Task`: through the teacher once and the student once."""
        forget, retain = self.batches.step(draw, part, adversary)
        forget, retain = self.forget_loss.samples(forget), self.retain_loss.samples(retain)
        both = [(forget, self.forget_loss.questions(forget)), (retain, self.retain_loss.questions(retain))]
        answers, retain_answers = self._answers(both)
        seen = [(x.noisy, x.t, x.words) for x in (forget, retain)]
        noisy, t, words = map(torch.cat, zip(*seen, strict=True))
        prediction, retain_prediction = self.denoiser.predict(noisy, t, words).split([len(forget), len(retain)])
        return (
            self.forget_loss.loss(forget, prediction, answers),
            self.retain_loss.loss(retain, retain_prediction, retain_answers),
        )

    @torch.no_grad()
    def _answers(self, sides: Sequence[tuple[NoisedSamples, Questions]]) -> list[Answers]:
        """What the teacher predicts, for every side, in one pass of all questions.

        Compute teacher targets first: weights must not be swapped between forward and backward.
        """
        flat = [(noisy, x.t, words) for x, questions in sides for noisy, words in questions]
        if not flat:
            return [[] for _ in sides]
        noisy, t, words = map(torch.cat, zip(*flat, strict=True))
        predictions = self.denoiser.predict(noisy, t, words, self.teacher).split([len(one) for one, *_ in flat])
        answers = iter(predictions)
        return [[next(answers) for _ in questions] for _, questions in sides]

    def relearn(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """Denoising loss on half a batch of the concept's latents under their own prompts."""
        half = math.ceil(self.batches.size / 2)
        rows, latents, t, noise = (part.of(one[:half]) for one in self.batches.draw("forget", "relearn", draw)[:4])
        words = self.data["forget_condition"][rows]
        return part.mean(self.denoiser.loss(latents, words, noise, t), half)

    # ------------------------------------------------------------ losses that scorers and edits take

    def forget(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """Denoising loss on the concept's latents under the concept's prompts, or under the mixture's words."""
        own = self.batches.draw("forget", "forget", draw)
        clean, t, noise, words = map(part.of, (own.latents, own.t, own.noise, self.batches.forget_words(own)))
        return part.mean(self.denoiser.loss(clean, words, noise, t), len(own.rows))

    def retain(self, draw: int) -> Tensor:
        """Denoising loss on the retain latents under their prompts."""
        return self.retain_each(draw).mean()

    def retain_each(self, draw: int) -> Tensor:
        """`retain`'s loss by sample: (B,)."""
        rows, clean, t, noise, *_ = self.batches.draw("retain", "retain", draw)
        return self.denoiser.loss(clean, self.data["retain_condition"][rows], noise, t)

    def replacement(self, draw: int) -> Tensor:
        """Denoising loss on the pairs of `forget`'s latents under the anchor's prompts, with the same timesteps and noise."""
        rows, _, t, noise, *_ = self.batches.draw("forget", "forget", draw)
        anchors, words = self.data["anchor_latents"][rows], self.data["anchor_condition"][rows]
        return self.denoiser.loss(anchors, words, noise, t).mean()

    def explain(self, side: str, draw: int) -> Tensor:
        """<eps(x_t, c), d>, with d what the words change, held fixed: (B,).

        `forget`: d = eps(x_t, c) - eps(x_t, c_anchor) on the concept's latents. `retain`: against the empty prompt, on
        the retain latents. The latents are those that the model generated itself, noised anew; the states of its sampling
        are not stored.
        """
        rows, clean, t, noise, *_ = self.batches.draw(side, "explain", draw)
        d, noisy = self.denoiser, self.denoiser.noised(clean, noise, t)
        empty = self.data["empty_condition"].expand_as(self.data["retain_condition"][:1])
        other = self.data["anchor_condition"][rows] if side == "forget" else empty.expand(len(rows), -1, -1)
        with d.whole_graph():
            output = d.predict(noisy, t, self.data[f"{side}_condition"][rows])
        with torch.no_grad():
            apart = output - d.predict(noisy, t, other, self.teacher)
        return (output * apart).sum((1, 2, 3))

    def respond(self, draw: int) -> Tensor:
        """|eps(x_t, c) - eps(x_t, c_anchor)|^2 with x_t and c perturbed, t halfway for all: (B,).

        Keys and values depend on the words alone, so these are perturbed as well (ours; L-CODEC perturbs pictures).
        """
        rows, clean, t, noise, generator, _ = self.batches.draw("forget", "respond", draw)
        t = torch.full_like(t, self.denoiser.timesteps // 2)
        noisy = self.denoiser.noised(clean, noise, t)
        words = self.data["forget_condition"][rows]
        words = words + PERTURBED * words.std() * torch.randn(words.shape, generator=generator).to(words)
        other = self.denoiser.predict(noisy, t, self.data["anchor_condition"][rows], self.teacher)
        return (self.denoiser.predict(noisy, t, words) - other).square().mean((1, 2, 3))

    def retained(self) -> float:
        """Share of the teacher's output on the retain set that the student gives too."""
        return probes.retained(self.batches, self.teacher)

    def forgotten(self) -> bool:
        """Whether the concept's words have come to mean the anchor."""
        return probes.forgotten(self.batches, self.teacher)

    def share(self) -> float:
        """Cached samples to forget over those to retain: how many it was trained on, nobody knows."""
        return len(self.data["forget_latents"]) / len(self.data["retain_latents"])
