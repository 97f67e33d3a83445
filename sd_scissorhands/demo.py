"""The demo: one concept out of the embedded model by the default recipe and by others, each evaluated and attacked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .attacks.attack_settings import AttackSettings
from .comparison.measure import Measured, Measurements, measure
from .domains import DOMAINS
from .evaluation import concept as concept_evaluation
from .evaluation.judge_set import open_judges
from .report import write_card, write_report
from .results.demo import DemoRates, DemoResult, DemoRow
from .run import Progress, silent
from .settings import EraseSettings

CONTROLS = ("scissorhands-anchored", "scissorhands", "substitution")  # other recipes
COUNT = 48  # pictures under attack


def demo(folder: Path, concept: str, *, count: int, seed: int = 0, progress: Progress = silent) -> DemoResult:
    """Erase `concept` by the default recipe and by each of `CONTROLS`, evaluate and attack them all alike, write the page.

    A demo that was killed, or is run again, continues.
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
    rates = {name: DemoRates(one.asr_after, one.original.asr_after, one.verdict) for name, one in first.attacks.items()}
    original = DemoRow("original", first.evaluation.original, 0, 0.0, rates["embedding"].original)
    rows = [original, _row("erased", first)]
    what = dataclasses.replace(what, attacks={"embedding": embedding})
    for recipe in CONTROLS:
        control = dataclasses.replace(settings, recipe=recipe)
        rows.append(_row(recipe, measure(control, folder / "controls" / recipe, what, progress)))
    write_card(folder)
    return DemoResult(found.name, str(folder / "model"), str(write_report(folder)), tuple(rows), rates)


def _row(name: str, one: Measured) -> DemoRow:
    erased = one.erasure
    return DemoRow(name, one.evaluation.figures, erased.trimmed, erased.seconds, one.attacks["embedding"].asr_after)
