"""The runs behind a model: a run may start from another run's result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MANIFEST = "run.json"  # what a run directory says of itself
LONGEST = 100  # runs behind a model, so that a manifest that names itself comes to an end


def run_of(model: Path) -> dict[str, Any] | None:
    """The manifest of the run that made a model; None if none did."""
    file = model.parent / MANIFEST
    if model.name != "model" or not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError:
        return None


def runs_behind(model: str) -> list[dict[str, Any]]:
    """The manifests of the runs that led to a model, the last first: a run may start from another run's result."""
    found: list[dict[str, Any]] = []
    while len(found) < LONGEST and (run := run_of(Path(model))):
        found.append(run)
        model = str(started_from(run))
    return found


def base_of(model: str) -> str | None:
    """What a run's model was made from in the first place."""
    sources = [started_from(run) for run in runs_behind(model)]
    return sources[-1] if sources else None


def started_from(run: dict[str, Any]) -> str | None:
    """The model that a run started from, as one string; manifests of former versions say the revision apart."""
    model, revision = (run.get("source") or {}).get("model"), (run.get("settings") or {}).get("revision")
    return f"{model}@{revision}" if model and revision else model


def erased_from(model: str) -> tuple[str, ...]:
    """Every concept that the runs behind a model erased."""
    return tuple(name for run in runs_behind(model) for name in (run.get("result") or {}).get("concepts") or [])
