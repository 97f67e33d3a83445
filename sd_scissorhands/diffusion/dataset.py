"""The data of an erasure, gathered once: what the model draws and the user's pictures as latents, prompts as conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..methods.distributed import SINGLE_PROCESS, ProcessGroup
from ..picture_folders import list_pictures, named
from ..pictures import PictureError, centre_square, read_frames, read_many, refuse_unreadable
from ..settings import EraseSettings
from .denoiser import Denoiser
from .drawing_again import DrawLatents
from .probes import shows

AT_ONCE = {"low": 2, "balanced": 8, "fast": 16}  # large pictures that are sampled together


def gather(
    denoiser: Denoiser,
    settings: EraseSettings,
    pairs: Sequence[tuple[str, str]],
    retain: Sequence[str],
    named: Sequence[Sequence[str]] = (),
    *,
    draw: DrawLatents | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """Everything the task needs, computed once.

    Args:
        pairs: (forget prompt, the same with the anchor), as many as `settings.forget_count` for each concept.
        retain: retain prompts, as many as `settings.retain_count`.
        named: for every concept, the last retain prompts with its name in them: of these, pictures that show one are left out.
        draw: what draws; None: the denoiser, anew.
        group: of processes, which share the sampling.
        tick: called with the number of pictures made or read.

    Returns:
        forget_latents and anchor_latents (N, c, h, w; the same start noise), forget_condition and anchor_condition (N, tokens, width), retain_latents
        (M, c, h, w), retain_condition (M, tokens, width), empty_condition (tokens, width); of a user's pictures, whose latents are
        the posterior's means, forget_deviation or retain_deviation too, shaped as the latents. float32 on the CPU. Forget latents
        are never decoded.

    Raises:
        UserError: a user's picture cannot be read.
    """
    forget, anchors = [prompt for prompt, _ in pairs], [anchor for _, anchor in pairs]
    drawn = partial(_drawn, denoiser, settings, draw or denoiser.generate, group=group, tick=tick)
    if settings.forget_images:
        data = _read(denoiser, settings, "forget", len(forget), tick) | {"anchor_latents": drawn(anchors, 0)}
    else:
        both = drawn([*forget, *anchors], 0, 2).chunk(2)
        data = {"forget_latents": both[0], "anchor_latents": both[1]}
    if settings.retain_images:
        data |= _read(denoiser, settings, "retain", len(retain), tick)
    else:
        data |= {"retain_latents": drawn(retain, 1)}
    for name, prompts in (("forget", forget), ("anchor", anchors), ("retain", retain)):
        data[f"{name}_condition"] = encode_prompts(denoiser, prompts)
    data["empty_condition"] = denoiser.unconditional(1)[0]
    if named:
        data |= _without_concepts(denoiser, data, named, settings.seed)
    return {name: tensor.cpu() for name, tensor in data.items()}


def _drawn(
    denoiser: Denoiser, settings: EraseSettings, draw: DrawLatents, prompts: Sequence[str], side: int, sets: int = 1, *,
    group: ProcessGroup, tick: Callable[[int], None],
) -> Tensor:  # fmt: skip
    """Latents of `sets` sets of prompts, one behind the other, each from the same seeds; `side`: 0 forget, 1 retain."""
    seeds = [(settings.seed * 2 + side) * 1_000_000 + row for row in range(len(prompts) // sets)] * sets
    steps = (side and settings.retain_sampling_steps) or settings.sampling_steps
    return draw(
        prompts, seeds, steps=steps, guidance=settings.guidance, batch_size=at_once(denoiser, settings.memory),
        scheduler=scheduler_of(settings), group=group, tick=tick,
    )  # fmt: skip


def _read(
    denoiser: Denoiser, settings: EraseSettings, side: str, count: int, tick: Callable[[int], None]
) -> dict[str, Tensor]:
    """Latents of the user's pictures of a side."""
    files = list_pictures(Path(getattr(settings, f"{side}_images")), settings.recursive).files
    mean, deviation = encode_pictures(denoiser, files, count, tick)
    return {f"{side}_latents": mean, f"{side}_deviation": deviation}


