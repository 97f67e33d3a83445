"""Reading a run directory: what is missing is empty, what is damaged is named, nothing crashes the page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..run import Run
from ..settings import UserError
from .words import plain

KINDS = {"canvas": "embedded world", "i2p": "I2P prompts", "prompts": "own prompts", "images": "own pictures"}
EMPTY: dict[str, Any] = {
    "figures": {},
    "original": {},
    "n": {},
    "samples": [],
    "baseline": {},
    "boxes": {},
    "images_with": {},
}


@dataclass
class Found:
    """A run directory as read; what is not there is empty, what cannot be read or does not fit is in `problems`."""

    path: Path
    stages: dict[str, Any]
    settings: dict[str, Any]
    source: dict[str, Any]
    result: dict[str, Any]
    layers: dict[str, list[int]] = field(default_factory=dict)  # parameter -> [trimmed, size]
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # kind -> its summary
    problems: list[str] = field(default_factory=list)

    @property
    def concepts(self) -> str:
        """What was erased."""
        return plain(self.result.get("concepts") or self.settings.get("concepts"))

    @property
    def in_world(self) -> bool:
        """Whether the model comes from the embedded one."""
        return self.source.get("model") == "tiny" or (self.path / "model" / "world.json").exists()


def read_run(path: Path) -> Found:
    """Everything that the report needs, read once.

    Raises:
        UserError: `path` is not a run directory.
    """
    manifest = Run.read(path).manifest
    parts: dict[str, Any] = {name: manifest.get(name) or {} for name in ("stages", "settings", "source", "result")}
    run = Found(path, **parts)
    run.layers = _layers(run)
    run.history = _json(run, "repair/history.json", list)
    for kind in KINDS:
        if summary := _json(run, f"eval/{kind}/summary.json", dict):
            known = {name: value for name, value in summary.items() if value is not None}
            run.evaluations[kind] = EMPTY | known | {"kind": kind}
            if summary.get("weights_sha256") not in (None, run.result.get("weights_sha256")):
                run.problems.append(f"eval/{kind} measured other weights than this run's model: evaluate it again")
    return run


def read_controls(run: Found) -> list[Found]:
    """The runs in `controls/`, by name; what is no run there is one of `run`'s problems."""
    controls = []
    for path in sorted(path for path in (run.path / "controls").glob("*") if path.is_dir()):
        try:
            controls.append(read_run(path))
        except UserError as error:
            run.problems.append(str(error))
    return controls


def _json(run: Found, name: str, wanted: type) -> Any:
    file = run.path / name
    if not file.exists():
        return wanted()
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if isinstance(value, wanted):
        return value
    run.problems.append(f"{name} is damaged and was left out")
    return wanted()


def _layers(run: Found) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    file = run.path / "selection.safetensors"
    if not file.exists():
        return {}
    try:
        with safe_open(file, "pt") as tensors:
            return json.loads(tensors.metadata()["facts"])["layers"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        run.problems.append(f"{file.name} is damaged and was left out")
        return {}
