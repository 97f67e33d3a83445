"""Nothing holds the model to the rest."""

from __future__ import annotations

from ..losses import NoLoss
from . import RETAIN_LOSSES, RetainLoss

RETAIN_LOSSES.add("none", RetainLoss("nothing", NoLoss()))
