"""The one sampling engine: prompts in, judged pictures out, for every evaluation and every attack."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..disk import atomic
from ..lineage import MANIFEST
from ..machine import Processes, resolve_device
from ..models.files import check_directory
from ..models.load import LoadedPipeline, open_pipeline
from ..models.locate import locate
from ..run import Progress, Run, silent
from ..settings import UserError
from .judges import Judge
from .ledger import Ledger
from .prompts import Row

SMALL = 64  # pixels: up to here the CPU is faster with several pictures at a time
LANE = 16  # small pictures that the CPU computes together, always as many
THUMB = 8  # pixels a side of the thumbnails in the ledger
AHEAD = 2  # batches that may wait for the judges while the next is drawn

Encode = Callable[[Sequence[Row]], Tensor]  # rows -> conditions (B, tokens, width)
Features = Callable[[np.ndarray], Tensor]  # (B, h, w, 3) uint8 -> (B, d)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, where their rows do not say otherwise; goes into every result."""

    steps: int
    guidance: float
    size: int  # pixels a side
    scheduler: str

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
    """Find both models and check their files, so that a bad baseline is said before the model has drawn for hours.

    Raises:
        UserError: what is wrong with which.
    """
    check_directory(*locate(model))
    if baseline is not None:
        try:
            check_directory(*locate(baseline))
        except UserError as error:
            raise UserError(str(error).replace("--model", "--baseline")) from None


def open_for_sampling(model: str, device: str, processes: Processes | None = None) -> tuple[LoadedPipeline, Denoiser]:
    """A model ready to draw, in float32; on CUDA under autocast in the half precision that its family bears.

    Raises:
        UserError: it cannot be loaded as it is on disk, or it is no longer what its run's manifest says.
    """
    device = resolve_device((processes or Processes()).device(device))
    opened = open_pipeline(model, device=device)
    manifest = opened.directory.parent / MANIFEST
    if opened.directory.name == "model" and manifest.exists():
        result = Run.read(opened.directory.parent).manifest.result or {}
        if (made := result.get("weights_sha256", opened.weights_sha256)) != opened.weights_sha256:
            raise UserError(
                f"{model} is not the model that its run made (weights {opened.weights_sha256[:12]}, {MANIFEST} says {made[:12]})"
            )
    return opened, Denoiser(opened.pipeline, mixed_precision=opened.family.half if device.startswith("cuda") else "no")


@dataclass
class Survey:
    """What is drawn and who looks at it. `take` does it with a model, and continues what was cut off."""

    rows: Sequence[Row]
    judges: Sequence[Judge]
    folder: Path  # where ledgers and pictures go
    batch_size: int | None = None  # pictures drawn, judged and written at a time; None: 32 small, 4 large
    samples: frozenset[int] = frozenset()  # numbers of the rows whose pictures are kept for the report
    keep_images: bool = False  # keep every picture
    features: Features | None = None  # kept with the records, for distances
    header: dict[str, Any] = field(default_factory=dict)  # more of what identifies the measurement
    progress: Progress = silent
    processes: Processes = field(default_factory=Processes.here)

    def take(
        self,
        name: str,
        opened: LoadedPipeline,
        denoiser: Denoiser,
        sampling: Sampling,
        *,
        encode: Encode | None = None,
        rows: Sequence[Row] | None = None,
    ) -> dict[int, dict[str, Any]]:
        """Draw every row and record what the judges say, in `folder`/`name`.jsonl.

        The judges work beside the drawing, in a thread of their own. Rows are shared among the processes.

        Args:
            encode: conditions of rows; the text encoder's when None.
            rows: others than `self.rows`.

        Returns:
            Row number -> record: number, prompt, seed, thumb, one entry a judge, features if asked for.

        Raises:
            UserError: the folder holds another measurement, or the disk is full.
        """
        rows, encode = (
            self.rows if rows is None else rows,
            encode or (lambda some: denoiser.encode([r.prompt for r in some])),
        )
        ledger = Ledger(self.folder / f"{name}.jsonl", self._header(opened, sampling, rows), self.processes)
        todo = [row for row in rows if row.number not in ledger.records][self.processes.index :: self.processes.count]
        batches = draw(denoiser, todo, sampling, batch_size=self.batch_size, encode=encode)
        threads = torch.get_num_threads()
        judging = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        with self.progress(f"drawing, {name}", len(rows)) as tick, judging:
            told, waiting = _tell(tick, ledger, 0), list[Future]()
            for chunk, pixels in batches:
                waiting.append(judging.submit(self._record, name, ledger, chunk, pixels))
                if len(waiting) > AHEAD:
                    waiting.pop(0).result()
                    told = _tell(tick, ledger, told)
            for one in waiting:
                one.result()
            ledger.close()
            _tell(tick, ledger, told)
        return ledger.records

    def _header(self, opened: LoadedPipeline, sampling: Sampling, rows: Sequence[Row]) -> dict[str, Any]:
        asked = json.dumps([(row.prompt, row.seed, row.guidance, row.size) for row in rows])
        return {
            "weights_sha256": opened.weights_sha256, "prompts_sha256": hashlib.sha256(asked.encode()).hexdigest(),
            "judges": [judge.facts for judge in self.judges], **self.header, **asdict(sampling),
        }  # fmt: skip

    def _record(self, name: str, ledger: Ledger, chunk: Sequence[Row], pixels: np.ndarray) -> None:
        """Keep the pictures that are to be kept, ask the judges, and write the lines."""
        self._keep(name, chunk, pixels)
        records = [
            {"number": row.number, "prompt": row.prompt, "seed": row.seed, "thumb": thumbnail(picture)}
            for row, picture in zip(chunk, pixels, strict=True)
        ]
        for judge in self.judges:
            said = judge.look(pixels, [row.prompt for row in chunk])
            for record, one in zip(records, said, strict=True):
                record[judge.facts["judge"]] = one
        if self.features:
            for record, vector in zip(records, self.features(pixels), strict=True):
                record["features"] = base64.b64encode(vector.float().numpy().tobytes()).decode()
        ledger.add(records)

    def _keep(self, name: str, chunk: Sequence[Row], pixels: np.ndarray) -> None:
        for row, picture in zip(chunk, pixels, strict=True):
            kept = [self.folder / "samples" / f"{row.number}-{name}.png"] if row.number in self.samples else []
            kept += [self.folder / "images" / name / f"{row.number}.png"] if self.keep_images else []
            for file in kept:
                with atomic(file) as new:
                    Image.fromarray(picture).save(new, "png")


