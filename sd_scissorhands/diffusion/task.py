"""The data of an erasure, gathered once and cached as latents and text embeddings, and the Task made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..settings import EraseSettings, UserError
from ..unlearn.task import Weights
from ..unlearn.team import ALONE, WHOLE, Part, Team
from .conditions import Mixture
from .denoiser import Denoiser

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHER_SHARE = 0.5  # retain samples under the words of another retain sample
EMPTY_SHARE = 0.1  # retain samples under the empty prompt, which classifier-free guidance needs
PERTURBED = 0.1  # noise on prompt embeddings, as a share of their standard deviation (L-CODEC's sigma)
PARTIAL_GUIDANCE = 3.0  # of half-finished pictures (ESD, section 4.1)
AT_ONCE = {"low": 2, "balanced": 8, "fast": 16}  # large pictures that are drawn together
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

    `conditions` says under which words: the concept's own, or a `Mixture`. The retain term matches the teacher on everything
    else, is the plain denoising loss (`retain_loss="denoise"`), or is left out (`none`).
    """

    def __init__(
        self, denoiser: Denoiser, data: dict[str, Tensor], settings: EraseSettings, mixture: Mixture | None = None
    ):
        self.denoiser, self.module = denoiser, denoiser.module
        self.data = {name: tensor.to(denoiser.device) for name, tensor in data.items()}
        self.settings, self.mixture = settings, mixture
        self.batch_size = settings.batch_size
        self.teacher: Weights | None = None  # taken before the edit, by the one who edits

    def forget(self, draw: int) -> Tensor:
        """Denoising loss on the concept's latents under the concept's prompts, or under the mixture's words."""
        return self._denoising("forget", draw).mean()

    def retain(self, draw: int) -> Tensor:
        """Denoising loss on the retain latents under their prompts."""
        return self.retain_each(draw).mean()

    def replacement(self, draw: int) -> Tensor:
        """Denoising loss on the pairs of `forget`'s latents under the anchor's prompts, with the same timesteps and noise."""
        rows, t, noise, _ = self._draw("forget", "forget", draw)
        return self.denoiser.loss(
            self.data["anchor_latents"][rows], self.data["anchor_condition"][rows], noise, t
        ).mean()

    def relearn(self, draw: int, part: Part = WHOLE) -> Tensor:
        """Denoising loss on half a batch of the concept's latents under their own prompts."""
        half = math.ceil(self.batch_size / 2)
        rows, t, noise = (part.of(drawn[:half]) for drawn in self._draw("forget", "relearn", draw)[:3])
        latents, words = self.data["forget_latents"][rows], self.data["forget_condition"][rows]
        return part.mean(self.denoiser.loss(latents, words, noise, t), half)

    def retain_each(self, draw: int) -> Tensor:
        """`retain`'s loss by sample: (B,)."""
        return self._denoising("retain", draw)

    def explain(self, side: str, draw: int) -> Tensor:
        """<eps(x_t, c), d>, with d what the words change, held fixed: (B,).

        `forget`: d = eps(x_t, c) - eps(x_t, c_anchor) on the concept's latents. `retain`: against the empty prompt, on
        the retain latents. The latents are those that the model drew itself, noised anew; the states that its sampling
        passed through are not kept.
        """
        rows, t, noise, _ = self._draw(side, "explain", draw)
        d, noisy = self.denoiser, self.denoiser.noised(self.data[f"{side}_latents"][rows], noise, t)
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
        rows, t, noise, generator = self._draw("forget", "respond", draw)
        t = torch.full_like(t, len(self.denoiser.alphas) // 2)
        noisy = self.denoiser.noised(self.data["forget_latents"][rows], noise, t)
        words = self.data["forget_condition"][rows]
        words = words + PERTURBED * words.std() * torch.randn(words.shape, generator=generator).to(words)
        other = self.denoiser.predict(noisy, t, self.data["anchor_condition"][rows], self.teacher)
        return (self.denoiser.predict(noisy, t, words) - other).square().mean((1, 2, 3))

    @torch.no_grad()
    def kept(self) -> float:
        """Share of the teacher's output on the retain set, under noise of its own, that the student gives too (R^2)."""
        wrong, whole = 0.0, 0.0
        for draw in range(LOOKS):
            rows, t, noise, _ = self._draw("retain", "kept", draw)
            noisy, words = (
                self.denoiser.noised(self.data["retain_latents"][rows], noise, t),
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
            rows, t, noise, _ = self._draw("forget", "kept", draw)
            d, noisy = self.denoiser, self.denoiser.noised(self.data["forget_latents"][rows], noise, t)
            words, anchor = self.data["forget_condition"][rows], self.data["anchor_condition"][rows]
            wanted = d.predict(noisy, t, anchor, self.teacher)
            left += float((d.predict(noisy, t, words) - wanted).square().sum())
            way += float((d.predict(noisy, t, words, self.teacher) - wanted).square().sum())
        return left <= GONE * way

    def share(self) -> float:
        """Cached samples to forget over those to keep: how many it was trained on, nobody knows."""
        return len(self.data["forget_latents"]) / len(self.data["retain_latents"])

    def repair(self, draw: int, part: Part = WHOLE, ahead: bool | None = None) -> tuple[Tensor, Tensor]:
        """Forget and retain terms of a part of a batch, see `Task`: through the teacher once and the student once."""
        forget, kept, generator = self._batch(draw)
        places = part.of(torch.arange(self.batch_size))
        asked = places if ahead is None else places[(places < self.batch_size // 2) == ahead]
        forget = forget.take(asked[:0] if self.settings.repair == "retain" else asked)
        kept = kept.take(places[:0] if ahead or self.settings.retain_loss == "none" else places)
        noisy, t = self._seen(forget, generator)
        kept_noisy = self.denoiser.noised(kept.latents, kept.noise, kept.t)
        wanted, kept_wanted = self._wanted(forget, noisy, t, kept, kept_noisy)
        every, times, words = map(torch.cat, ((noisy, kept_noisy), (t, kept.t), (forget.words, kept.words)))
        said, kept_said = self.denoiser.predict(every, times, words).split([len(noisy), len(kept_noisy)])
        errors, kept_errors = _squares(said - wanted), _squares(kept_said - kept_wanted)
        if self.settings.repair == "paired":
            errors = self.denoiser.pair_weight(t) * errors
        term = part.mean(errors, self.batch_size)
        return -term if self.settings.repair == "ascent" else term, part.mean(kept_errors, self.batch_size)

    def _batch(self, draw: int) -> tuple[Samples, Samples, torch.Generator]:
        """What a whole step's batch shows of both sides, and the generator that goes on from there."""
        data, settings, device = self.data, self.settings, self.denoiser.device
        rows, t, noise, generator = self._draw("forget", "repair", draw)
        kept, kept_t, kept_noise, _ = self._draw("retain", "repair retain", draw)
        kept_words = self._kept_condition(kept, generator)
        arrived = torch.rand(len(rows), generator=generator).to(device) < settings.anchor_share
        start = torch.where(arrived[:, None, None, None], data["anchor_latents"][rows], data["forget_latents"][rows])
        words, others = self._words(rows, generator), torch.zeros_like(rows)
        if settings.repair == "random-label":
            others = torch.randint(len(data["retain_condition"]), (len(rows),), generator=generator).to(device)
        return (
            Samples(rows, start, t, noise, words, others),
            Samples(kept, data["retain_latents"][kept], kept_t, kept_noise, kept_words, kept),
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
        questions = self._questions(forget, noisy) if len(noisy) else []
        times = [t] * len(questions)
        if self.settings.retain_loss == "distil":
            questions, times = [*questions, (kept_noisy, kept.words)], [*times, kept.t]
        answers: list[Tensor] = []
        if questions:
            seen, words = zip(*questions, strict=True)
            told = d.predict(torch.cat(seen), torch.cat(times), torch.cat(words), self.teacher)
            answers = list(told.split([len(one) for one in seen]))
        kept_wanted = d.target(kept.latents, kept.noise, kept.t)
        if self.settings.retain_loss == "distil":
            kept_wanted = answers.pop()
        if kind == "ascent" or not len(noisy):
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
        return [] if kind == "ascent" else [(noisy, data["anchor_condition"][rows])]

    def _words(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of forget samples: their own prompts', or the mixture's."""
        return self.mixture.draw(rows, generator) if self.mixture else self.data["forget_condition"][rows]

    def _kept_condition(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions of retain samples: a share under the empty prompt and, when distilling, a share under another's.

        A teacher has an answer for any words on any x_t; where noise hides the picture, the words are all there is.
        """
        conditions, count = self.data["retain_condition"], len(rows)
        lots = torch.rand(2, count, generator=generator).to(rows.device)
        others = torch.randint(len(conditions), (count,), generator=generator).to(rows.device)
        if self.settings.retain_loss == "distil":
            rows = torch.where(lots[0] < OTHER_SHARE, others, rows)
        return torch.where((lots[1] < EMPTY_SHARE)[:, None, None], self.data["empty_condition"], conditions[rows])

    def _denoising(self, side: str, draw: int) -> Tensor:
        rows, t, noise, generator = self._draw(side, side, draw)
        words = self._words(rows, generator) if side == "forget" else self.data["retain_condition"][rows]
        return self.denoiser.loss(self.data[f"{side}_latents"][rows], words, noise, t)

    def _draw(self, side: str, purpose: str, draw: int) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        """Rows, timesteps and noise of a batch; a function of the seed, the purpose and the number of the draw alone."""
        latents, device = self.data[f"{side}_latents"], self.denoiser.device
        purposes = ("forget", "retain", "repair", "repair retain", "relearn", "explain", "respond", "kept")
        generator = torch.Generator().manual_seed((self.settings.seed * 8 + purposes.index(purpose)) * (1 << 24) + draw)
        rows = torch.randint(len(latents), (self.batch_size,), generator=generator)
        t = torch.randint(len(self.denoiser.alphas), (len(rows),), generator=generator)
        noise = torch.randn(len(rows), *latents.shape[1:], generator=generator)
        return rows.to(device), t.to(device), noise.to(device), generator


def _squares(error: Tensor) -> Tensor:
    """Mean squares of samples: (B, c, h, w) -> (B,)."""
    return error.square().mean((1, 2, 3))


# ---------------------------------------------------------------- gathering


def gather(
    denoiser: Denoiser,
    settings: EraseSettings,
    pairs: Sequence[tuple[str, str]],
    keep: Sequence[str],
    *,
    team: Team = ALONE,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """Everything the task needs, computed once.

    Args:
        pairs: (forget prompt, neutral twin), as many as `settings.forget_count`.
        keep: retain prompts, as many as `settings.retain_count`.
        team: who share the drawing.
        tick: called with the number of pictures made or read.

    Returns:
        forget_latents and anchor_latents (N, c, h, w; the same start noise), forget_condition and anchor_condition (N, tokens, width), retain_latents
        (M, c, h, w), retain_condition (M, tokens, width), empty_condition (tokens, width); float32 on the CPU. Forget
        latents are never decoded.

    Raises:
        UserError: a user's picture cannot be read.
    """
    forget_prompts, anchors = [forget for forget, _ in pairs], [anchor for _, anchor in pairs]
    data = {
        "forget_latents": _latents(denoiser, settings, settings.forget_images, forget_prompts, 0, team, tick),
        "anchor_latents": _latents(denoiser, settings, None, anchors, 0, team, tick),
        "retain_latents": _latents(denoiser, settings, settings.retain_images, keep, 1, team, tick),
        "forget_condition": _encode(denoiser, forget_prompts),
        "anchor_condition": _encode(denoiser, anchors),
        "retain_condition": _encode(denoiser, keep),
        "empty_condition": _encode(denoiser, [""])[0],
    }
    return {name: tensor.cpu() for name, tensor in data.items()}


def _encode(denoiser: Denoiser, prompts: Sequence[str]) -> Tensor:
    return torch.cat([denoiser.encode(prompts[at : at + 64]) for at in range(0, len(prompts), 64)])


def _latents(
    denoiser: Denoiser, settings: EraseSettings, folder: str | None, prompts: Sequence[str], side: int, team: Team, tick
) -> Tensor:
    if folder:
        return encode_pictures(denoiser, list_pictures(Path(folder)), len(prompts), settings.seed, tick)
    seeds = [(settings.seed * 2 + side) * 1_000_000 + row for row in range(len(prompts))]
    batch = 32 if denoiser.picture_size <= 64 else AT_ONCE[settings.memory]
    return denoiser.generate(
        prompts,
        seeds,
        steps=settings.sampling_steps,
        guidance=settings.guidance,
        batch_size=batch,
        team=team,
        tick=tick,
    )


def encode_pictures(denoiser: Denoiser, files: Sequence[Path], count: int, seed: int, tick) -> Tensor:
    """`count` latents from the files in turn, each pass under new posterior noise."""
    latents = []
    for row in range(count):
        latents.append(
            denoiser.latents(read_picture(files[row % len(files)], denoiser.picture_size), seed * 1_000_003 + row)
        )
        tick(1)
    return torch.cat(latents)


def list_pictures(folder: Path) -> list[Path]:
    """Picture files of a directory, sorted.

    Raises:
        UserError: no such directory, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory of pictures")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise UserError(f"{folder} holds no picture ({', '.join(PICTURES)})")
    return files


def read_picture(file: Path, size: int) -> Tensor:
    """A picture, its centre square resized: (1, 3, size, size) float32 in [-1, 1].

    Raises:
        UserError: not a readable picture.
    """
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise UserError(f"{file} is no readable picture: {error}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1


def spread(items: Sequence, count: int, seed: int) -> list:
    """`count` items in a seeded random order; every item is used before any is used again."""
    rng = np.random.default_rng(seed)
    order = [int(i) for _ in range(math.ceil(count / len(items))) for i in rng.permutation(len(items))]
    return [items[i] for i in order[:count]]
