"""The demo: one concept out of the embedded model by the default recipe and by others, each evaluated and attacked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .attacks.attack_settings import AttackSettings
from .comparison.measure import Measured, Measurements, measure
from .domains import DOMAINS
from .evaluation import concept as concept_evaluation
from .evaluation.judge_set import open_judges
from .report import write_card, write_report
from .run import Progress, silent
from .settings import EraseSettings

CONTROLS = ("scissorhands-anchored", "scissorhands", "substitution")  # other recipes
COUNT = 48  # pictures under attack


def demo(folder: Path, concept: str, *, count: int, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Erase `concept` by the default recipe and by each of `CONTROLS`, evaluate and attack them all alike, write the page.

    A demo that was killed, or is run again, continues.

    Returns:
        concept, model_dir, report, rows: name, figures, trimmed, seconds, asr; attacks: name -> asr_after, the original's too.
    """
    settings = EraseSettings(concepts=(concept,), model="tiny", seed=seed)
    canvas = DOMAINS["canvas"]
    found = canvas.resolve(concept, None)
    looks = concept_evaluation.ConceptRequest(seed=seed, count=count, progress=progress)
    embedding = AttackSettings("embedding", concept, "", "tiny", count=COUNT, seed=seed, restarts=1, tokens=3)
    attacks = {
        "embedding": embedding,
        "paraphrase": AttackSettings("paraphrase", concept, "", "tiny", count=COUNT, seed=seed),
    }
    what = Measurements(found, "tiny", open_judges(found, domain=canvas), looks, attacks, original=folder)
    first = measure(settings, folder, what, progress)
    rates = {
        name: {"asr_after": one.asr_after, "original": one.original.asr_after} for name, one in first.attacks.items()
    }
    original = {
        "figures": first.evaluation.original,
        "trimmed": 0,
        "seconds": 0.0,
        "asr": rates["embedding"]["original"],
    }
    rows = [{"name": "original", **original}, _row("erased", first)]
    what = dataclasses.replace(what, attacks={"embedding": embedding})
    for recipe in CONTROLS:
        control = dataclasses.replace(settings, recipe=recipe)
        rows.append(_row(recipe, measure(control, folder / "controls" / recipe, what, progress)))
    write_card(folder)
    report = str(write_report(folder))
    return {"concept": concept, "model_dir": str(folder / "model"), "report": report, "rows": rows, "attacks": rates}


def _row(name: str, one: Measured) -> dict[str, Any]:
    costs = {cost: getattr(one.erasure, cost) for cost in ("trimmed", "seconds")}
    return {"name": name, "figures": one.evaluation.figures, **costs, "asr": one.attacks["embedding"].asr_after}
