"""Judges: who decides what a picture shows. One file each, under the name that --judge takes; see `base.Judge`."""

from pathlib import Path

from ...registry import Registry
from .base import Judge

JUDGES: Registry[type[Judge]] = Registry("judge", __name__, Path(__file__).parent, not_declarations=("base",))
