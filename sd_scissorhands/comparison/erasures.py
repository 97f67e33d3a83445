"""Recipes compared on a diffusion model: concepts erased, evaluated and attacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..attacks import ATTACKS
from ..attacks.attack_settings import AttackSettings, NamedAttack
from ..attacks.base import ASR, Column
from ..evaluation import concept as concept_evaluation
from ..evaluation.panel import JudgeSet, open_judges
from ..evaluation.sample import check_models
from ..lineage import erased_from
from ..models.locate import domain_of_model
from ..report import write_card, write_report
from ..report.comparison_page import ORIGINAL
from ..results.attack import AttackResult
from ..results.comparison import ColumnNote, ComparisonRow, Number
from ..run import Progress
from ..settings import EraseSettings
from .jobs import Comparison, Job, intervals, jobs_of
from .measure import Measured, Measurements, measure

COSTS = ("trimmed", "seconds")  # of an erasure
ATTACKED_BY = ("count", "learn_from", "steps", "restarts", "lr", "tokens", "batch_size")  # what an attack depends on


class Erasures:
    """Concepts erased from a diffusion model."""

    kind = "diffusion"

    def __init__(self, asked: Comparison):
        settings: Any = asked.settings
        self.asked, self.model, self.anchor = asked, settings.model, settings.anchor
        self.domain = domain_of_model(self.model, settings.model_config)
        self.profile = self.domain.profile
        named = [text for target in asked.targets for text in target["concepts"]]
        found = [self.domain.resolve(text, self.anchor) for text in named]
        self.concepts = {concept.name: concept for concept in found}
        self._opened: tuple[str, JudgeSet] | None = None

    @property
    def columns(self) -> dict[str, ColumnNote]:
        """What the figures are that the attacks bring beside the first one's ASR."""
        figures = attack_columns(self.asked.measures.attacks)
        return {
            name: ColumnNote(_header(one, column), column.meaning, column.unit)
            for name, (one, column) in figures.items()
            if name != "asr"
        }

    def jobs(self, root: Path) -> list[Job]:
        each = (
            jobs_of(self.asked, self.profile, root, one, {"concepts": (one,)}, self._measures) for one in self.concepts
        )
        return [job for jobs in each for job in jobs]

    def check(self) -> None:
        check_models(self.model, None)
        for name in self.concepts:
            self._panel(name)

    def rows(self, job: Job, progress: Progress) -> dict[str, ComparisonRow]:
        seed, measures = job.settings.seed, self.asked.measures
        looks = concept_evaluation.Looks(
            seed=seed, count=measures.count, gone=tuple(one for one in erased_from(self.model) if one != job.target),
            steps=measures.sampling_steps, guidance=measures.guidance, device=job.settings.device, progress=progress,
        )  # fmt: skip
        what = Measurements(
            self.concepts[job.target], self.model, self._panel(job.target), looks, self._attacks(job.settings),
            job.folder.parent / f"{ORIGINAL}-seed{seed}", self.anchor,
        )  # fmt: skip
        measured = measure(job.settings, job.folder, what, progress)
        write_card(job.folder)
        write_report(job.folder)
        return erased_rows(job, measured, self.asked.measures.attacks)

    def nothing(self, job: Job, why: str) -> ComparisonRow:
        figures = dict.fromkeys((*concept_evaluation.FIGURES, "asr", *attack_columns(self.asked.measures.attacks)))
        return job.row(figures=figures, costs=dict.fromkeys(COSTS), failed=why)

    def _panel(self, name: str) -> JudgeSet:
        """The judges of a concept; one concept's at a time, for their models are large."""
        if self._opened is None or self._opened[0] != name:
            measures = self.asked.measures
            self._opened = None
            self._opened = name, open_judges(
                self.concepts[name], domain=self.domain, judge=measures.judge, threshold=measures.threshold,
                clip=measures.clip, device=self.asked.settings.device,
            )  # fmt: skip
        return self._opened[1]

    def _attacks(self, settings: EraseSettings) -> dict[str, AttackSettings]:
        found = self.asked.measures.attack_settings(settings.concepts[0], self.model, settings.seed, settings.device)
        return {name: one.resolved(self.profile) for name, one in found.items()}

    def _measures(self, settings: EraseSettings) -> dict[str, Any]:
        """What else a row depends on, by names of their own."""
        measures = self.asked.measures
        own = {"limit": measures.count, "eval_steps": measures.sampling_steps, "eval_guidance": measures.guidance}
        own |= {name: getattr(measures, name) for name in ("judge", "threshold", "clip", "attack")}
        own |= dict.fromkeys(f"attack_{name}" for name in ATTACKED_BY)
        for place, (name, one) in enumerate(self._attacks(settings).items()):
            whose, values = "attack" if not place else f"attack_{name}", one.to_json()
            own |= {f"{whose}_{name}": values[name] for name in (*ATTACKED_BY, *one.options)}
        return own


def _header(attack: NamedAttack, column: Column) -> str:
    named = "" if "{}" in column.header or attack.name == attack.attack else f", {attack.name}"
    return column.header.format(attack.title) + named


def attack_columns(attacks: Sequence[NamedAttack]) -> dict[str, tuple[NamedAttack, Column]]:
    """Figure -> the attack and its column; the ASR of the first attack that is graded is "asr"."""
    found: dict[str, tuple[NamedAttack, Column]] = {}
    for one in attacks:
        for column in ATTACKS[one.attack].columns:
            first = column is ASR and ATTACKS[one.attack].graded and "asr" not in found
            found["asr" if first else column.name.format(one.name)] = (one, column)
    return found


def erased_rows(job: Job, measured: Measured, attacks: Sequence[NamedAttack]) -> dict[str, ComparisonRow]:
    """The rows of an erased model and of its original: figures, each with n and its 95 % interval."""
    evaluation, columns = measured.evaluation, attack_columns(attacks)
    figures: dict[str, dict[str, Number]] = {"model": {"asr": None}, ORIGINAL: {"asr": None}}
    n = dict(evaluation["n"])
    for name, (one, column) in columns.items():
        result = measured.attacks[one.name]
        figures["model"][name], figures[ORIGINAL][name] = column.value(result), column.original(result)
        n |= {name: result.n} if column.unit == "share" else {}
    first = measured.attacks[columns["asr"][0].name] if "asr" in columns else AttackResult()
    shared: dict[str, Any] = dict(n=n, original_asr=first.original.asr_after, broken=first.broken)
    model = evaluation["intervals"] | intervals(figures["model"], n, columns)
    original = intervals(evaluation["original"] | figures[ORIGINAL], n, [*evaluation["original"], *columns])
    costs = {cost: measured.erasure[cost] for cost in COSTS}
    return {
        "model": job.row(
            figures=evaluation["figures"] | figures["model"],
            costs=costs,
            intervals=model,
            collapsed=evaluation["collapse"]["collapsed"],
            **shared,
        ),
        ORIGINAL: job.row(
            recipe=ORIGINAL,
            figures=evaluation["original"] | figures[ORIGINAL],
            costs=dict.fromkeys(COSTS),
            intervals=original,
            collapsed=False,
            **shared,
        ),
    }
