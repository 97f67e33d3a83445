"""Sampling for every evaluation and every attack: prompts in, judged pictures out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.layout import channels_last
from ..diffusion.sampler import UNCHANGED, Changes
from ..disk import atomic, hash_text
from ..errors import UserError
from ..lineage import runs_behind, started_from
from ..machine import Processes, resolve_device
from ..models.load import LoadedPipeline, open_pipeline
from ..models.locate import locate
from ..naming import absolute, model_flag
from ..results.manifest import MANIFEST
from ..run import Progress, Run, silent
from .batch_size import decoded, held_by_memory, lanes
from .judges.base import Features, Judge
from .prompts import Row
from .records import Ledger, feature_rows, record_of, thumbnails

SHOWN = 8  # pictures of each kind of rows that are saved for the report
SAMPLER = 1  # counts the changes here and in `Denoiser` after which the same row gives another picture
SAMPLED_BY = ("torch", "diffusers", "transformers")  # that a picture depends on

Made = TypeVar("Made")
Done = TypeVar("Done")
Encode = Callable[[Sequence[Row]], Tensor]  # rows -> conditions (B, tokens, width)


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How an evaluation draws."""

    steps: int | None = None  # None: 50, or the embedded model's own
    guidance: float | None = None  # None: the family's own; a protocol's comes first
    batch_size: int | None = None  # pictures drawn, judged and written at a time; None: see `batch_size`
    device: str = "auto"
    keep_images: bool = False  # keep every picture
    progress: Progress = silent
    processes: Processes = field(default_factory=Processes.here)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, where their rows do not say otherwise; goes into every result."""

    steps: int
    guidance: float
    size: int  # pixels a side
    scheduler: str  # the pipeline's own, whatever `changes` has
    changes: Changes = UNCHANGED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; changes only where there are some."""
        changes = self.changes.to_json()
        values = {name: value for name, value in asdict(self).items() if name != "changes"}
        return values | ({"changes": changes} if changes else {})

    @classmethod
    def of(cls, opened: LoadedPipeline, steps: int | None = None, guidance: float | None = None) -> Sampling:
        """50 steps and the family's own guidance (7.5, as is published, for SD 1), or what the embedded model was measured with."""
        return cls(
            steps or opened.sampling["steps"],
            opened.sampling["guidance"] if guidance is None else guidance,
            opened.family.picture_size,
            type(opened.pipeline.scheduler).__name__,
        )


def check_models(model: str, baseline: str | None) -> None:
    """Find both models and check their files, so that a bad baseline is refused before hours of sampling with the model.

    Raises:
        UserError: what is wrong with which.
    """
    locate(model).check()
    if baseline is None:
        return
    with model_flag("--baseline"):
        files = locate(baseline)
        files.check()
    if (runs := runs_behind(model)) and started_from(runs[-1]) == absolute(baseline):
        named = runs[-1].source.files_sha256
        if named and files.sha256 != named:
            raise UserError(
                f"{baseline} is not what it was when {model} was made from it (sha256 {files.sha256[:12]}, {MANIFEST} says "
                f"{named[:12]}): put it back, or name another with --baseline"
            )


def open_for_sampling(model: str, device: str, processes: Processes | None = None) -> tuple[LoadedPipeline, Denoiser]:
    """A model ready to draw, in float32; on CUDA under autocast in the half precision that its family bears.

    Raises:
        UserError: it cannot be loaded as it is on disk, or it is no longer the one in its run's manifest.
    """
    device = resolve_device((processes or Processes()).device(device))
    opened = open_pipeline(model, device=device)
    manifest = opened.directory.parent / MANIFEST
    if opened.directory.name == "model" and manifest.exists():
        erased = Run.read(opened.directory.parent).manifest.erased
        if (made := erased.weights_sha256 if erased else "") not in ("", opened.weights_sha256):
            raise UserError(
                f"{model} is not the model that its run made (weights {opened.weights_sha256[:12]}, {MANIFEST} says {made[:12]})"
            )
    if not device.startswith("cuda"):
        return opened, Denoiser(opened.pipeline)
    for module in (opened.denoiser, opened.pipeline.vae):
        channels_last(module)
    return opened, Denoiser(opened.pipeline, mixed_precision=opened.family.dtype)


