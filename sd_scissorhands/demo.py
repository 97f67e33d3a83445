"""The demo: one concept out of the embedded model by the default recipe and by others, each judged and attacked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .attack.attack import attack
from .attack.settings import AttackSettings
from .concepts import of_world
from .erase import erase
from .evaluate import concept as room
from .evaluate.panel import open_panel
from .report import write_card, write_report
from .run import Progress, silent
from .settings import EraseSettings

CONTROLS = ("scissorhands-anchored", "scissorhands", "substitution")  # other recipes
ATTACKS: dict[str, dict[str, Any]] = {
    "embedding": {"restarts": 1, "tokens": 3, "count": 48}, "paraphrase": {"count": 48},
}  # fmt: skip
DRAWN = ("original*.jsonl", "samples/*-original*.png", "original-*.safetensors", "pictures.safetensors")


def demo(folder: Path, concept: str, *, count: int, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Erase `concept` by the default recipe and by each of `CONTROLS`, judge and attack them all alike, write the page.

    A demo that was killed, or is run again, continues.

    Returns:
        concept, model_dir, report, rows: name, figures, trimmed, seconds, asr; attacks: name -> asr_after, the original's too.
    """
    settings = EraseSettings(concepts=(concept,), model="tiny", seed=seed)
    runs = {"erased": (folder, settings)}
    for recipe in CONTROLS:
        runs[recipe] = (folder / "controls" / recipe, dataclasses.replace(settings, recipe=recipe))
    panel, looks = open_panel(of_world(concept), in_world=True), room.Looks(seed=seed, count=count, progress=progress)
    rows: list[dict[str, Any]] = []
    attacks: dict[str, dict[str, float]] = {}
    for name, (path, asked) in runs.items():
        result = erase(asked, path, resume=True, progress=progress)
        share_original(folder / "eval" / "canvas", path / "eval" / "canvas")
        told = room.evaluate(
            result["model_dir"], "tiny", of_world(concept), path / "eval" / "canvas", panel=panel, looks=looks
        )
        worth = {key: told["figures"][key] for key in ("IRA", "CRA")}
        struck = {}
        for kind, changes in ATTACKS.items() if path == folder else [("embedding", ATTACKS["embedding"])]:
            share_original(folder / "attack" / kind, path / "attack" / kind)
            wanted = AttackSettings(kind, concept, str(path / "model"), "tiny", seed=seed, **changes)
            struck[kind] = attack(wanted, path / "attack" / kind, worth=worth, progress=progress)
        if not rows:
            attacks = {
                k: {"asr_after": one["asr_after"], "original": one["original"]["asr_after"]}
                for k, one in struck.items()
            }
            rows.append(_row("original", told["original"], 0, 0.0, attacks["embedding"]["original"]))
        rows.append(_row(name, told["figures"], result["trimmed"], result["seconds"], struck["embedding"]["asr_after"]))
    write_card(folder)
    report = write_report(folder)
    return {
        "concept": concept, "model_dir": str(folder / "model"), "report": str(report), "rows": rows, "attacks": attacks,
    }  # fmt: skip


def _row(name: str, figures: dict[str, Any], trimmed: int, seconds: float, asr: float) -> dict[str, Any]:
    return {"name": name, "figures": figures, "trimmed": trimmed, "seconds": seconds, "asr": asr}


def share_original(drawn: Path, folder: Path, files: Sequence[str] = DRAWN) -> None:
    """What the original drew, and what was learned on it, is the same for every model: hand it on instead of making it again."""
    if drawn == folder:
        return
    for file in [file for pattern in files for file in drawn.glob(pattern)]:
        target = folder / file.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(file, target)
