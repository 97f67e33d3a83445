"""What is done to the selected weights: one file an edit, under the name that --edit takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...registry import Registry

if TYPE_CHECKING:
    from ..method import Edit

EDITS: Registry[Edit] = Registry("edit", __name__, Path(__file__).parent)
