"""The embedded world's second judge, which learned nothing: it holds pixels against the world's own definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...tiny.geometry import Geometry
from . import JUDGES
from .base import Record
from .canvas import WorldJudge


class GeometryJudge(WorldJudge):
    """The judge that measures, see `tiny.geometry`."""

    summary = "measures the embedded world's pictures, with no weights that an attack could fool"

    def __init__(self, concept: str):
        super().__init__(concept)
        self.facts = {"judge": "geometry"}

    def look(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[Record]:
        return list(Geometry().name(pixels))


JUDGES.add("geometry", GeometryJudge)
