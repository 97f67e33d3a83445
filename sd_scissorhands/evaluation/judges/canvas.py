"""The embedded world's own judge, a small network that learned to name everything in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...files import hash_file
from ...tiny import JUDGE_FILE, world
from ...tiny.judge import load_judge
from . import JUDGES
from .base import Features, Judge, JudgeRequest, Record


class WorldJudge(Judge):
    """What judges of the embedded world share: a record names one concept, or "other", in each of the world's categories."""

    domain = "canvas"

    def __init__(self, concept: str):
        self.concept, self.category = concept, str(world.category_of(concept))

    @classmethod
    def open(cls, request: JudgeRequest) -> WorldJudge:
        return cls(str(world.concept_of(request.concept.words[0])))

    def sees(self, record: Record) -> bool:
        return record[self.category] == self.concept

    def nothing(self, record: Record) -> bool | None:
        return record["shape"] == world.OTHER

    def shown(self, record: Record) -> str:
        return record[self.category]

    def right(self, record: Record, prompt: str) -> bool | None:
        named = world.read(prompt).get(self.category)
        return None if named is None else record[self.category] == named

    def others(self, record: Record, prompt: str) -> list[bool | None]:
        named = world.read(prompt)
        return [record[category] == concept for category, concept in named.items() if category != self.category]

    def answer(self, record: Record) -> str:
        return record[self.category]


class CanvasJudge(WorldJudge):
    """The judge that learned."""

    summary = "a network that names shape, colour, pattern and background of the embedded world's pictures"
    second = "geometry"

    def __init__(self, concept: str):
        super().__init__(concept)
        sha256 = hash_file(JUDGE_FILE)
        self.facts = {"judge": "canvas", "sha256": sha256}
        self.features = Features(self._features, "the judge's own, 128", sha256, world.SIZE)
        self._network = load_judge(JUDGE_FILE)

    def look(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[Record]:
        return list(self._network.name(_tensor(pixels)))

    @torch.no_grad()
    def _features(self, pixels: np.ndarray) -> Tensor:
        """The 128 numbers before the network's heads, each picture's scaled to a mean square of 1: (B, 128)."""
        found = self._network.features(_tensor(pixels))
        return F.normalize(found, dim=1) * found.shape[1] ** 0.5


def _tensor(pixels: np.ndarray) -> Tensor:
    """(B, h, w, 3) uint8 to (B, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


JUDGES.add("canvas", CanvasJudge)
