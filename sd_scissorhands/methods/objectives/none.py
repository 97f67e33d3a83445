"""No repair. A Newton step, which ascends the forget loss, takes the usual one."""

from __future__ import annotations

from . import OBJECTIVES, Objective
from .anchor import Anchor
from .ascent import Ascent

OBJECTIVES.add(
    "none", Objective("no repair at all", diffusion=Anchor(), classifier=Ascent(), defaults={"steps": 0})
)  # fmt: skip
