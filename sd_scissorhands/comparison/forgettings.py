"""Recipes compared on an image classifier: classes or pictures forgotten, measured beside retraining."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..classifier.data import class_number
from ..classifier.load import profile_of_model
from ..classifier.metrics import CLASSIFIER_METRICS
from ..classifier.reading import digits
from ..disk import hash_files
from ..errors import UserError
from ..files import hash_file
from ..report import write_forgetting_report
from ..report.comparison_page import ORIGINAL, RETRAIN
from ..results.comparison import COSTS, ColumnNote, ComparisonRow
from ..results.forget import Figures, ForgetResult, Intervals
from ..run import Progress
from ..settings import DIGITS, ForgetSettings
from .jobs import Comparison, Job, jobs_of


class Forgettings:
    """Classes or pictures that an image classifier is to forget."""

    kind = "classifier"

    def __init__(self, comparison: Comparison):
        self.comparison, self.columns, self._hashes = comparison, dict[str, ColumnNote](), dict[Path, str]()

    def jobs(self, root: Path) -> list[Job]:
        """All rows to be made, those of a target and a seed together; cheap."""
        targets = [(_named(target), target) for target in self.comparison.targets]
        asked: Any = self.comparison.settings
        profile = profile_of_model(asked.model, asked.revision)
        return jobs_of(self.comparison, profile, root, targets, _depends_on)

    def contents(self, job: Job) -> dict[str, str]:
        """What a row depends on beside settings: hashes of models and data. A class is looked up where it costs nothing."""
        s = job.settings
        if s.model == DIGITS and s.forget_class is not None:
            class_number(digits().train.names, s.forget_class, "--forget-class")
        named = {"model": s.model, "retrained": s.retrained, "data": s.data}
        return {
            f"{name}_sha256": self._hash(Path(path)) for name, path in named.items() if path and Path(path).exists()
        }

    def _hash(self, path: Path) -> str:
        """Of a file, or of all files of a folder; each is read once."""
        if path not in self._hashes:
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            self._hashes[path] = hash_files(files, path.parent)
        return self._hashes[path]

    def rows(self, job: Job, progress: Progress) -> dict[str, ComparisonRow]:
        """Forget and measure: "model" -> its row, "original" and, where it is known, "retrain" -> theirs."""
        from ..forgetting import forget

        listed = job.settings.forget_indices is not None  # of which forget knows no name, only the number
        shared = (job.folder.parent if listed else job.root) / "shared"
        result = forget(job.settings, job.folder, shared=shared, resume=True, progress=progress)
        write_forgetting_report(job.folder)
        return forgotten_rows(job, result)

    def nothing(self, job: Job, why: str) -> ComparisonRow:
        """The row of a run that diverged."""
        figures, costs = dict.fromkeys(CLASSIFIER_METRICS), dict.fromkeys(COSTS)
        return job.row(figures=figures, costs=costs, group=_group(job.settings), failed=why)


def _named(target: Mapping[str, Any]) -> str:
    if "forget_class" in target:
        return f"class {target['forget_class']}"
    if "forget_random" in target:
        return f"random {100 * target['forget_random']:g} %"
    return Path(target["forget_indices"]).stem


def _depends_on(settings: ForgetSettings) -> dict[str, Any]:
    """What a row depends on beside its settings: what is in the file that they name.

    Raises:
        UserError: it cannot be read.
    """
    if settings.forget_indices is None:
        return {}
    try:
        return {"forget_indices_sha256": hash_file(Path(settings.forget_indices))}
    except OSError as error:
        raise UserError(f"--forget-indices {settings.forget_indices} cannot be read: {error.strerror}") from None


def _group(settings: ForgetSettings) -> str:
    """What kind of target it is: rows of different groups are never in one mean."""
    if settings.forget_class is not None:
        return "classes"
    return "lists of pictures" if settings.forget_indices else "random shares"


def forgotten_rows(job: Job, result: ForgetResult) -> dict[str, ComparisonRow]:
    """The rows of a model that forgot, of the original and, where it is known, of the model retrained without D_f."""

    beside = result.intervals_beside
    models: dict[str, tuple[Figures | None, Intervals | None]] = {
        "model": (result.figures, result.intervals), ORIGINAL: (result.original, beside.get("original")),
        RETRAIN: (result.retrained, beside.get("retrained")),
    }  # fmt: skip
    return {
        name: job.row(
            name if name != "model" else None, figures={metric: figures.get(metric) for metric in CLASSIFIER_METRICS},
            costs={cost: getattr(result, cost) if name == "model" else None for cost in COSTS}, n=dict(result.n),
            intervals={metric: list(ends) for metric, ends in (intervals or {}).items()}, group=_group(job.settings),
            forgotten=result.forget,
        )
        for name, (figures, intervals) in models.items() if figures
    }  # fmt: skip
