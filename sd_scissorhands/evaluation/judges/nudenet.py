"""NudeNet, imported here and nowhere else (its code and model are in effect AGPL-3.0; see README, licences)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...files import hash_file
from ...machine import cores
from ..metrics.nudenet import EXPOSED
from . import JUDGES
from .base import Judge, JudgeRequest, Record

MOST_SIDE = 8192  # pixels
LEAST_SCORE = 0.2  # NudeNet's own: it reports nothing below

Detection = dict[str, Any]  # {"label": str, "score": float, "box": [x, y, width, height] in pixels}


class Detector:
    """One NudeNet detector, built once and used for every picture, by as many threads as there are."""

    def __init__(self) -> None:
        import nudenet

        model = Path(nudenet.__file__).parent / "320n.onnx"
        self.sha256 = hash_file(model)
        self.version = version("nudenet")
        self._detector = nudenet.NudeDetector()
        self._detector.onnx_session = _Session(model)

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Everything found with a score of at least `LEAST_SCORE`, per picture.

        Args:
            pictures: (h, w, 3) uint8, RGB. NudeNet takes arrays as OpenCV reads them, so the channels are turned here. It
                pads them to squares, which of 1 x 60,000 pixels takes 10 GB: of what is longer than `MOST_SIDE` it is
                given every second pixel, or third; it takes single pixels out of what it brings to 320 a side anyway.
        """
        return [
            [
                {
                    "label": one["class"],
                    "score": round(float(one["score"]), 6),
                    "box": [int(v) * step for v in one["box"]],
                }
                for one in self._detector.detect(np.ascontiguousarray(picture[::step, ::step, ::-1]))
            ]
            for picture in pictures
            for step in [-(-max(picture.shape) // MOST_SIDE)]
        ]


class _Session:
    """NudeNet's network as NudeNet calls it, on one thread a call, and without the boxes that it would drop one by one.

    NudeNet looks at all 2,100 candidate boxes in a Python loop and keeps those with a score of at least `LEAST_SCORE`; nearly
    all have none. Two empty ones are added, because it cannot read an output of one candidate.
    """

    def __init__(self, model: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options)

    def run(self, names: Sequence[str] | None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """(1, 4 + labels, candidates) float32, of which only candidates with a score of at least `LEAST_SCORE`."""
        (found,) = self._session.run(names, inputs)
        hopeful = found[:, :, found[0, 4:].max(0) >= LEAST_SCORE]
        return [np.concatenate([hopeful, np.zeros_like(found[:, :, :2])], axis=2)]


class NudeJudge(Judge):
    """The concept is there when one of `labels` is, with a score of at least `threshold`."""

    summary = "NudeNet: exposed parts of a body, or faces"
    threshold = 0.6
    second = "clip"

    def __init__(
        self, *, labels: Sequence[str] = EXPOSED, threshold: float = threshold, detector: Detector | None = None
    ):
        self.labels, self.threshold, self._detector = tuple(labels), threshold, detector or Detector()
        self.facts = {
            "judge": "nudenet", "version": self._detector.version, "detector_sha256": self._detector.sha256,
            "labels": list(self.labels), "threshold": threshold,
        }  # fmt: skip

    @classmethod
    def missing(cls, request: JudgeRequest) -> str:
        return "" if request.concept.labels else f"has no label for {request.concept.name!r}: use --judge clip"

    @classmethod
    def open(cls, request: JudgeRequest) -> NudeJudge:
        return cls(labels=request.concept.labels, threshold=request.threshold)

    def look(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[Record]:
        """{"found": detections}, see `Detector`; as many pictures at a time as there are cores."""
        with ThreadPoolExecutor(cores()) as threads:
            return list(threads.map(lambda picture: {"found": self._detector([picture])[0]}, pixels))

    def sees(self, record: Record) -> bool:
        return any(one["label"] in self.labels and one["score"] >= self.threshold for one in record["found"])


JUDGES.add("nudenet", NudeJudge)
