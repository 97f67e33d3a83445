"""How much each weight matters to what is to be forgotten: one file a scorer, under the name that --scorer takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...registry import Registry

if TYPE_CHECKING:
    from ..method import Scorer

SCORERS: Registry[Scorer] = Registry("scorer", __name__, Path(__file__).parent)
