"""NudeNet over what a model draws for I2P or other prompts, or over a directory of pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..disk import atomic, hash_text, write_json
from ..elapsed import Elapsed
from ..errors import UserError
from ..machine import cores
from ..picture_folders import list_pictures
from ..pictures import PictureError, content_hash, read_frames
from ..results.evaluation import NudityCounts, NudityEvaluation, PublishedCounts, Sample, SamplingFacts
from ..run import Progress, silent
from .clip import Clip
from .gone import gone
from .judges.base import Features
from .judges.nudenet import LEAST_SCORE, Detection, Detector, NudeJudge
from .metrics.clip_score import score
from .metrics.collapsed import collapse
from .nude_counts import boxes_each, calibration, counts, row_by_row, rows_csv
from .prompts import Row, protocol_rows
from .recorder import SHOWN, Recorder, judging_share
from .records import Ledger, feature_rows, thumbnails
from .sample import DrawOptions, Sampling, check_models, open_for_sampling


@dataclass(frozen=True, kw_only=True)
class NudityRequest(DrawOptions):
    """What the rows are, and how they are drawn and counted."""

    kind: str  # "i2p" or "prompts"
    threshold: float = NudeJudge.threshold  # a detection counts from this score on
    protocol: str | None = None  # published | per-row; None for prompts that know none
    whole: bool = False  # the rows are all rows of their file
    subset: dict[str, Any] = field(default_factory=dict)  # which rows were chosen
    clip: Clip | None = None  # for the CLIP score


@dataclass(frozen=True)
class NudityRecords:
    """One model's pictures, as recorded."""

    model: str
    weights: str
    rows: list[Row]  # as drawn
    records: list[dict[str, Any]]
    sampling: Sampling
    recorder: Recorder

    @property
    def found(self) -> list[list[Detection]]:
        """Detections, a picture each row."""
        return [record["nudenet"]["found"] for record in self.records]

    def counts(self, threshold: float) -> NudityCounts:
        """What NudeNet saw in the pictures."""
        return counts(self.found, threshold, model=self.model, weights=self.weights)

    def calibration(self, request: NudityRequest) -> PublishedCounts:
        """A baseline's boxes beside the literature's, so that a wrong set-up is seen at once."""
        return calibration(
            self.found, rows=self.rows, whole=request.whole, protocol=request.protocol, threshold=request.threshold,
            name=self.model, steps=self.sampling.steps,
        )  # fmt: skip


def evaluate_prompts(
    model: str, baseline: str | None, rows: Sequence[Row], folder: Path, request: NudityRequest
) -> NudityEvaluation:
    """Draw every row with a model, and with a baseline if one is named; write `folder`/summary.json and rows.csv.

    Raises:
        UserError: a model that cannot be loaded as it is on disk, or a folder that holds another evaluation.
    """
    elapsed, threshold = Elapsed(folder, request.processes), request.threshold
    request = replace(request, progress=elapsed.during(request.progress))
    check_models(model, baseline)
    judge = NudeJudge(threshold=threshold)
    ours = record_side("model", model, rows, folder, judge, request)
    theirs = record_side("original", baseline, rows, folder, judge, request) if baseline is not None else None
    sides = [side for side in (ours, theirs) if side]
    mine, before = thumbnails(ours.records), thumbnails(theirs.records) if theirs else None
    result = NudityEvaluation(
        kind=request.kind, **vars(ours.counts(threshold)), threshold=threshold,
        baseline=theirs.counts(threshold) if theirs else None,
        rows=row_by_row(ours.found, theirs.found, threshold) if theirs else None,
        calibration=theirs.calibration(request) if theirs and request.kind == "i2p" else None,
        protocol=request.protocol, subset=request.subset,
        nudenet=judge.facts["version"], detector_sha256=judge.facts["detector_sha256"],
        sampling=SamplingFacts(**ours.sampling.to_json() | protocol_facts(ours.rows)),
        collapse=collapse(mine, before, [range(len(mine))], nothing=[None] * len(mine)),  # over prompts and seeds alike
        clip_score=clip_scores(request.clip, ours, theirs), seconds=elapsed.end(),
        judging_share=judging_share(*(side.recorder for side in sides)),
        samples=samples(ours, theirs), remarks=tuple(dict.fromkeys(remark for side in sides for remark in side.recorder.remarks)),
    )  # fmt: skip
    result = replace(result, nothing_to_erase=gone(result).nothing)
    if request.processes.main:
        with atomic(folder / "rows.csv") as new:
            text = rows_csv(ours.rows, ours.found, theirs.found if theirs else None, threshold=threshold)
            new.write_text(text, newline="", encoding="utf-8")
        write_json(folder / "summary.json", result.to_json())
    return result


def record_side(
    name: str, source: str, rows: Sequence[Row], folder: Path, judge: NudeJudge, request: NudityRequest
) -> NudityRecords:
    """Draw and judge the rows with one model, "model" or "original"."""
    opened, denoiser = open_for_sampling(source, request.device, request.processes)
    sampling, clip = Sampling.of(opened, request.steps, request.guidance), request.clip
    if request.protocol:
        rows = protocol_rows(rows, request.protocol, own_size=sampling.size, factor=denoiser.family.multiple)
    recorder = Recorder(
        rows, [judge], folder, request, frozenset(row.number for row in rows[:SHOWN]),
        Features(clip.pictures, clip.name, clip.sha256) if clip else None, {"clip": clip.facts} if clip else {},
    )  # fmt: skip
    with recorder.once(name, opened, denoiser, sampling):
        records = recorder.record(name, opened, denoiser, sampling)
    return NudityRecords(
        opened.name, opened.weights_sha256, list(rows), [records[row.number] for row in rows], sampling,
        recorder,
    )  # fmt: skip


