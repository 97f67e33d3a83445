"""One erasure, evaluated and attacked; what the original draws is made once for all that are compared with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..attacks.attack import attack
from ..attacks.attack_settings import AttackSettings
from ..concepts import Concept
from ..erasure import erase
from ..evaluation import concept as concept_evaluation
from ..evaluation.judge_set import JudgeSet
from ..measured_before import copy_original
from ..results.attack import AttackResult
from ..results.erase import EraseResult
from ..results.evaluation import ConceptEvaluation
from ..run import Progress, silent
from ..settings import EraseSettings


@dataclass(frozen=True)
class Measurements:
    """What is measured of every model after its erasure."""

    concept: Concept
    baseline: str
    judges: JudgeSet
    request: concept_evaluation.ConceptRequest
    attacks: Mapping[str, AttackSettings]  # folder under attack/ -> the attack, whatever model it names
    original: Path  # collects what the original drew, as a run directory does
    anchor: str | None = None  # of a concept in free text


@dataclass(frozen=True)
class Measured:
    """What an erasure, its evaluation and its attacks came to."""

    erasure: EraseResult
    evaluation: ConceptEvaluation
    attacks: Mapping[str, AttackResult]  # by the names of `Measurements.attacks`


def measure(settings: EraseSettings, folder: Path, what: Measurements, progress: Progress = silent) -> Measured:
    """Erase into the run directory `folder`, evaluate and attack. What is there already is continued.

    Raises:
        UserError: as `erase`, `evaluate` and `attack`.
    """
    erasure = erase(settings, folder, resume=True, progress=progress)
    place = Path("eval") / what.judges.domain.evaluation
    copy_original(what.original / place, folder / place)
    evaluation = concept_evaluation.evaluate(
        erasure.model_dir, what.baseline, what.concept, folder / place, judges=what.judges, request=what.request
    )
    attacks = {}
    copy_original(folder / place, what.original / place)
    for name, one in what.attacks.items():
        place = Path("attack") / name
        copy_original(what.original / place, folder / place)
        one = dataclasses.replace(one, model=str(folder / "model"), anchor=what.anchor)
        attacks[name] = attack(one, folder / place, evaluation=evaluation, progress=progress)
        copy_original(folder / place, what.original / place)
    return Measured(erasure, evaluation, attacks)