@dataclass
class Recorder:
    """Draws rows with a model, has them judged, and records the answers."""

    rows: Sequence[Row]
    judges: Sequence[Judge]
    folder: Path  # where ledgers and pictures go
    options: DrawOptions
    samples: frozenset[int] = frozenset()  # numbers of the rows whose pictures the report shows
    features: Features | None = None  # recorded too, for distances
    header: dict[str, Any] = field(default_factory=dict)  # more of what identifies the measurement
    remarks: dict[str, None] = field(default_factory=dict)  # on prompts that were cut; each once
    seconds: float = 0.0  # of drawing and judging so far
    judging: float = 0.0  # seconds in which the judges looked at pictures, mostly while the next were drawn

    def record(
        self, name: str, opened: LoadedPipeline, denoiser: Denoiser, sampling: Sampling, *,
        encode: Encode | None = None, rows: Sequence[Row] | None = None,
    ) -> dict[int, dict[str, Any]]:  # fmt: skip
        """Draw and record rows in `folder`/`name`.jsonl, and continue there what was cut off; processes share the rows.

        Args:
            encode: conditions of rows; the text encoder's when None.
            rows: others than `self.rows`.

        Returns:
            Row number -> record, see `records.record_of`.

        Raises:
            UserError: the folder holds another measurement, or the disk is full.
        """
        rows, options = self.rows if rows is None else rows, self.options
        if encode is None:
            self.remarks.update(dict.fromkeys(denoiser.family.remarks_on([row.prompt for row in rows])))
        header = self._header(opened, sampling, rows)
        ledger = Ledger(
            self.folder / f"{name}.jsonl",
            header,
            options.processes,
            check=partial(self._check, frozenset(row.number for row in rows)),
        )
        todo = [row for row in rows if row.number not in ledger.records]
        todo = todo[options.processes.index :: options.processes.count]
        began, drawn = time.monotonic(), draw(denoiser, todo, sampling, batch_size=options.batch_size, encode=encode)
        with options.progress(f"drawing, {name}", len(rows)) as tick:
            tick(shown := ledger.count())
            for records in one_behind(partial(self._judged, name), drawn):
                ledger.add(records)
                tick((now := ledger.count()) - shown)
                shown = now
            ledger.close()
            tick(ledger.count() - shown)
        self.seconds += (time.monotonic() - began) * bool(todo)
        return ledger.records

    def _header(self, opened: LoadedPipeline, sampling: Sampling, rows: Sequence[Row]) -> dict[str, Any]:
        """What identifies the measurement."""
        starts = [row.start for row in rows if row.start]
        begun: list[Any] = [start.strength for start in starts]
        begun += [start.hidden.flatten().tolist() for start in starts if start.hidden is not None]
        prompts = json.dumps([(row.prompt, row.seed, row.guidance, row.size) for row in rows] + begun)
        return {
            "weights_sha256": opened.weights_sha256, "files_sha256": opened.files.sha256,
            "prompts_sha256": hash_text(prompts),
            "judges": [judge.facts for judge in self.judges], "features": self.features and self.features.facts,
            "versions": {"sampler": SAMPLER} | {name: version(name) for name in SAMPLED_BY}, **self.header, **sampling.to_json(),
        }  # fmt: skip

    def _check(self, numbers: frozenset[int], record: dict[str, Any]) -> None:
        """Read a record of one of these rows as the metrics do; raises where it is damaged."""
        if record["number"] not in numbers:
            raise ValueError(f"number {record['number']}")
        sound = len(thumbnails([record])) == 1
        for judge in self.judges:
            answer, prompt = record[judge.facts["judge"]], record["prompt"]
            judge.sees(answer), judge.nothing(answer), judge.right(answer, prompt)
            sound = sound and isinstance(judge.answer(answer), str)
        if not sound:
            raise ValueError("a thumbnail or an answer of another kind")
        if self.features:
            feature_rows([record])

    def _judged(self, name: str, drawn: tuple[Sequence[Row], np.ndarray]) -> list[dict[str, Any]]:
        """A record a picture, with every judge's answer."""
        chunk, pixels = drawn
        self._keep_pictures(name, chunk, pixels)
        began = time.monotonic()
        answers = {judge.facts["judge"]: judge.look(pixels, [row.prompt for row in chunk]) for judge in self.judges}
        vectors = self.features.extract(pixels) if self.features else [None] * len(chunk)
        self.judging += time.monotonic() - began
        return [
            record_of(row, picture, vector, {judge: each[n] for judge, each in answers.items()})
            for n, (row, picture, vector) in enumerate(zip(chunk, pixels, vectors, strict=True))
        ]

    def _keep_pictures(self, name: str, chunk: Sequence[Row], pixels: np.ndarray) -> None:
        """Write the pictures that the report shows, or all of them."""
        for row, picture in zip(chunk, pixels, strict=True):
            files = [self.folder / "samples" / f"{row.number}-{name}.png"] if row.number in self.samples else []
            files += [self.folder / "images" / name / f"{row.number}.png"] if self.options.keep_images else []
            for file in files:
                with atomic(file) as new:
                    Image.fromarray(picture).save(new, "png")


