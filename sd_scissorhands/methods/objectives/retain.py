"""No forget loss: only the retain loss is descended."""

from __future__ import annotations

from ..losses import NoLoss
from . import OBJECTIVES, Objective

OBJECTIVES.add("retain", Objective("nothing: only the rest is trained on", diffusion=NoLoss(), classifier=NoLoss()))
