"""The plain denoising loss."""

from __future__ import annotations

from ..losses import OwnError
from . import RETAIN_LOSSES, RetainLoss

RETAIN_LOSSES.add("denoise", RetainLoss("the denoising loss", OwnError()))