def judging_share(*recorders: Recorder) -> float | None:
    """Share of the time of drawing and judging in which the judges looked at pictures; None where nothing took time."""
    whole = sum(one.seconds for one in recorders)
    return round(sum(one.judging for one in recorders) / whole, 4) if whole else None


def one_behind(work: Callable[[Made], Done], items: Iterable[Made]) -> Iterator[Done]:
    """What `work` makes of each item, in their order: in a thread of its own, while the next item is made."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as thread:
        before: Future[Done] | None = None
        for item in items:
            now = thread.submit(work, item)
            if before:
                yield before.result()
            before = now
        if before:
            yield before.result()


def draw(
    denoiser: Denoiser, rows: Sequence[Row], sampling: Sampling, *, batch_size: int | None, encode: Encode | None = None
) -> Iterator[tuple[Sequence[Row], np.ndarray]]:
    """Batches of rows with their pictures, (B, h, w, 3) uint8 RGB.

    Every row has its own CPU generator, seeded with its own seed, and on a CPU as many rows as always are computed
    together (the last are padded): a picture's bytes depend on neither the batch size, nor the rows around it, nor how
    many processes share the work. An accelerator computes `batch_size` rows together, always as many.

    Args:
        batch_size: None: what a GPU's memory holds; 32 small or 4 large pictures elsewhere.
        encode: conditions of rows; the text encoder's when None.
    """
    encode = encode or (lambda some: denoiser.encode([row.prompt for row in some]))
    by_kind: dict[tuple[float, tuple[int, int], float | None], list[Row]] = {}
    for row in rows:
        guidance = sampling.guidance if row.guidance is None else row.guidance
        size, strength = row.size or (sampling.size, sampling.size), row.start.strength if row.start else None
        by_kind.setdefault((guidance, size, strength), []).append(row)
    for (guidance, size, _), own in by_kind.items():
        lane, batch = lanes(denoiser.device.type, max(size), batch_size or held_by_memory(denoiser, size))
        for at in range(0, len(own), batch):
            chunk = own[at : at + batch]
            pictures = []
            for start in range(0, len(chunk), lane):
                some = chunk[start : start + lane]
                padded = [*some, *[some[-1]] * (lane - len(some))]
                drawn = _latents(denoiser, padded, encode(padded), replace(sampling, guidance=guidance), size)
                pictures.append(to_pixels(decoded(denoiser, drawn, max(size))[: len(some)]))
            yield chunk, np.concatenate(pictures)


def _latents(
    denoiser: Denoiser, rows: Sequence[Row], conditions: Tensor, sampling: Sampling, size: tuple[int, int]
) -> Tensor:
    """Latents of rows of one kind, from noise or from what each starts with: (B, c, h, w)."""
    seeds, starts = [row.seed for row in rows], [row.start for row in rows if row.start]
    steps, guidance = sampling.steps, sampling.guidance
    if not starts:
        return denoiser.sample(conditions, seeds, steps=steps, guidance=guidance, size=size, changes=sampling.changes)
    masks = [start.hidden for start in starts if start.hidden is not None]
    return denoiser.complete(
        torch.stack([start.latents for start in starts]), conditions, seeds, strength=starts[0].strength, steps=steps,
        guidance=guidance, hidden=torch.stack(masks) if masks else None,
    )  # fmt: skip


def to_pixels(pictures: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] to (B, h, w, 3) uint8, RGB."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
