"""The Python interface: what the commands do, for scripts and notebooks. Typed settings in, figures out, nothing printed.

Every function raises `UserError`, one line that names the setting (by its flag) and the remedy, before expensive work.
`progress` is called with a stage and its number of steps and yields what is called with the steps done, see `run.Progress`;
None shows bars in a notebook and nothing elsewhere, `bars` shows them anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .attacks.attack_settings import AttackSettings
from .disk import write_json
from .evaluation.evaluate_settings import EvaluateSettings
from .machine import Processes
from .places import RUNS, place_of_erasure, place_of_forgetting
from .quiet import is_small, progress_here, quietly
from .run import Progress, silent
from .settings import EraseSettings, ForgetSettings

Folder = str | Path


class Result(dict[str, Any]):
    """What a run, an evaluation or an attack came to: the object that `--json` prints. A notebook shows its pictures."""

    def __init__(self, values: Mapping[str, Any], folder: Path):
        super().__init__(values)
        self.folder = folder  # where its files lie

    @property
    def report(self) -> Path:
        """The page."""
        return Path(self["report"])

    def _repr_html_(self) -> str:
        from .report.notebook import fragment

        return fragment(self, self.folder)


def erase(
    settings: EraseSettings,
    output_dir: Folder | None = None,
    *,
    output_format: str = "diffusers",
    resume: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Erase concepts from a model, and write the run directory with model, card and page; see `erasure.erase`.

    Args:
        output_dir: the run directory; None: runs/MODEL-CONCEPTS-seedN.
        output_format: a file for other programs beside the model, see `settings.OUTPUT_FORMATS`.
        resume: continue the same run where it was cut off.

    Returns:
        run_dir, model_dir, report, weights_sha256, seconds, ...
    """
    from .erasure import erase as run_erasure
    from .report import write_card, write_report

    folder = Path(output_dir or place_of_erasure(settings))
    with _at_work(settings.model, progress) as (processes, shown):
        told = run_erasure(settings, folder, output_format=output_format, resume=resume, progress=shown)
        if processes.main:
            write_card(folder)
            told = {**told, "report": str(write_report(folder))}
    return Result(told, folder)


def evaluate(
    settings: EvaluateSettings,
    output_dir: Folder | None = None,
    *,
    blur: bool = True,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Measure what a model still draws, beside its original, and write summary and page; see `evaluation.evaluate`.

    Args:
        output_dir: None: RUN/eval/KIND of a run's model, else runs/eval-MODEL-KIND. Repeated there, it continues.
        blur: explicit pictures on the page.
        command: the line that repeats it, for the page.

    Returns:
        The summary: of a concept `figures` (UA, IRA, CRA, ...) with `intervals` and the `original`'s, of NudeNet `boxes`,
        `images_with` and more; report.
    """
    from .evaluation.evaluate import evaluate as run_evaluation
    from .evaluation.evaluate import place_of
    from .models.locate import convert_first

    with _at_work(settings.source, progress) as (processes, shown):
        convert_first(settings.model_config, settings.model, settings.baseline)
        folder = Path(output_dir or place_of(settings))
        summary = run_evaluation(settings, folder, progress=shown, processes=processes).to_json()
        return _finished(summary, folder, blur, command, processes)


def attack(
    settings: AttackSettings,
    output_dir: Folder | None = None,
    *,
    blur: bool = True,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Try to bring an erased concept back, and its original beside it; see `attacks.attack` and, for the rest, `evaluate`.

    Returns:
        The summary: `asr_before`, `asr_after` with intervals, the `original`'s, verdict, IRA, CRA; report.
    """
    from .attacks.attack import attack as run_attack
    from .attacks.attack import place_of
    from .models.locate import convert_first

    with _at_work(settings.model, progress) as (processes, shown):
        convert_first(settings.model_config, settings.model, settings.baseline)
        folder = Path(output_dir or place_of(settings))
        summary = run_attack(settings, folder, progress=shown)
        return _finished(summary, folder, blur, command, processes)


def forget(
    settings: ForgetSettings,
    output_dir: Folder | None = None,
    *,
    own: Any = None,
    parts: Any = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Make an image classifier forget, measure it, and write the run directory with its page; see `forgetting.forget`.

    Args:
        own: a torch module of one's own, see `classifier.load.wrap`, in the place of `settings.model`.
        parts: its data, a `classifier.data.Parts`, in the place of `settings.data`.
    """
    from .forgetting import forget as run_forgetting
    from .report import write_forgetting_report

    folder = Path(output_dir or place_of_forgetting(settings))
    with _at_work(settings.model, progress) as (_, shown):
        told = run_forgetting(settings, folder, own=own, parts=parts, resume=resume, progress=shown)
        return Result({**told, "report": str(write_forgetting_report(folder))}, folder)


def compare(
    asked: Any,
    output_dir: Folder = RUNS / "compare",
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Every recipe on every target under every seed: one table, one page; see `comparison.compare`.

    Args:
        asked: a `comparison.jobs.Comparison`.
    """
    from .comparison.compare import compare as run_comparison

    with _at_work(asked.settings.model, progress) as (_, shown):
        told = run_comparison(asked, Path(output_dir), command=command, progress=shown)
    return Result(told, Path(output_dir))


@contextmanager
def _at_work(model: str, progress: Progress | None) -> Iterator[tuple[Processes, Progress]]:
    """The processes that share the work and who is told of it, with the libraries still."""
    with quietly(threads=1 if is_small(model) else None):
        processes = Processes.here()
        shown = progress_here() if progress is None else progress
        yield processes, shown if processes.main else silent


def _finished(
    summary: Mapping[str, Any], folder: Path, blur: bool, command: Sequence[str], processes: Processes
) -> Result:
    """Note the command beside the figures, and write the page, and the card, that they belong on."""
    from .report import write_card, write_evaluation_report, write_report

    told, run = dict(summary), folder.parent.parent
    if not processes.main:
        return Result(told, folder)
    if command:
        told["command"] = list(command)
        write_json(folder / "summary.json", told)
    if folder.parent.name in ("eval", "attack") and (run / "run.json").exists():
        write_card(run)
        report = write_report(run, blur=blur)
    else:
        report = write_evaluation_report(folder, blur=blur)
    return Result({**told, "report": str(report)}, folder)
