"""Rows that a model draws are judged, and the answers recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from .. import measured_before
from ..diffusion.denoiser import Denoiser
from ..disk import atomic, hash_text
from ..models.load import LoadedPipeline
from .judges.base import Features, Judge
from .prompts import Row
from .records import Ledger, feature_rows, record_of, thumbnails
from .sample import DrawOptions, Encode, Sampling, draw

SHOWN = 8  # pictures of each kind of rows that are saved for the report
SAMPLER = 1  # counts the changes in `sample` and `Denoiser` after which the same row gives another picture
SAMPLED_BY = ("torch", "diffusers", "transformers")  # that a picture depends on

Made = TypeVar("Made")
Done = TypeVar("Done")


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
    seen_too: int = 0  # pictures of other rows that are saved too: the first in which the first judge sees the concept
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

    def once(
        self, name: str, opened: LoadedPipeline, denoiser: Denoiser, sampling: Sampling
    ) -> AbstractContextManager[None]:
        """Within it the rows are recorded, once for all models that have this original, see `measured_before`.

        Args:
            name: of the side; the model's own is recorded anew, and so is everything where every picture is to be there.
        """
        if name != "original" or self.options.keep_images or not measured_before.declared_here(*self.judges):
            return nullcontext()
        facts = self._header(opened, sampling, self.rows) | {"samples": sorted(self.samples)}
        about: Any = dict(device=denoiser.device, processes=self.options.processes, remarks=self.remarks)
        return measured_before.once(self.folder, facts, opened.name, **about)

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
            "versions": versions(), **self.header, **sampling.to_json(),
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
        began = time.monotonic()
        answers = {judge.facts["judge"]: judge.look(pixels, [row.prompt for row in chunk]) for judge in self.judges}
        vectors = self.features.extract(pixels) if self.features else [None] * len(chunk)
        self.judging += time.monotonic() - began
        first = self.judges[0]
        self._keep_pictures(name, chunk, pixels, [first.sees(answer) for answer in answers[first.facts["judge"]]])
        return [
            record_of(row, picture, vector, {judge: each[n] for judge, each in answers.items()})
            for n, (row, picture, vector) in enumerate(zip(chunk, pixels, vectors, strict=True))
        ]

    def _keep_pictures(self, name: str, chunk: Sequence[Row], pixels: np.ndarray, seen: Sequence[bool]) -> None:
        """Write the pictures that the report shows, or all of them; `seen`: whether each shows the concept."""
        for row, picture, shows in zip(chunk, pixels, seen, strict=True):
            more = bool(self.seen_too) and shows and self._kept(name) < self.seen_too
            wanted = row.number in self.samples or more
            files = [sample_file(self.folder, row.number, name)] if wanted else []
            files += [self.folder / "images" / name / f"{row.number}.png"] if self.options.keep_images else []
            for file in files:
                with atomic(file) as new:
                    Image.fromarray(picture).save(new, "png")

    def _kept(self, name: str) -> int:
        """Pictures of other rows than `samples` that are there."""
        files = (self.folder / "samples").glob(f"*-{name}.png")
        return sum(int(file.name.partition("-")[0]) not in self.samples for file in files)


def sample_file(folder: Path, number: int, name: str) -> Path:
    """Where the picture of a row lies."""
    return folder / "samples" / f"{number}-{name}.png"


def versions() -> dict[str, Any]:
    """Of what a picture depends on."""
    return {"sampler": SAMPLER} | {name: version(name) for name in SAMPLED_BY}


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
