"""What figures and attacks are called and mean on the pages: as they are declared, or else by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..attacks import ATTACKS
from ..attacks.base import ASR, AttackMetric
from ..classifier.metrics import CLASSIFIER_METRICS
from ..domains import DOMAINS
from ..evaluation.metrics import METRICS
from ..results.attack import AttackResult
from ..results.comparison import ColumnNote
from ..results.evaluation import NUDITY_KINDS


@dataclass(frozen=True)
class Figure:
    """What a column shows."""

    title: str
    meaning: str = ""  # in a sentence
    unit: str = "share"  # share | number | distance | bytes
    in_words: str = ""  # see `Metric`


COST_FIGURES = {
    "trimmed": Figure(
        "trimmed weights",
        "weights that the edit changed before the repair, out of those that were allowed to change (the scope).",
        "number",
    ),
    "conflict_rate": Figure(
        "conflict rate",
        "repair steps whose gradient would have undone the forgetting, or harmed what is retained, and was projected; a dash where nothing is projected.",
    ),
    "seconds": Figure("seconds", "of the erasure or forgetting, without what was measured.", "number"),
    "peak_bytes": Figure("peak memory", "beyond what was in use before the forgetting.", "bytes"),
}


FIRST_ASR = Figure("ASR", ASR.meaning, in_words="back under attack")  # of a comparison's first attack


def figure(name: str, columns: Mapping[str, ColumnNote] = {}) -> Figure:
    """A figure as its metric, its attack (in `columns`, see `ComparisonResult`) or the costs declare it; else by its name."""
    if name in columns:
        return Figure(columns[name].header, columns[name].meaning, columns[name].unit)
    metric = METRICS[name] if name in METRICS else CLASSIFIER_METRICS.get(name)
    if metric:
        return Figure(metric.title, metric.meaning, metric.unit, metric.in_words)
    return FIRST_ASR if name == "asr" else COST_FIGURES.get(name) or Figure(name.replace("_", " "))


def evaluation_titles() -> dict[str, str]:
    """What each kind of evaluation is called: the domains', then NudeNet's."""
    return {domain.evaluation: domain.evaluation_title for _, domain in DOMAINS} | NUDITY_KINDS


def attack_title(attack: AttackResult) -> str:
    """What an attack is called."""
    return ATTACKS[attack.attack].title if attack.attack in ATTACKS else attack.attack or "attack"


def attack_columns(attack: AttackResult) -> tuple[AttackMetric, ...]:
    """The columns that an attack has in tables of several models."""
    return ATTACKS[attack.attack].columns if attack.attack in ATTACKS else (ASR,)


def graded(attack: AttackResult) -> bool:
    """Whether an attack's success rate grades the erasure."""
    return attack.attack not in ATTACKS or ATTACKS[attack.attack].graded