def pair_correlation(data: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """Mean correlation of the concepts' latents with their pairs', and with other rows' pairs; None without pairs of their own.

    The paired target turns one picture into the other: what they have in common need not change. Pairs that have no more in
    common than any two pictures teach a blur.
    """
    if "forget_deviation" in data or len(data["forget_latents"]) < 2:
        return None
    forget, pair = (data[f"{side}_latents"].flatten(1) for side in ("forget", "anchor"))
    forget, pair = (x - x.mean(1, keepdim=True) for x in (forget, pair))

    def mean(other: Tensor) -> float:
        """Of every row with the same row of `other`."""
        return float(torch.nn.functional.cosine_similarity(forget, other, dim=1).mean())

    return mean(pair), mean(pair.roll(1, 0))


def _without_concepts(
    denoiser: Denoiser, data: dict[str, Tensor], named: Sequence[Sequence[str]], seed: int
) -> dict[str, Tensor]:
    """The retain side without pictures that show a concept, among the last ones; see `named` of `gather`."""
    names, last = ("retain_latents", "retain_condition"), len(named[0])
    latents, own = (data[name][-last:] for name in names)
    shown = torch.stack(
        [shows(denoiser, latents, own, encode_prompts(denoiser, texts), seed=seed) for texts in named]
    ).any(0)
    stays = torch.cat([torch.ones(len(data[names[0]]) - last, dtype=torch.bool), ~shown])
    return {name: data[name][stays.to(data[name].device)] for name in names}


def encode_prompts(denoiser: Denoiser, prompts: Sequence[str]) -> Tensor:
    """Conditions of any number of prompts: (N, tokens, width)."""
    return torch.cat([denoiser.encode(prompts[at : at + 64]) for at in range(0, len(prompts), 64)])


def scheduler_of(settings: EraseSettings) -> str:
    """By which the original's pictures are drawn, see `Changes`."""
    return "" if settings.solver == "own" else settings.solver


def at_once(denoiser: Denoiser, memory: str) -> int:
    """Pictures that are sampled together."""
    return 32 if denoiser.small else AT_ONCE[memory]


def encode_pictures(denoiser: Denoiser, files: Sequence[Path], count: int, tick) -> tuple[Tensor, Tensor]:
    """Posterior means and deviations of `count` pictures, the files in turn, each encoded once: (N, c, h, w) twice."""
    moments = []
    for file in files[:count]:
        moments.append(denoiser.moments(read_picture(file, denoiser.picture_size)))
        tick(1)
    tick(count - len(moments))
    rows = torch.arange(count) % len(moments)
    mean, deviation = (torch.cat(parts)[rows.to(denoiser.device)] for parts in zip(*moments, strict=True))
    return mean, deviation


def check_pictures(where: str, folder: str, count: int, *, recursive: bool = False) -> list[str]:
    """Read the first `count` pictures of a folder, which are to be learned from; remarks on what is left out.

    All that cannot be read are refused at once, and none is left out: a model must not have learned from fewer pictures
    than its run records.

    Raises:
        UserError: see `list_pictures`, or pictures that cannot be read.
    """
    listing = list_pictures(Path(folder), recursive)
    errors, several = [], []
    for path, found in read_many(listing.files[:count], "first"):
        if isinstance(found, PictureError):
            errors.append(found)
        elif found.total > 1:
            several.append(path.name)
    refuse_unreadable(f"{where} {folder}", errors)
    firsts = f"{where}: of files with several frames the first is learned from: {named(several)}"
    unused = f"{where}: of {len(listing.files):,} pictures the first {count:,} by name are learned from"
    return listing.remarks(where) + [unused] * (count < len(listing.files)) + [firsts] * bool(several)


def read_picture(file: Path, size: int) -> Tensor:
    """A picture's first frame, on white, its centre square resized: (1, 3, size, size) float32 in [-1, 1].

    Raises:
        PictureError: not a readable picture.
    """
    square = centre_square(read_frames(file, "first", background=255)[0], size)
    return torch.from_numpy(square).permute(2, 0, 1)[None].float() / 127.5 - 1
