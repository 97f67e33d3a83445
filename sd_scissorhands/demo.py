"""The demo: one concept out of the embedded model by the default recipe and by others, each judged and attacked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .attacks.attack_settings import AttackSettings
from .comparison.exam import Exam, Examined, examine
from .domains import DOMAINS
from .evaluation import concept as room
from .evaluation.judge_set import open_judges
from .report import write_card, write_report
from .run import Progress, silent
from .settings import EraseSettings

CONTROLS = ("scissorhands-anchored", "scissorhands", "substitution")  # other recipes
ATTACKS: dict[str, dict[str, Any]] = {
    "embedding": {"restarts": 1, "tokens": 3, "count": 48}, "paraphrase": {"count": 48},
}  # fmt: skip


def demo(folder: Path, concept: str, *, count: int, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Erase `concept` by the default recipe and by each of `CONTROLS`, judge and attack them all alike, write the page.

    A demo that was killed, or is run again, continues.

    Returns:
        concept, model_dir, report, rows: name, figures, trimmed, seconds, asr; attacks: name -> asr_after, the original's too.
    """
    settings = EraseSettings(concepts=(concept,), model="tiny", seed=seed)
    canvas = DOMAINS["canvas"]
    known = canvas.resolve(concept, None)
    looks = room.ConceptRequest(seed=seed, count=count, progress=progress)
    strikes = {kind: AttackSettings(kind, concept, "", "tiny", seed=seed, **more) for kind, more in ATTACKS.items()}
    exam = Exam(known, "tiny", open_judges(known, domain=canvas), looks, strikes, drawn=folder)
    one = examine(settings, folder, exam, progress)
    attacks = {
        kind: {"asr_after": told["asr_after"], "original": told["original"]["asr_after"]}
        for kind, told in one.struck.items()
    }
    original = {"figures": one.told["original"], "trimmed": 0, "seconds": 0.0, "asr": attacks["embedding"]["original"]}
    rows = [{"name": "original", **original}, _row("erased", one)]
    exam = dataclasses.replace(exam, attacks={"embedding": strikes["embedding"]})
    for recipe in CONTROLS:
        asked = dataclasses.replace(settings, recipe=recipe)
        rows.append(_row(recipe, examine(asked, folder / "controls" / recipe, exam, progress)))
    write_card(folder)
    report = write_report(folder)
    return {
        "concept": concept, "model_dir": str(folder / "model"), "report": str(report), "rows": rows, "attacks": attacks,
    }  # fmt: skip


def _row(name: str, one: Examined) -> dict[str, Any]:
    costs = {cost: one.result[cost] for cost in ("trimmed", "seconds")}
    return {"name": name, "figures": one.told["figures"], **costs, "asr": one.struck["embedding"]["asr_after"]}
