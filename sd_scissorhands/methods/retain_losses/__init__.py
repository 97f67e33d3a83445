"""Retain losses: how a denoiser is held to everything else. Each is one file, under the name that --retain-loss takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry import Registry
from ..losses import Loss


@dataclass(frozen=True)
class RetainLoss:
    """A retain loss and the conditions of its samples."""

    summary: str  # in a few words
    diffusion: Loss[Any]
    any_words: bool = (
        False  # whether its target exists under any words: a share (`other_words`) is shown under another's
    )
    empty_share: float = 0.1  # of the samples, those shown under the empty prompt, which guidance needs
    shown_twice: float = 0.0  # of the samples, those that the loss shows without words too


RETAIN_LOSSES: Registry[RetainLoss] = Registry("retain loss", __name__, Path(__file__).parent)
