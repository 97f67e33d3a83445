"""Recipes compared on a diffusion model: concepts erased, judged and attacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..attacks.attack_settings import AttackSettings
from ..evaluation import concept as room
from ..evaluation.judge_set import JudgeSet, open_judges
from ..evaluation.sample import check_models
from ..lineage import erased_from
from ..models.load import domain_of_model
from ..report import write_card, write_report
from ..report.comparison_page import FIGURES, ORIGINAL
from ..run import Progress
from ..settings import EraseSettings
from .exam import Exam, Examined, examine
from .jobs import Comparison, Job, Row, intervals, jobs_of

MOST_ATTACKED = 60  # pictures under attack, unless fewer are asked for
ATTACKED_BY = ("count", "learn_from", "steps", "restarts", "lr", "tokens", "batch_size")  # settings of an attack alone


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

    def jobs(self, root: Path) -> list[Job]:
        each = (
            jobs_of(self.asked, self.profile, root, one, {"concepts": (one,)}, self._measures) for one in self.concepts
        )
        return [job for jobs in each for job in jobs]

    def check(self) -> None:
        check_models(self.model, None)
        for name in self.concepts:
            self._panel(name)

    def rows(self, job: Job, progress: Progress) -> dict[str, Row]:
        seed, asked = job.settings.seed, self.asked.measures
        looks = room.ConceptRequest(
            seed=seed, count=asked.count, erased=tuple(one for one in erased_from(self.model) if one != job.target),
            steps=asked.sampling_steps, guidance=asked.guidance, device=job.settings.device, progress=progress,
        )  # fmt: skip
        drawn = job.folder.parent / f"{ORIGINAL}-seed{seed}"
        exam = Exam(
            self.concepts[job.target], self.model, self._panel(job.target), looks, self._attacks(job.settings), drawn,
            self.anchor,
        )  # fmt: skip
        examined = examine(job.settings, job.folder, exam, progress)
        write_card(job.folder)
        write_report(job.folder)
        return erased_rows(job, examined)

    def nothing(self, job: Job) -> Row:
        figures = dict.fromkeys((*FIGURES["diffusion"], "original_asr", "broken", "collapsed"))
        return _about(job) | figures | {"n": {}, "intervals": {}, **job.facts}

    def _panel(self, name: str) -> JudgeSet:
        """The judges of a concept; one concept's at a time, for their models are large."""
        if self._opened is None or self._opened[0] != name:
            asked = self.asked.measures
            self._opened = None
            self._opened = name, open_judges(
                self.concepts[name], domain=self.domain, judge=asked.judge, threshold=asked.threshold, clip=asked.clip,
                device=self.asked.settings.device,
            )  # fmt: skip
        return self._opened[1]

    def _attacks(self, settings: EraseSettings) -> dict[str, AttackSettings]:
        asked = self.asked.measures
        if asked.attack is None:
            return {}
        common: dict[str, Any] = dict(
            count=min(asked.count, MOST_ATTACKED), judge=asked.judge, threshold=asked.threshold, clip=asked.clip,
            sampling_steps=asked.sampling_steps, guidance=asked.guidance, seed=settings.seed, device=settings.device,
        )  # fmt: skip
        struck = AttackSettings(asked.attack, settings.concepts[0], "", self.model, **(common | dict(asked.attacking)))
        return {asked.attack: struck.resolved(self.profile)}

    def _measures(self, settings: EraseSettings) -> dict[str, Any]:
        """What else a row depends on, by names of their own."""
        asked = self.asked.measures
        own = {"limit": asked.count, "eval_steps": asked.sampling_steps, "eval_guidance": asked.guidance}
        own |= {name: getattr(asked, name) for name in ("judge", "threshold", "clip", "attack")}
        struck = {name: one.to_json() for name, one in self._attacks(settings).items()}.get(asked.attack or "", {})
        return own | {f"attack_{name}": struck.get(name) for name in ATTACKED_BY}


def _about(job: Job) -> Row:
    return {"recipe": job.settings.recipe, "concept": job.target, "seed": job.settings.seed}


def erased_rows(job: Job, examined: Examined) -> dict[str, Row]:
    """The rows of an erased model and of its original: figures, each with n and its 95 % interval."""
    told = examined.told
    struck: dict[str, Any] = next(iter(examined.struck.values()), {})
    theirs: dict[str, Any] = struck.get("original", {})
    n = told["n"] | ({"asr": struck["n"]} if struck else {})
    shared = {"original_asr": theirs.get("asr_after"), "broken": struck.get("broken")}
    model = _about(job) | told["figures"] | {
        "asr": struck.get("asr_after"), **shared, "collapsed": told["collapse"]["collapsed"],
        "trimmed": examined.result["trimmed"], "seconds": examined.result["seconds"], "n": n,
        "intervals": told["intervals"] | ({"asr": struck["interval_after"]} if struck else {}), **job.facts,
    }  # fmt: skip
    original = _about(job) | told["original"] | {
        "recipe": ORIGINAL, "asr": theirs.get("asr_after"), **shared, "collapsed": False, "trimmed": None, "seconds": None,
        "n": n, "intervals": intervals(told["original"], n, tuple(told["n"]))
        | ({"asr": theirs["interval_after"]} if struck else {}), "baseline": False, "run": None,
    }  # fmt: skip
    return {"model": model, ORIGINAL: original}
