"""The data of an erasure, gathered once and cached as latents and text embeddings, and the Task made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..settings import EraseSettings, UserError
from ..unlearn.task import Weights
from .conditions import Mixture
from .denoiser import Denoiser

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHER_SHARE = 0.5  # retain samples under the words of another retain sample
EMPTY_SHARE = 0.1  # retain samples under the empty prompt, which classifier-free guidance needs
PERTURBED = 0.1  # noise on prompt embeddings, as a share of their standard deviation (L-CODEC's sigma)
PARTIAL_GUIDANCE = 3.0  # of half-finished pictures (ESD, section 4.1)
LOOKS, GONE = 8, 0.1  # batches behind `kept` and `gone`; share of the way that may be left


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
        self.teacher: nn.Module | None = None  # taken before the edit, by the one who edits

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

    def relearn(self, draw: int, weights: Weights) -> Tensor:
        """Denoising loss on half a batch of the concept's latents under their own prompts, at the given weights."""
        half = slice(math.ceil(self.batch_size / 2))
        rows, t, noise = (part[half] for part in self._draw("forget", "relearn", draw)[:3])
        latents, words = self.data["forget_latents"][rows], self.data["forget_condition"][rows]
        return self.denoiser.loss(latents, words, noise, t, weights).mean()

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

    def repair(self, draw: int, ahead: Weights | None = None) -> tuple[Tensor, Tensor]:
        """Forget and retain terms of one batch, through the teacher once and the student once.

        With `ahead`, half of the forget samples are seen at those weights and the other half at the student's own.
        """
        d, data, settings = self.denoiser, self.data, self.settings
        rows, t, noise, generator = self._draw("forget", "repair", draw)
        kept, kept_t, kept_noise, _ = self._draw("retain", "repair retain", draw)
        kept_condition = self._kept_condition(kept, generator)
        arrived = torch.rand(len(rows), generator=generator).to(d.device) < settings.anchor_share
        start = torch.where(arrived[:, None, None, None], data["anchor_latents"][rows], data["forget_latents"][rows])
        noisy, kept_noisy = d.noised(start, noise, t), d.noised(data["retain_latents"][kept], kept_noise, kept_t)
        words = self._words(rows, generator)
        if settings.repair == "negative-guidance":
            stop = int(torch.randint(settings.sampling_steps, (1,), generator=generator))
            noisy, t = d.half_finished(
                words, noise, steps=settings.sampling_steps, stop=stop, guidance=PARTIAL_GUIDANCE
            )
        if settings.repair == "retain":
            noisy, t, words = noisy[:0], t[:0], words[:0]
        if settings.retain_loss == "none":
            kept_noisy, kept_t, kept_condition = kept_noisy[:0], kept_t[:0], kept_condition[:0]
        questions = self._questions(rows, noisy, noise, t, generator) if len(noisy) else []
        seen, asked = zip(*questions, (kept_noisy, kept_condition), strict=True)
        with torch.no_grad():
            told = d.predict(
                torch.cat(seen), torch.cat([*[t] * len(questions), kept_t]), torch.cat(asked), self.teacher
            )
        *answers, kept_wanted = told.split([*[len(noisy)] * len(questions), len(kept_noisy)])
        if settings.retain_loss == "denoise":
            kept_wanted = d.target(data["retain_latents"][kept], kept_noise, kept_t)
        pairs = ((noisy, kept_noisy), (t, kept_t), (words, kept_condition))
        every, times, conditions = (torch.cat(pair) for pair in pairs)
        said, kept_said = self._said(every, times, conditions, len(noisy), ahead).split([len(noisy), len(kept_noisy)])
        retain = _mean_square(kept_said - kept_wanted)
        if not len(noisy):
            return torch.zeros_like(retain), retain
        if settings.repair == "ascent":
            return -_mean_square(said - d.target(start, noise, t)), retain
        weight = d.pair_weight(t) if settings.repair == "paired" else None
        return _mean_square(said - self._wanted(seen[0], answers, noisy, t), weight), retain

    def _questions(
        self, rows: Tensor, noisy: Tensor, noise: Tensor, t: Tensor, generator: torch.Generator
    ) -> list[tuple[Tensor, Tensor]]:
        """What the teacher is asked for the forget term: (x_t, condition) of one batch or two."""
        data, kind = self.data, self.settings.repair
        if kind == "paired":
            return [(self.denoiser.noised(data["anchor_latents"][rows], noise, t), data["anchor_condition"][rows])]
        if kind == "random-label":
            other = torch.randint(len(data["retain_condition"]), (len(rows),), generator=generator).to(rows.device)
            return [(noisy, data["retain_condition"][other])]
        if kind == "negative-guidance":
            empty = data["empty_condition"].expand(len(rows), -1, -1)
            return [(noisy, empty), (noisy, data["forget_condition"][rows])]
        return [] if kind == "ascent" else [(noisy, data["anchor_condition"][rows])]

    def _wanted(self, seen: Tensor, answers: list[Tensor], noisy: Tensor, t: Tensor) -> Tensor:
        """What the forget term wants on x_t, by what the teacher answered."""
        if self.settings.repair == "paired":
            return self.denoiser.leading_to(self.denoiser.clean(seen, answers[0], t), noisy, t)
        if self.settings.repair == "negative-guidance":
            return 2 * answers[0] - answers[1]
        return answers[0]

    def _said(self, noisy: Tensor, t: Tensor, words: Tensor, count: int, ahead: Weights | None) -> Tensor:
        """The student's outputs, the first half of the `count` forget samples at the weights `ahead`."""
        half = count // 2 if ahead else 0
        said = self.denoiser.predict(noisy[half:], t[half:], words[half:])
        if not half:
            return said
        return torch.cat([self.denoiser.predict(noisy[:half], t[:half], words[:half], weights=ahead), said])

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


