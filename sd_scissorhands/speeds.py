"""How long an evaluation of the network took in the last erasure on this machine, by kind of model, for the next forecast."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .disk import write_json
from .drawn_before import switched_on
from .errors import UserError
from .files import read_json
from .places import cache_root
from .results.manifest import Manifest


def kind_of(module: torch.nn.Module, memory: str, side: int) -> str:
    """What speed goes by, in words: weights, their type, device, memory mode, side of the latents."""
    first = next(module.parameters())
    weights = sum(p.numel() for p in module.parameters()) / 1e6
    cuda = first.device.type == "cuda"
    device = (
        torch.cuda.get_device_name(first.device) if cuda else f"{first.device.type}, {torch.get_num_threads()} threads"
    )
    return f"{weights:.1f} million {str(first.dtype).removeprefix('torch.')}, {side} x {side}, {memory}, {device}"


def learned(kind: str) -> dict[str, float]:
    """Seconds of an evaluation by stage, backward passes and all else included; empty where nothing was learned."""
    found = _read().get(kind) if switched_on() else None
    if not isinstance(found, dict):
        return {}
    return {
        stage: float(value) for stage, value in found.items() if isinstance(value, int | float) and 0 < value < math.inf
    }


def learn(kind: str, manifest: Manifest) -> None:
    """Note what the stages of a run took, those that drew or computed everything themselves."""
    if not switched_on():
        return
    stages = {name: manifest.stage(name) for name in ("data", "held-out", "scores", "repair")}
    found = {
        name.replace("-", " "): stage.seconds / stage.evaluations
        for name, stage in stages.items()
        if stage and stage.seconds and stage.evaluations and not stage.cached
    }
    if found:
        known = _read()
        before = known.get(kind)
        with suppress(UserError):  # an erasure needs no forecast
            write_json(_file(), known | {kind: (before if isinstance(before, dict) else {}) | found})


def _file() -> Path:
    return cache_root() / "speeds.json"


def _read() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        if isinstance(found := read_json(_file()), dict):
            return found
    return {}
