"""The demo: one concept out of the embedded model, the controls that show what each part brings, and two attacks."""

from __future__ import annotations

import dataclasses
import shutil
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

CONTROLS: dict[str, dict[str, Any]] = {
    "trim-only": {"trim": True, "steps": 0},
    "no-trim": {"trim": False},
    "no-projection": {"projection": "none"},
}
ATTACKS: dict[str, dict[str, Any]] = {"embedding": {"restarts": 1, "count": 48}, "paraphrase": {"count": 48}}


def demo(folder: Path, concept: str, *, count: int, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Erase `concept` with the defaults and with each of `CONTROLS`, judge them all on the same prompts, attack, write the page.

    A demo that was killed, or is run again, continues.

    Returns:
        concept, model_dir, report, rows: name, figures, trimmed, seconds; attacks: name -> asr_after, the original's too.
    """
    settings = EraseSettings(concepts=(concept,), model="tiny", seed=seed)
    runs = {"erased": (folder, settings)}
    for name, change in CONTROLS.items():
        runs[name] = (folder / "controls" / name, dataclasses.replace(settings, **change))
    panel, looks = open_panel(of_world(concept), in_world=True), room.Looks(seed=seed, count=count, progress=progress)
    rows: list[dict[str, Any]] = []
    for name, (path, asked) in runs.items():
        result = erase(asked, path, resume=True, progress=progress)
        if path != folder:
            share_original(folder / "eval" / "canvas", path / "eval" / "canvas")
        told = room.evaluate(
            result["model_dir"], "tiny", of_world(concept), path / "eval" / "canvas", panel=panel, looks=looks
        )
        if not rows:
            rows.append({"name": "original", "figures": told["original"], "trimmed": 0, "seconds": 0.0})
        rows.append(
            {"name": name, "figures": told["figures"], "trimmed": result["trimmed"], "seconds": result["seconds"]}
        )
    attacks = {}
    for name, changes in ATTACKS.items():
        wanted = AttackSettings(name, concept, str(folder / "model"), "tiny", seed=seed, **changes)
        told = attack(wanted, folder / "attack" / name, progress=progress)
        attacks[name] = {"asr_after": told["asr_after"], "original": told["original"]["asr_after"]}
    write_card(folder)
    report = write_report(folder)
    return {
        "concept": concept,
        "model_dir": str(folder / "model"),
        "report": str(report),
        "rows": rows,
        "attacks": attacks,
    }


def share_original(drawn: Path, folder: Path) -> None:
    """The original draws the same pictures for every control: hand its ledgers on instead of drawing them again."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for file in [*drawn.glob("original*.jsonl"), *(drawn / "samples").glob("*-original.png")]:
        shutil.copyfile(file, folder / file.relative_to(drawn))
