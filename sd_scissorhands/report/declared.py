"""What figures and attacks are called and mean on the pages: as they are declared, or else by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..attacks import ATTACKS
from ..attacks.base import ASR, Column
from ..domains import DOMAINS
from ..results.attack import AttackResult
from ..results.comparison import ColumnNote
from ..results.evaluation import NUDITY_KINDS


@dataclass(frozen=True)
class Figure:
    """What a column shows."""

    title: str
    meaning: str = ""  # in a sentence
    unit: str = "share"  # share | number | distance | bytes
    better: str = "higher"
    under_kept: bool = False


try:  # until the registry of metrics lands, see the branch `evaluation`
    from ..evaluation.metrics import METRICS, metrics_of
except ModuleNotFoundError:
    SHARES = {
        "UA": "unlearning accuracy: pictures for prompts that name the concept in which the judge no longer sees it; higher is better.",
        "UA_synonyms": "the same for prompts that use other words for the concept, which the erasure was never shown; higher is better.",
        "UA_generic": "the same for prompts that leave open what the concept would say, such as an object, or that say nothing; higher is better.",
        "IRA": "in-domain retain accuracy: pictures for prompts that name a sibling of the concept, such as another shape, in which the judge sees it; higher is better.",
        "CRA": "cross-domain retain accuracy: the other words of those prompts, such as colours, that are drawn right (n counts words); higher is better.",
        "CRA_forget": "the same for prompts that name the concept: whether all but the concept is still drawn; higher is better.",
    }
    TITLES = {"CRA_forget": "CRA on forget prompts", "frechet": "Fréchet", "kid": "KID", "cmmd": "CMMD"}

    class _Metrics(dict):
        def __iter__(self):
            return iter(list(self.items()))

    METRICS = _Metrics({name: Figure(TITLES.get(name, name.replace("_", " ")), text) for name, text in SHARES.items()})
    METRICS["clip_score"] = Figure("CLIP score", "", "number", under_kept=True)
    METRICS |= {name: Figure(TITLES[name], "", "distance") for name in ("frechet", "kid", "cmmd")}
    METRICS["nudity"] = Figure(
        "exposed", "pictures in which NudeNet sees an exposed part of a body; lower is better.", "number"
    )

    def metrics_of(kind):
        return {name: metric for name, metric in METRICS if name in SHARES}


COSTS = {
    "trimmed": Figure(
        "trimmed weights",
        "weights that the edit changed before the repair, out of those that were allowed to change (the scope).",
        "number",
    ),
    "conflict_rate": Figure(
        "conflict rate",
        "repair steps whose gradient would have undone the forgetting and was projected; a dash where nothing is projected.",
    ),
    "seconds": Figure("seconds", "of the erasure or forgetting, without what was measured.", "number"),
    "peak_bytes": Figure("peak memory", "beyond what was in use before the forgetting.", "bytes"),
}


ATTACKED = {"asr": Figure("ASR", ASR.meaning)}  # of a comparison's first attack
CLASSIFIER = {
    "forget_accuracy": Figure(
        "accuracy, forgotten",
        "on the training pictures that are to be forgotten; nearest to the retrained model's is best.",
    ),
    "test_forget_accuracy": Figure(
        "forgotten, test", "on the test pictures of the forgotten class, of which none was trained on."
    ),
    "retain_accuracy": Figure("accuracy, kept", "on the other training pictures; higher is better."),
    "test_accuracy": Figure(
        "accuracy, test", "on test pictures, without those of a forgotten class; higher is better."
    ),
    "mia": Figure(
        "MIA", "membership inference from the loss, by logistic regression: how often it is right; 50% is best."
    ),
    "mia_svc": Figure(
        "MIA, SVC",
        "forgotten pictures that a support vector classifier takes for ones never trained on; nearest to the "
        "retrained model's is best.",
    ),
    "probe": Figure(
        "probe",
        "accuracy on what is forgotten of a fresh linear classifier on the model's features: what they still hold.",
    ),
    "relearn": Figure(
        "relearn steps",
        "steps of fine-tuning until what was forgotten is back; more is better. n counts relearnings, and in "
        "parentheses is their range.",
        "number",
    ),
    "gap": Figure(
        "gap",
        "mean absolute difference to the retrained model in forgotten, kept and test accuracy and MIA; lower is "
        "better, and n counts these figures.",
    ),
    "trimmed": Figure("trimmed weights", "weights that the edit changed before the repair.", "number"),
    "seconds": Figure("seconds", "of the forgetting, without what was measured.", "number"),
    "peak_bytes": Figure("peak memory", "beyond what was in use before the forgetting.", "bytes"),
}


def figure(name: str, columns: Mapping[str, ColumnNote] = {}) -> Figure:
    """A figure as its metric, its attack (in `columns`, see `ComparisonResult`) or the costs declare it."""
    if name in columns:
        return Figure(columns[name].header, columns[name].meaning, columns[name].unit)
    if name in METRICS:
        return Figure(METRICS[name].title, METRICS[name].meaning, METRICS[name].unit)
    return CLASSIFIER.get(name) or COSTS.get(name) or ATTACKED.get(name) or Figure(name.replace("_", " "))


def evaluation_titles() -> dict[str, str]:
    """What each kind of evaluation is called: the domains', then NudeNet's."""
    return {domain.evaluation: domain.evaluation_title for _, domain in DOMAINS} | NUDITY_KINDS


def attack_title(attack: AttackResult) -> str:
    """What an attack is called."""
    return ATTACKS[attack.attack].title if attack.attack in ATTACKS else attack.attack or "attack"


def attack_columns(attack: AttackResult) -> tuple[Column, ...]:
    """The columns that an attack has in tables of several models."""
    return ATTACKS[attack.attack].columns if attack.attack in ATTACKS else (ASR,)


def graded(attack: AttackResult) -> bool:
    """Whether an attack's success rate grades the erasure."""
    return attack.attack not in ATTACKS or ATTACKS[attack.attack].graded
