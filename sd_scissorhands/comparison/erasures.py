"""Recipes compared on a diffusion model: concepts erased, evaluated and attacked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from ..attacks import ATTACKS
from ..attacks.attack import hash_attack_files
from ..attacks.attack_settings import AttackSettings, NamedAttack
from ..attacks.base import ASR, AttackMetric
from ..concepts import check_distinct
from ..disk import hash_text
from ..evaluation import concept as concept_evaluation
from ..evaluation.judge_set import JudgeSet, open_judges
from ..evaluation.metrics import figure_names
from ..evaluation.sample import check_models
from ..lineage import erased_from
from ..models.locate import domain_of_model, locate, profile_of_model
from ..preparation import hash_named_files
from ..preset_check import name_of, names_file
from ..report import write_card, write_report
from ..report.comparison_page import ORIGINAL
from ..results.attack import AttackResult
from ..results.comparison import ColumnNote, ComparisonRow
from ..run import Progress
from ..settings import EraseSettings
from .jobs import Comparison, Job, intervals, jobs_of
from .measure import Measured, Measurements, measure

ERASURE_COSTS = ("trimmed", "seconds")  # of an erasure
# Of a concept; left out where empty, so that comparisons made without them continue.
LATER = ("beside", "translations", "judge", "judge_names")
ATTACKED_BY = ("count", "learn_from", "steps", "restarts", "lr", "tokens", "batch_size")  # what an attack depends on


class Erasures:
    """Concepts erased from a diffusion model."""

    kind = "diffusion"

    def __init__(self, comparison: Comparison):
        settings: Any = comparison.settings
        self.comparison, self.measures = comparison, comparison.measures
        self.model, self.anchor = settings.model, settings.anchor
        self.domain = domain_of_model(self.model, settings.model_config)
        self.profile = profile_of_model(self.model, settings.model_config)
        named = [text for target in comparison.targets for text in target["concepts"]]
        found = [self.domain.resolve(text, self.anchor) for text in named]
        check_distinct(found)
        self.concepts = {concept.name: concept for concept in found}
        self.files = {one.name: text for text, one in zip(named, found, strict=True) if names_file(text)}
        self._opened: tuple[str, JudgeSet] | None = None

    @property
    def columns(self) -> dict[str, ColumnNote]:
        """What the figures are that the attacks bring beside the first one's ASR."""
        return {
            name: ColumnNote(column.header.format(ATTACKS[one.attack].title) + one.note, column.meaning, column.unit)
            for name, (one, column) in attack_columns(self.measures.attacks).items() if name != "asr"
        }  # fmt: skip

    def jobs(self, root: Path) -> list[Job]:
        """All rows to be made, those of a target and a seed together; cheap."""
        targets = [(one, {"concepts": (self.files.get(one, one),)}) for one in self.concepts]
        return jobs_of(self.comparison, self.profile, root, targets, self._depends_on)

    def contents(self, job: Job) -> dict[str, str]:
        """What a row depends on beside settings: hashes of models, judges and files. So they are checked before work starts."""
        concept, facts = asdict(self.concepts[job.target]), [judge.facts for judge in self._judges(job.target).judges]
        concept = {name: value for name, value in concept.items() if value or name not in LATER}
        found = {
            "model_sha256": self._model_sha256, "concept_sha256": hash_text(json.dumps(concept)),
            "judges_sha256": hash_text(json.dumps(facts)),
            **{f"{name}_sha256": value for name, value in hash_named_files(job.settings).items()},
        }  # fmt: skip
        for name, one in self._attacks(job.settings).items():
            found |= {f"attack_{name}_{what}": value for what, value in hash_attack_files(one).items()}
        return found

    @cached_property
    def _model_sha256(self) -> str:
        check_models(self.model, None)
        return locate(self.model).sha256

    def rows(self, job: Job, progress: Progress) -> dict[str, ComparisonRow]:
        """Erase, evaluate and attack: "model" -> its row, "original" -> the original's."""
        seed, measures = job.settings.seed, self.measures
        request = concept_evaluation.ConceptRequest(
            seed=seed, count=measures.count, erased=tuple(one for one in erased_from(self.model) if name_of(one) != job.target),
            steps=measures.sampling_steps, guidance=measures.guidance, device=job.settings.device, progress=progress,
        )  # fmt: skip
        what = Measurements(
            self.concepts[job.target], self.model, self._judges(job.target), request, self._attacks(job.settings),
            job.folder.parent / f"{ORIGINAL}-seed{seed}", self.anchor,
        )  # fmt: skip
        measured = measure(job.settings, job.folder, what, progress)
        write_card(job.folder)
        write_report(job.folder)
        return erased_rows(job, measured, measures.attacks)

    def nothing(self, job: Job, why: str) -> ComparisonRow:
        """The row of a run that diverged."""
        names = (*figure_names(), "asr", *attack_columns(self.measures.attacks))
        return job.row(figures=dict.fromkeys(names), costs=dict.fromkeys(ERASURE_COSTS), failed=why)

    def _judges(self, name: str) -> JudgeSet:
        """The judges of a concept; one concept's at a time, for their models are large."""
        if self._opened is None or self._opened[0] != name:
            self._opened = None
            self._opened = name, open_judges(
                self.concepts[name], domain=self.domain, judge=self.measures.judge, threshold=self.measures.threshold,
                clip=self.measures.clip, device=self.comparison.settings.device,
            )  # fmt: skip
        return self._opened[1]

    def _attacks(self, settings: EraseSettings) -> dict[str, AttackSettings]:
        seed, device = settings.seed, settings.device
        found = self.measures.attack_settings(settings.concepts[0], self.model, seed=seed, device=device)
        return {name: one.resolved(self.profile) for name, one in found.items()}

    def _depends_on(self, settings: EraseSettings) -> dict[str, Any]:
        """What a row depends on beside the settings of its run, by names of their own."""
        measures = self.measures
        own = {"limit": measures.count, "eval_steps": measures.sampling_steps, "eval_guidance": measures.guidance}
        own |= {name: getattr(measures, name) for name in ("judge", "threshold", "clip", "attack")}
        own |= dict.fromkeys(f"attack_{name}" for name in ATTACKED_BY)
        for place, (name, one) in enumerate(self._attacks(settings).items()):
            whose, values = f"attack_{name}" if place else "attack", one.to_json()
            own |= {f"{whose}_{name}": values[name] for name in (*ATTACKED_BY, *one.options)}
        return own


