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


class ErasureTask:
    """A denoiser with a concept to forget: a `Task` over cached latents.

    On noised latents of the concept, the forget term wants what a FROZEN teacher says of the anchor; the authors use the
    trimmed model's own output on a fresh sample instead, which is unbounded drift. `forget_target` says on which latents
    the teacher is asked:

    - anchor: on the very same x_t, under the anchor's prompt. A share of the x_t (`anchor_share`) comes from the anchor's own
      latents: once the concept's prompt leads to the anchor, that is where sampling passes through.
    - paired: on the pair, the latents that the anchor's prompt gave from the same start noise, under the same noise. Wanted
      is the output that leads from the concept's x_t to the teacher's estimate of the pair (ours; METHODS, section 5).

    `conditions` says under which words: the concept's own, or a `Mixture`. The retain term matches the teacher on everything
    else, or is the plain denoising loss (`retain_loss="denoise"`).
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
        return self._denoising("forget", draw)

    def retain(self, draw: int) -> Tensor:
        """Denoising loss on the retain latents under their prompts."""
        return self._denoising("retain", draw)

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

    def repair(self, draw: int, ahead: Weights | None = None) -> tuple[Tensor, Tensor]:
        """Forget and retain terms of one batch, through the teacher once and the student once.

        With `ahead`, half of the forget samples are seen at those weights and the other half at the student's own.
        """
        d, data, count = self.denoiser, self.data, self.batch_size
        rows, t, noise, generator = self._draw("forget", "repair", draw)
        kept, kept_t, kept_noise, _ = self._draw("retain", "repair retain", draw)
        kept_condition = self._kept_condition(kept, generator)
        arrived = torch.rand(count, generator=generator).to(d.device) < self.settings.anchor_share
        start = torch.where(arrived[:, None, None, None], data["anchor_latents"][rows], data["forget_latents"][rows])
        noisy, kept_noisy = d.noised(start, noise, t), d.noised(data["retain_latents"][kept], kept_noise, kept_t)
        paired = self.settings.forget_target == "paired"
        seen = d.noised(data["anchor_latents"][rows], noise, t) if paired else noisy
        times = torch.cat([t, kept_t])
        with torch.no_grad():
            conditions = torch.cat([data["anchor_condition"][rows], kept_condition])
            told = d.predict(torch.cat([seen, kept_noisy]), times, conditions, self.teacher)
        wanted, kept_wanted = told.split(count)
        if paired:
            wanted = d.leading_to(d.clean(seen, wanted, t), noisy, t)
        if self.settings.retain_loss == "denoise":
            kept_wanted = d.target(data["retain_latents"][kept], kept_noise, kept_t)
        words = self._words(rows, generator)
        noisy, words = torch.cat([noisy, kept_noisy]), torch.cat([words, kept_condition])
        half = count // 2 if ahead else 0
        said = d.predict(noisy[half:], times[half:], words[half:])
        if half:
            said = torch.cat([d.predict(noisy[:half], t[:half], words[:half], weights=ahead), said])
        errors = said - torch.cat([wanted, kept_wanted])
        squares = errors.square().mean((1, 2, 3))  # (2 B,)
        weight = d.pair_weight(t) if paired else torch.ones_like(squares[:count])
        return (weight * squares[:count]).mean(), squares[count:].mean()

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
        return self.denoiser.loss(self.data[f"{side}_latents"][rows], words, noise, t).mean()

    def _draw(self, side: str, purpose: str, draw: int) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        """Rows, timesteps and noise of a batch; a function of the seed, the purpose and the number of the draw alone."""
        latents, device = self.data[f"{side}_latents"], self.denoiser.device
        purposes = ("forget", "retain", "repair", "repair retain", "relearn")
        generator = torch.Generator().manual_seed((self.settings.seed * 8 + purposes.index(purpose)) * (1 << 24) + draw)
        rows = torch.randint(len(latents), (self.batch_size,), generator=generator)
        t = torch.randint(len(self.denoiser.alphas), (len(rows),), generator=generator)
        noise = torch.randn(len(rows), *latents.shape[1:], generator=generator)
        return rows.to(device), t.to(device), noise.to(device), generator


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