def protocol_facts(rows: Sequence[Row]) -> dict[str, Any]:
    """Guidance and size where the rows have their own: the value, or the range."""
    guidances = sorted({row.guidance for row in rows if row.guidance is not None})
    sizes = sorted({f"{row.size[1]} x {row.size[0]}" for row in rows if row.size})
    facts: dict[str, Any] = {}
    if guidances:
        several = f"{guidances[0]:g} to {guidances[-1]:g}, each row's own"
        facts["guidance"] = guidances[0] if len(guidances) == 1 else several
    if sizes:
        facts["size"] = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, each row's own"
    return facts


def clip_scores(clip: Clip | None, ours: NudityRecords, theirs: NudityRecords | None) -> dict[str, Any] | None:
    """Mean CLIP score of the pictures against their prompts."""
    if clip is None:
        return None
    texts = clip.texts([row.prompt for row in ours.rows])
    model, original = (
        round(float(score(feature_rows(side.records), texts).mean()), 3) if side else None for side in (ours, theirs)
    )
    return {"model": model, "original": original, "clip": clip.name}


def samples(ours: NudityRecords, theirs: NudityRecords | None) -> tuple[Sample, ...]:
    """The first rows' pictures, for the report; flagged: any sign of an exposed class, however weak."""
    sides = [side.found for side in (ours, theirs) if side]
    return tuple(
        Sample(
            row.prompt, row.seed, f"samples/{row.number}-model.png",
            f"samples/{row.number}-original.png" if theirs else None,
            flagged=any(sum(boxes_each([found[n]], LEAST_SCORE)) for found in sides),
        )
        for n, row in enumerate(ours.rows[:SHOWN])
    )  # fmt: skip


# ---------------------------------------------------------------- pictures that are there already


def evaluate_images(
    pictures: Path, folder: Path, *, threshold: float = NudeJudge.threshold, limit: int | None = None,
    recursive: bool = False, progress: Progress = silent,
) -> NudityEvaluation:  # fmt: skip
    """Detection alone, over the picture files of a directory; writes `folder`/summary.json.

    A file that cannot be read is named in the result, and the others are judged.

    Raises:
        UserError: no such directory, or no picture in it that can be read.
    """
    began, listing = time.monotonic(), list_pictures(pictures, recursive)
    files, detector = listing.files[:limit], Detector()
    with progress("detecting", len(files)) as tick:
        records = detect_files(files, detector, folder=folder, tick=tick)
    errors = tuple(record["error"] for record in records if "error" in record)
    if len(errors) == len(records):
        raise UserError(f"--images {pictures} holds no picture that can be read; the first: {errors[0]}")
    read = [record for record in records if "error" not in record]
    result = NudityEvaluation(
        kind="images", source=str(pictures), **vars(counts([record["found"] for record in read], threshold)),
        threshold=threshold, nudenet=detector.version, detector_sha256=detector.sha256, unreadable=errors,
        remarks=(*listing.remarks("--images"), *_remarks_on_frames(read)), seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    write_json(folder / "summary.json", result.to_json())
    return result


def detect_files(
    files: Sequence[Path], detector: Detector, *, folder: Path, tick: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Detections in picture files, one JSON line each in `folder`/images.jsonl; as many at a time as there are cores.

    Of an animation those of all its frames. What was detected before counts only for the same files with the same contents.

    Returns:
        A record a file: found, and frames (looked at, in the file); or error, why it cannot be read.
    """
    contents = hash_text(json.dumps([(str(file), _identity(file)) for file in files]))
    header = {"files_sha256": contents, "detector_sha256": detector.sha256, "nudenet": detector.version}
    ledger = Ledger(folder / "images.jsonl", header, check=lambda record: _check(record, len(files)))
    tick(len(ledger.records))
    todo = [number for number in range(len(files)) if number not in ledger.records]
    with ThreadPoolExecutor(cores()) as threads:
        found = threads.map(lambda number: _detected(files[number], detector), todo)
        for number, one in zip(todo, found, strict=True):
            ledger.add([{"number": number, "file": files[number].name, **one}])
            tick(1)
    return ledger.in_order()


def _identity(file: Path) -> str:
    """What changes when a file does."""
    try:
        return content_hash(file)
    except PictureError as error:
        return str(error)


def _detected(file: Path, detector: Detector) -> dict[str, Any]:
    """What is seen in a file; of a record what `detect_files` says."""
    try:
        frames = read_frames(file)
    except PictureError as error:
        return {"error": str(error)}
    return {"found": list(chain.from_iterable(detector(frames))), "frames": [len(frames), frames.total]}


def _remarks_on_frames(records: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence on the files with several frames, if there are any."""
    several = [record["frames"] for record in records if record.get("frames", [1, 1])[1] > 1]
    looked_at, held = (sum(counts) for counts in zip(*several, strict=True)) if several else (0, 0)
    sentence = (
        f"--images: {len(several):,} with several frames, of which {looked_at:,} of {held:,} were looked at: "
        "a file counts once, with the boxes of all of them"
    )
    return [sentence] * bool(several)


def _check(record: dict[str, Any], files: int) -> None:
    """Read a record as the counts do; raises where it is damaged."""
    if not 0 <= record["number"] < files:
        raise ValueError(f"number {record['number']}")
    if "error" not in record:
        counts([record["found"]], LEAST_SCORE)
