"""One erasure, judged and attacked; what the original drew is made once for all that are compared with it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attacks.attack import attack
from ..attacks.attack_settings import AttackSettings
from ..concepts import Concept
from ..disk import atomic
from ..erasure import erase
from ..evaluation import concept as room
from ..evaluation.judge_set import JudgeSet
from ..run import Progress, silent
from ..settings import EraseSettings

DRAWN = ("original*.jsonl", "samples/*-original*.png", "original-*.safetensors", "pictures.safetensors")


def share_original(drawn: Path, folder: Path, files: Sequence[str] = DRAWN) -> None:
    """What the original drew, and what was learned on it, is the same for every model: hand it on instead of making it again."""
    if drawn == folder:
        return
    for file in [file for pattern in files for file in drawn.glob(pattern)]:
        target = folder / file.relative_to(drawn)
        if not target.exists():
            with atomic(target) as new:
                shutil.copyfile(file, new)


@dataclass(frozen=True)
class Exam:
    """What every model goes through after its erasure."""

    concept: Concept
    baseline: str
    panel: JudgeSet
    looks: room.ConceptRequest
    attacks: Mapping[str, AttackSettings]  # folder under attack/ -> the attack, whatever model it names
    drawn: Path  # keeps what the original drew, as a run directory does
    anchor: str | None = None  # of a concept in free text


@dataclass(frozen=True)
class Examined:
    """What an erasure, its evaluation and its attacks came to."""

    result: dict[str, Any]
    told: dict[str, Any]
    struck: dict[str, dict[str, Any]]  # by the names of `Exam.attacks`


def examine(settings: EraseSettings, folder: Path, exam: Exam, progress: Progress = silent) -> Examined:
    """Erase into the run directory `folder`, judge and attack. What is there already is continued.

    Raises:
        UserError: as `erase`, `evaluate` and `attack`.
    """
    result = erase(settings, folder, resume=True, progress=progress)
    judged = Path("eval") / (exam.panel.domain.evaluation)
    share_original(exam.drawn / judged, folder / judged)
    told = room.evaluate(
        result["model_dir"], exam.baseline, exam.concept, folder / judged, judges=exam.panel, request=exam.looks
    ).to_json()
    share_original(folder / judged, exam.drawn / judged)
    worth = {key: told["figures"][key] for key in ("IRA", "CRA")}
    struck = {}
    for name, asked in exam.attacks.items():
        place = Path("attack") / name
        share_original(exam.drawn / place, folder / place)
        asked = dataclasses.replace(asked, model=str(folder / "model"), anchor=exam.anchor)
        struck[name] = attack(asked, folder / place, worth=worth, progress=progress)
        share_original(folder / place, exam.drawn / place)
    return Examined(result, told, struck)
