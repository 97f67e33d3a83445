"""Checks of a model that transformers loads from a directory: safetensors, and every tensor that its config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

WEIGHTS = "model.safetensors"


def check_safetensors(named: str, directory: Path) -> None:
    """Refuse a directory without safetensors.

    Args:
        named: the model as the user named it, with its flag.

    Raises:
        UserError: there are none.
    """
    if not (directory / WEIGHTS).exists():
        raise UserError(
            f"{named} has no {WEIGHTS} (pickled .bin weights are never loaded): save it with safe_serialization=True, or name another"
        )


def check_whole(named: str, report: Mapping[str, Any]) -> None:
    """Refuse a model that its file did not fill; `report` is what `from_pretrained` gives with output_loading_info.

    Raises:
        UserError: naming the first tensor.
    """
    if lacking := sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]):
        raise UserError(
            f"{named} is incomplete: {WEIGHTS} does not hold {lacking[0]} as config.json has it ({len(lacking)} tensors in all); download it again"
        )