def _tell(tick: Callable[[int], None], ledger: Ledger, told: int) -> int:
    """Move the bar by what all processes have recorded since."""
    now = ledger.count()
    tick(now - told)
    return now


def draw(
    denoiser: Denoiser, rows: Sequence[Row], sampling: Sampling, *, batch_size: int | None, encode: Encode
) -> Iterator[tuple[Sequence[Row], np.ndarray]]:
    """Batches of rows with their pictures, (B, h, w, 3) uint8 RGB.

    Every row has its own CPU generator, seeded with its own seed, and on a CPU as many rows as always are computed
    together (the last are padded): a picture's bytes depend on neither the batch size, nor the rows around it, nor how
    many processes share the work. An accelerator computes `batch_size` rows together, always as many.
    """
    by_kind: dict[tuple[float, tuple[int, int]], list[Row]] = {}
    for row in rows:
        guidance = sampling.guidance if row.guidance is None else row.guidance
        by_kind.setdefault((guidance, row.size or (sampling.size, sampling.size)), []).append(row)
    for (guidance, size), own in by_kind.items():
        lane, batch = lanes(denoiser.device.type, max(size), batch_size)
        for at in range(0, len(own), batch):
            chunk = own[at : at + batch]
            pictures = []
            for start in range(0, len(chunk), lane):
                some = chunk[start : start + lane]
                padded = [*some, *[some[-1]] * (lane - len(some))]
                latents = denoiser.sample(
                    encode(padded), [row.seed for row in padded], steps=sampling.steps, guidance=guidance, size=size
                )
                pictures.append(to_pixels(denoiser.decode(latents)[: len(some)]))
            yield chunk, np.concatenate(pictures)


def lanes(device: str, side: int, batch_size: int | None) -> tuple[int, int]:
    """Pictures that are computed together, and pictures that are handed on together."""
    batch = batch_size or (32 if side <= SMALL else 4)
    if device != "cpu":
        return batch, batch
    lane = LANE if side <= SMALL else 1
    return lane, max(1, batch // lane) * lane


def to_pixels(pictures: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] to (B, h, w, 3) uint8, RGB."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def thumbnail(picture: np.ndarray) -> str:
    """A picture at 8 x 8 pixels, base64: enough to tell whether two models draw alike."""
    small = Image.fromarray(picture).resize((THUMB, THUMB), Image.Resampling.BOX)
    return base64.b64encode(np.asarray(small).tobytes()).decode()


def thumbnails(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """The thumbnails of records: (N, 8, 8, 3) float64 in [0, 1]."""
    raw = b"".join(base64.b64decode(record["thumb"]) for record in records)
    return np.frombuffer(raw, np.uint8).reshape(-1, THUMB, THUMB, 3) / 255


def feature_rows(records: Sequence[dict[str, Any]]) -> Tensor:
    """The features of records: (N, d) float32."""
    return torch.stack(
        [torch.frombuffer(bytearray(base64.b64decode(r["features"])), dtype=torch.float32) for r in records]
    )
