"""Erasing a concept from a denoiser, as a Task: losses over cached latents and conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..methods.distributed import FULL_BATCH, BatchSlice
from ..methods.interface import Weights
from ..settings import EraseSettings
from .conditions import Mixture
from .denoiser import Denoiser

EMPTY_SHARE = 0.1  # retain samples under the empty prompt, which guidance needs, where none are shown twice
PERTURBED = 0.1  # noise on prompt embeddings, as a share of their standard deviation (L-CODEC's sigma)
PARTIAL_GUIDANCE = 3.0  # of half-finished pictures (ESD, section 4.1)
UNASKED = ("ascent", "retain")  # repairs whose forget term asks the teacher nothing
DISTILLED = ("distil", "guided")  # retain losses that ask it
LOOKS, GONE = 8, 0.1  # batches behind `kept` and `gone`; share of the way that may be left


@dataclass(frozen=True)
class Samples:
    """What a step shows of one side: (B, ...) each."""

    rows: Tensor  # in the data
    latents: Tensor  # x_0
    t: Tensor
    noise: Tensor
    words: Tensor
    others: Tensor  # rows whose words are asked for instead (random-label)

    def take(self, places: Tensor) -> Samples:
        """The samples at some places."""
        places = places.to(self.rows.device)
        return Samples(*(getattr(self, field.name)[places] for field in fields(self)))


class ErasureTask:
    """A denoiser with a concept to forget: a `Task` over cached latents.

    On noised latents of the concept, the forget term wants what a FROZEN teacher says of something else; the authors use the
    trimmed model's own output on a fresh sample instead, which is unbounded drift. `settings.repair` says of what:

    - anchor: of the very same x_t, under the anchor's prompt. A share of the x_t (`anchor_share`) comes from the anchor's own
      latents: once the concept's prompt leads to the anchor, that is where sampling passes through.
    - paired: of the pair, the latents that the anchor's prompt gave from the same start noise, under the same noise. Wanted
      is the output that leads from the concept's x_t to the teacher's estimate of the pair (ours).
    - random-label: of the same x_t under the prompt of a retain sample (SalUn).
    - negative-guidance: of half-finished pictures of the student's, away from the concept by as much as guidance leads
      towards it (ESD, eq. 7 with eta = 1).
    - ascent: nothing; up the denoising loss. retain: nothing; there is no forget term. none: `anchor`, for those who ask.

    `conditions` says under which words: the concept's own, or a `Mixture`; where a simulated attacker has led the
    weights, half of the forget term is taken under the concept's own. The retain term, `settings.retain_loss`, on everything else:

    - distil: matches the teacher.
    - guided: that under words alone, and for half of the samples also what sampling makes of two answers,
      w eps(x_t, c) - (w - 1) eps(x_t, empty) with w the guidance, over w (ours): there an error in the answer without words
      counts almost as much as one in the other, and a step of the sampling follows neither, but both.
    - denoise: the plain denoising loss. none: nothing.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: dict[str, Tensor],
        settings: EraseSettings,
        mixture: Mixture | None = None,
    ):
        self.denoiser, self.module = denoiser, denoiser.module
        self.data = {name: tensor.to(denoiser.device) for name, tensor in data.items()}
        self.settings, self.mixture = settings, mixture
        self.batch_size = settings.batch_size
        self.teacher: Weights | None = None  # taken before the edit, by the one who edits

    def forget(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """Denoising loss on the concept's latents under the concept's prompts, or under the mixture's words."""
        rows, *drawn, generator = self._draw("forget", "forget", draw)
        clean, t, noise, words = map(part.of, (*drawn, self._words(rows, generator)))
        return part.mean(self.denoiser.loss(clean, words, noise, t), len(rows))

    def retain(self, draw: int) -> Tensor:
        """Denoising loss on the retain latents under their prompts."""
        return self.retain_each(draw).mean()

    def replacement(self, draw: int) -> Tensor:
        """Denoising loss on the pairs of `forget`'s latents under the anchor's prompts, with the same timesteps and noise."""
        rows, _, t, noise, _ = self._draw("forget", "forget", draw)
        return self.denoiser.loss(
            self.data["anchor_latents"][rows], self.data["anchor_condition"][rows], noise, t
        ).mean()

    def relearn(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """Denoising loss on half a batch of the concept's latents under their own prompts."""
        half = math.ceil(self.batch_size / 2)
        rows, latents, t, noise = (part.of(drawn[:half]) for drawn in self._draw("forget", "relearn", draw)[:4])
        words = self.data["forget_condition"][rows]
        return part.mean(self.denoiser.loss(latents, words, noise, t), half)

    def retain_each(self, draw: int) -> Tensor:
        """`retain`'s loss by sample: (B,)."""
        rows, clean, t, noise, _ = self._draw("retain", "retain", draw)
        return self.denoiser.loss(clean, self.data["retain_condition"][rows], noise, t)

    def explain(self, side: str, draw: int) -> Tensor:
        """<eps(x_t, c), d>, with d what the words change, held fixed: (B,).

        `forget`: d = eps(x_t, c) - eps(x_t, c_anchor) on the concept's latents. `retain`: against the empty prompt, on
        the retain latents. The latents are those that the model drew itself, noised anew; the states that its sampling
        passed through are not kept.
        """
        rows, clean, t, noise, _ = self._draw(side, "explain", draw)
        d, noisy = self.denoiser, self.denoiser.noised(clean, noise, t)
        empty = self.data["empty_condition"].expand_as(self.data["retain_condition"][:1])
        other = self.data["anchor_condition"][rows] if side == "forget" else empty.expand(len(rows), -1, -1)
        with d.whole_graph():
            said = d.predict(noisy, t, self.data[f"{side}_condition"][rows])
        with torch.no_grad():
            apart = said - d.predict(noisy, t, other, self.teacher)
        return (said * apart).sum((1, 2, 3))

    def respond(self, draw: int) -> Tensor:
        """|eps(x_t, c) - eps(x_t, c_anchor)|^2 with x_t and c perturbed, t halfway for all: (B,).

        Keys and values depend on the words alone, so these are perturbed as well (ours; L-CODEC perturbs pictures).
        """
        rows, clean, t, noise, generator = self._draw("forget", "respond", draw)
        t = torch.full_like(t, self.denoiser.timesteps // 2)
        noisy = self.denoiser.noised(clean, noise, t)
        words = self.data["forget_condition"][rows]
        words = words + PERTURBED * words.std() * torch.randn(words.shape, generator=generator).to(words)
        other = self.denoiser.predict(noisy, t, self.data["anchor_condition"][rows], self.teacher)
        return (self.denoiser.predict(noisy, t, words) - other).square().mean((1, 2, 3))

    @torch.no_grad()
    def kept(self) -> float:
        """Share of the teacher's output on the retain set, under noise of its own, that the student gives too (R^2)."""
        wrong, whole = 0.0, 0.0
        for draw in range(LOOKS):
            rows, clean, t, noise, _ = self._draw("retain", "kept", draw)
            noisy, words = (
                self.denoiser.noised(clean, noise, t),
                self.data["retain_condition"],
            )
            told = self.denoiser.predict(noisy, t, words[rows], self.teacher)
            wrong += float((self.denoiser.predict(noisy, t, words[rows]) - told).square().sum())
            whole += float((told - told.mean()).square().sum())
        return 1 - wrong / whole

    @torch.no_grad()
    def gone(self) -> bool:
        """Whether the output under the concept's words is at the anchor's, up to `GONE` of the way between the two."""
        left, way = 0.0, 0.0
        for draw in range(LOOKS):
            rows, clean, t, noise, _ = self._draw("forget", "kept", draw)
            d, noisy = self.denoiser, self.denoiser.noised(clean, noise, t)
            words, anchor = self.data["forget_condition"][rows], self.data["anchor_condition"][rows]
            wanted = d.predict(noisy, t, anchor, self.teacher)
            left += float((d.predict(noisy, t, words) - wanted).square().sum())
            way += float((d.predict(noisy, t, words, self.teacher) - wanted).square().sum())
        return left <= GONE * way

    def share(self) -> float:
        """Cached samples to forget over those to keep: how many it was trained on, nobody knows."""
        return len(self.data["forget_latents"]) / len(self.data["retain_latents"])

    def repair(self, draw: int, part: BatchSlice = FULL_BATCH, ahead: bool | None = None) -> tuple[Tensor, Tensor]:
        """Forget and retain terms of a part of a batch, see `Task`: through the teacher once and the student once.

        The samples to be forgotten come first and those to be kept follow, so that small parts hold one side each.
        """
        forget, kept, generator = self._batch(draw)
        places = part.of(torch.arange(2 * self.batch_size))
        asked, held = places[places < self.batch_size], places[places >= self.batch_size] - self.batch_size
        if ahead is not None:
            asked = asked[(asked < self.batch_size // 2) == ahead]
        if ahead:  # as an attacker fine-tunes it
            forget = replace(forget, words=self.data["forget_condition"][forget.rows])
        forget = forget.take(asked[:0] if self.settings.repair == "retain" else asked)
        held = held[:0] if ahead or self.settings.retain_loss == "none" else held
        twice = held[held < shown_twice(self.settings)]
        kept = kept.take(torch.cat([held, twice]))
        kept.words[len(held) :] = self.data["empty_condition"]
        noisy, t = self._seen(forget, generator)
        kept_noisy = self.denoiser.noised(kept.latents, kept.noise, kept.t)
        wanted, kept_wanted = self._wanted(forget, noisy, t, kept, kept_noisy)
        every, times, words = map(torch.cat, ((noisy, kept_noisy), (t, kept.t), (forget.words, kept.words)))
        said, kept_said = self.denoiser.predict(every, times, words).split([len(noisy), len(kept_noisy)])
        errors = _squares(said - wanted)
        if self.settings.repair == "paired":
            errors = self.denoiser.pair_weight(t) * errors
        term = part.mean(errors, self.batch_size)
        off, bare = (kept_said - kept_wanted).split([len(held), len(twice)])
        keeping = part.mean(_squares(off), self.batch_size)
        if len(twice):
            lead = 1 - 1 / max(self.settings.guidance, 1.0)
            keeping = keeping + part.mean(_squares(off[: len(twice)] - lead * bare), shown_twice(self.settings))
        return -term if self.settings.repair == "ascent" else term, keeping

    def _batch(self, draw: int) -> tuple[Samples, Samples, torch.Generator]:
        """What a whole step's batch shows of both sides, and the generator that goes on from there."""
        data, settings, device = self.data, self.settings, self.denoiser.device
        rows, clean, t, noise, generator = self._draw("forget", "repair", draw)
        kept, kept_clean, kept_t, kept_noise, _ = self._draw("retain", "repair retain", draw)
        kept_words = self._kept_condition(kept, generator)
        arrived = torch.rand(len(rows), generator=generator).to(device) < settings.anchor_share
        start = torch.where(arrived[:, None, None, None], data["anchor_latents"][rows], clean)
        words, others = self._words(rows, generator), torch.zeros_like(rows)
        if settings.repair == "random-label":
            others = torch.randint(len(data["retain_condition"]), (len(rows),), generator=generator).to(device)
        return (
            Samples(rows, start, t, noise, words, others),
            Samples(kept, kept_clean, kept_t, kept_noise, kept_words, kept),
            generator,
        )

    def _seen(self, forget: Samples, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t of the forget term and t: noised latents, or pictures that the student left half finished."""
        if self.settings.repair != "negative-guidance":
            return self.denoiser.noised(forget.latents, forget.noise, forget.t), forget.t
        steps = self.settings.sampling_steps
        stop = int(torch.randint(steps, (1,), generator=generator))
        return self.denoiser.half_finished(
            forget.words, forget.noise, steps=steps, stop=stop, guidance=PARTIAL_GUIDANCE
        )

    @torch.no_grad()
    def _wanted(
        self, forget: Samples, noisy: Tensor, t: Tensor, kept: Samples, kept_noisy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the two terms want on their x_t, by what the teacher says in one pass of everything it is asked."""
        d, kind = self.denoiser, self.settings.repair
        questions = self._questions(forget, noisy)
        times = [t] * len(questions)
        if self.settings.retain_loss in DISTILLED:
            questions, times = [*questions, (kept_noisy, kept.words)], [*times, kept.t]
        answers: list[Tensor] = []
        if questions:
            seen, words = zip(*questions, strict=True)
            told = self.denoiser.predict(torch.cat(seen), torch.cat(times), torch.cat(words), self.teacher)
            answers = list(told.split([len(one) for one in seen]))
        kept_wanted = d.target(kept.latents, kept.noise, kept.t)
        if self.settings.retain_loss in DISTILLED:
            kept_wanted = answers.pop()
        if kind in UNASKED:
            return d.target(forget.latents, forget.noise, t), kept_wanted
        if kind == "paired":
            return d.leading_to(d.clean(questions[0][0], answers[0], t), noisy, t), kept_wanted
        return 2 * answers[0] - answers[1] if kind == "negative-guidance" else answers[0], kept_wanted

    def _questions(self, forget: Samples, noisy: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the teacher is asked for the forget term: (x_t, condition) of one batch or two."""
        data, kind, rows = self.data, self.settings.repair, forget.rows
        if kind == "paired":
            pair = self.denoiser.noised(data["anchor_latents"][rows], forget.noise, forget.t)
            return [(pair, data["anchor_condition"][rows])]
        if kind == "random-label":
            return [(noisy, data["retain_condition"][forget.others])]
        if kind == "negative-guidance":
            empty = data["empty_condition"].expand(len(rows), -1, -1)
            return [(noisy, empty), (noisy, data["forget_condition"][rows])]
        return [] if kind in UNASKED else [(noisy, data["anchor_condition"][rows])]

    def _words(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of forget samples: their own prompts', or the mixture's."""
        return self.mixture.draw(rows, generator) if self.mixture else self.data["forget_condition"][rows]

    def _kept_condition(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of retain samples: some under the empty prompt and, when distilling, `other_words` under another's.

        A teacher has an answer for any words on any x_t; where noise hides the picture, the words are all there is.
        """
        conditions, count = self.data["retain_condition"], len(rows)
        empty = 0.0 if shown_twice(self.settings) else EMPTY_SHARE
        lots = torch.rand(2, count, generator=generator).to(rows.device)
        others = torch.randint(len(conditions), (count,), generator=generator).to(rows.device)
        if self.settings.retain_loss in DISTILLED:
            rows = torch.where(lots[0] < self.settings.other_words, others, rows)
        return torch.where((lots[1] < empty)[:, None, None], self.data["empty_condition"], conditions[rows])

    def _draw(self, side: str, purpose: str, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Generator]:
        """Rows, x_0, timesteps and noise of a batch; a function of the seed, the purpose and the number of the draw alone.

        Of pictures that were encoded, x_0 is a sample of the posterior.
        """
        latents, device = self.data[f"{side}_latents"], self.denoiser.device
        purposes = ("forget", "retain", "repair", "repair retain", "relearn", "explain", "respond", "kept")
        seed = (self.settings.seed * 8 + purposes.index(purpose)) * (1 << 24) + draw
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(latents), (self.batch_size,), generator=generator)
        t = torch.randint(self.denoiser.timesteps, (len(rows),), generator=generator)
        noise = torch.randn(len(rows), *latents.shape[1:], generator=generator)
        rows = rows.to(device)
        clean, deviation = latents[rows], self.data.get(f"{side}_deviation")
        if deviation is not None:
            other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed + (1 << 56)))
            clean = clean + deviation[rows] * other.to(device)
        return rows, clean, t.to(device), noise.to(device), generator


def shown_twice(settings: EraseSettings) -> int:
    """Retain samples of a batch that are shown without words too, the first of it."""
    return settings.batch_size // 2 if settings.retain_loss == "guided" else 0


def _squares(error: Tensor) -> Tensor:
    """Mean squares of samples: (B, c, h, w) -> (B,)."""
    return error.square().mean((1, 2, 3))
