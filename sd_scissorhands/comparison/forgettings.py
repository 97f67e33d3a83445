"""Recipes compared on an image classifier: classes or pictures forgotten, measured beside retraining."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..classifier.data import class_number
from ..classifier.reading import digits
from ..report import write_forgetting_report
from ..report.comparison_page import FIGURES, ORIGINAL, RETRAIN
from ..run import Progress
from ..settings import DIGITS, ForgetSettings, UserError
from .jobs import Comparison, Job, Row, jobs_of


class Forgettings:
    """Classes or pictures that an image classifier is to forget."""

    kind = "classifier"

    def __init__(self, asked: Comparison):
        self.asked = asked

    def jobs(self, root: Path) -> list[Job]:
        jobs: list[Job] = []
        for target in self.asked.targets:
            jobs += jobs_of(self.asked, "classifier", root, _named(target), target, _beside)
        return jobs

    def check(self) -> None:
        """The classes, where it costs nothing to know them."""
        if self.asked.settings.model == DIGITS:
            for target in self.asked.targets:
                if "forget_class" in target:
                    class_number(digits().train.names, target["forget_class"], "--forget-class")

    def rows(self, job: Job, progress: Progress) -> dict[str, Row]:
        from ..forgetting import forget

        listed = job.settings.forget_indices is not None  # of which forget knows no name, only the number
        shared = (job.folder.parent if listed else job.root) / "shared"
        told = forget(job.settings, job.folder, shared=shared, resume=True, progress=progress)
        write_forgetting_report(job.folder)
        return forgot_rows(job, told)

    def nothing(self, job: Job) -> Row:
        figures = dict.fromkeys(FIGURES["classifier"])
        return _about(job) | figures | {"n": {}, "intervals": {}, **job.facts}


def _named(target: Mapping[str, Any]) -> str:
    if "forget_class" in target:
        return f"class {target['forget_class']}"
    return (
        f"random {100 * target['forget_random']:g} %"
        if "forget_random" in target
        else Path(target["forget_indices"]).stem
    )


def _beside(settings: ForgetSettings) -> dict[str, Any]:
    """What a row depends on beside its settings: what is in the file that they name.

    Raises:
        UserError: it cannot be read.
    """
    if settings.forget_indices is None:
        return {}
    try:
        listed = Path(settings.forget_indices).read_bytes()
    except OSError as error:
        raise UserError(f"--forget-indices {settings.forget_indices} cannot be read: {error.strerror}") from None
    return {"forget_indices_sha256": hashlib.sha256(listed).hexdigest()}


def _about(job: Job) -> Row:
    """What a row is about; rows of different groups are never in one mean."""
    asked = job.settings
    group = (
        "classes"
        if asked.forget_class is not None
        else "lists of pictures"
        if asked.forget_indices
        else "random shares"
    )
    return {"recipe": asked.recipe, "forget": job.target, "group": group, "seed": asked.seed}


def forgot_rows(job: Job, told: Mapping[str, Any]) -> dict[str, Row]:
    """The rows of a model that forgot, of the original and, where it is known, of the model retrained without D_f."""
    n, own = dict(told.get("n") or {}), dict(told.get("intervals") or {})

    def row(recipe: str, figures: Mapping[str, Any], costs: Mapping[str, Any], intervals: Mapping[str, Any]) -> Row:
        return {
            **_about(job), "recipe": recipe, "forgotten": told.get("forget"),
            **{name: figures.get(name, costs.get(name)) for name in FIGURES["classifier"]},
            "n": n, "intervals": dict(intervals), "baseline": False, "run": None,
        }  # fmt: skip

    rows = {"model": row(job.settings.recipe, told["figures"], told, own) | job.facts}
    for name, key in ((ORIGINAL, "original"), (RETRAIN, "retrained")):
        if figures := told.get(key):
            rows[name] = row(name, figures, {}, told["intervals_beside"][key])
    return rows
