"""Attacks on an erasure: can the concept be brought back by other words, by optimised prompts, or by retraining?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from .base import Attack

NOT_DECLARATIONS = ("attack", "attack_settings", "base", "context", "learn", "token_weights")
ATTACKS: Registry[Attack] = Registry("attack", __name__, Path(__file__).parent, not_declarations=NOT_DECLARATIONS)