def attack_columns(attacks: Sequence[NamedAttack]) -> dict[str, tuple[NamedAttack, AttackMetric]]:
    """Figure -> the attack and its column; the ASR of the first attack that is graded is "asr"."""
    found: dict[str, tuple[NamedAttack, AttackMetric]] = {}
    for one in attacks:
        for column in ATTACKS[one.attack].columns:
            first = column is ASR and ATTACKS[one.attack].graded and "asr" not in found
            found["asr" if first else column.name.format(one.name)] = (one, column)
    return found


def erased_rows(job: Job, measured: Measured, attacks: Sequence[NamedAttack]) -> dict[str, ComparisonRow]:
    """The rows of an erased model and of its original: figures, each with n and its 95 % interval."""
    evaluation, results, columns = measured.evaluation, measured.attacks, attack_columns(attacks)
    first = results[columns["asr"][0].name] if "asr" in columns else AttackResult()
    counts = {name: results[one.name].n or 0 for name, (one, column) in columns.items() if column.unit == "share"}
    n = evaluation.n | counts

    rows, costs = {}, measured.erasure.to_json()
    for name, own, which in (("model", evaluation.figures, "value"), (ORIGINAL, evaluation.original, "original")):
        attacked = {metric: getattr(column, which)(results[one.name]) for metric, (one, column) in columns.items()}
        figures, ours = {**own, "asr": None, **attacked}, name == "model"
        rows[name] = job.row(
            None if ours else name, figures=figures, costs={cost: costs.get(cost) if ours else None for cost in ERASURE_COSTS},
            n=n, collapsed=ours and evaluation.collapse.collapsed, intervals=intervals(figures, n, [*own, *columns]),
            original_asr=first.original.asr_after, broken=first.broken, nothing_to_erase=evaluation.nothing_to_erase,
        )  # fmt: skip
    return rows