def _mean_square(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean square of (B, c, h, w), samples weighted by (B,); 0 of no samples."""
    squares = error.square().mean((1, 2, 3))
    return (squares if weight is None else weight * squares).mean() if len(squares) else squares.sum()


# ---------------------------------------------------------------- gathering


def gather(
    denoiser: Denoiser,
    settings: EraseSettings,
    pairs: Sequence[tuple[str, str]],
    keep: Sequence[str],
    *,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """Everything the task needs, computed once.

    Args:
        pairs: (forget prompt, neutral twin), as many as `settings.forget_count`.
        keep: retain prompts, as many as `settings.retain_count`.
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
        "forget_latents": _latents(denoiser, settings, settings.forget_images, forget_prompts, 0, tick),
        "anchor_latents": _latents(denoiser, settings, None, anchors, 0, tick),
        "retain_latents": _latents(denoiser, settings, settings.retain_images, keep, 1, tick),
        "forget_condition": _encode(denoiser, forget_prompts),
        "anchor_condition": _encode(denoiser, anchors),
        "retain_condition": _encode(denoiser, keep),
        "empty_condition": _encode(denoiser, [""])[0],
    }
    return {name: tensor.cpu() for name, tensor in data.items()}


def _encode(denoiser: Denoiser, prompts: Sequence[str]) -> Tensor:
    return torch.cat([denoiser.encode(prompts[at : at + 64]) for at in range(0, len(prompts), 64)])


def _latents(
    denoiser: Denoiser, settings: EraseSettings, folder: str | None, prompts: Sequence[str], side: int, tick
) -> Tensor:
    if folder:
        return encode_pictures(denoiser, list_pictures(Path(folder)), len(prompts), settings.seed, tick)
    seeds = [(settings.seed * 2 + side) * 1_000_000 + row for row in range(len(prompts))]
    batch = 32 if denoiser.picture_size <= 64 else 4
    return denoiser.generate(
        prompts, seeds, steps=settings.sampling_steps, guidance=settings.guidance, batch_size=batch, tick=tick
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
