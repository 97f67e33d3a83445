"""The Python interface: what the commands do, for scripts and notebooks. Typed settings in, typed results out, nothing printed.

Every function raises `UserError`, one line that names the setting (by its flag) and the remedy, before expensive work.
`progress` is called with a stage and its number of steps and yields what is called with the steps done, see `run.Progress`;
None shows bars in a notebook and nothing elsewhere, `bars` shows them anywhere. Results have the fields of the JSON that the
commands print, `report` (the page) and `folder` (where their files lie); a notebook shows their figures and pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .attacks.attack_settings import AttackSettings
from .attacks.suite_settings import Suite
from .disk import write_json
from .evaluation.evaluate_settings import EvaluateSettings
from .machine import Processes
from .places import RUNS, erasure_directory, forgetting_directory
from .quiet import is_small, progress_here, quietly
from .results.attack import AttackResult
from .results.base import Measurement, Reported
from .results.comparison import ComparisonResult
from .results.erase import EraseResult
from .results.evaluation import Evaluation
from .results.forget import ForgetResult
from .results.suite import SuiteResult
from .run import Progress, silent
from .settings import EraseSettings, ForgetSettings
from .tracking import RunLog, check_tracker

Folder = str | Path
Measured = TypeVar("Measured", bound=Measurement)
Measuring = TypeVar("Measuring", EvaluateSettings, AttackSettings)


def erase(
    settings: EraseSettings,
    output_dir: Folder | None = None,
    *,
    output_format: str = "diffusers",
    resume: bool = False,
    log_with: str | None = None,
    progress: Progress | None = None,
    consider: Callable[[Any], None] = lambda prepared: None,
) -> EraseResult:
    """Erase concepts from a model, and write the run directory with model, card and page; see `erasure.erase`.

    Unless `settings.verify` is off, four pictures before and after are drawn into it, see `pairs.draw_pairs`.

    Args:
        output_dir: the run directory; None: runs/MODEL-CONCEPTS-seedN.
        output_format: a file for other programs beside the model, see `settings.OUTPUT_FORMATS`.
        resume: continue the same run where it was cut off.
        log_with: tensorboard writes figures and pictures for it into logs/ of the run, see `tracking`.
        consider: called with a `Prepared` before a new run's work; it may raise.
    """
    from .erasure import erase as run_erasure
    from .pairs import draw_pairs
    from .report import write_card, write_report

    check_tracker(log_with)
    folder = Path(output_dir or erasure_directory(settings))
    with _at_work(settings.model, progress) as (processes, shown):
        log = RunLog(folder) if log_with and processes.main else None
        result = run_erasure(
            settings, folder, output_format=output_format, resume=resume, log=log, progress=shown, consider=consider
        )
        if not processes.main:
            return dataclasses.replace(result, folder=folder)
        if settings.verify and (undone := draw_pairs(result, settings, shown)):
            result = dataclasses.replace(result, remarks=(*result.remarks, undone))
        if log:
            log.finish(result)
        write_card(folder)
        return dataclasses.replace(result, folder=folder, report=write_report(folder))


def evaluate(
    settings: EvaluateSettings,
    output_dir: Folder | None = None,
    *,
    blur: bool = True,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Measure what a model still draws, beside its original, and write summary and page; see `evaluation.evaluate`.

    Args:
        output_dir: None: RUN/eval/KIND of a run's model, else runs/eval-MODEL-KIND. Repeated there, it continues.
        blur: explicit pictures on the page.
        command: the line that repeats it, for the page.

    Returns:
        Of a concept `figures` (UA, IRA, CRA, ...) with `intervals` and the `original`'s, of NudeNet `boxes`, `images_with`
        and more.
    """
    from .evaluation.evaluate import evaluate as run_evaluation
    from .evaluation.evaluate import place_of

    with _at_work(settings.source, progress) as (processes, shown):
        settings = composed(settings)
        folder = Path(output_dir or place_of(settings))
        result = run_evaluation(settings, folder, progress=shown, processes=processes)
        return _with_page(result, folder, blur, command, processes)


def attack(
    settings: AttackSettings,
    output_dir: Folder | None = None,
    *,
    blur: bool = True,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> AttackResult:
    """Try to bring an erased concept back, and its original beside it; see `attacks.attack` and, for the rest, `evaluate`."""
    from .attacks.attack import attack as run_attack
    from .attacks.attack import place_of

    with _at_work(settings.model, progress) as (processes, shown):
        settings = composed(settings)
        folder = Path(output_dir or place_of(settings))
        return _with_page(run_attack(settings, folder, progress=shown), folder, blur, command, processes)


def attack_suite(
    suite: Suite,
    output_dir: Folder | None = None,
    *,
    blur: bool = True,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> SuiteResult:
    """Try to bring an erased concept back in every way of a suite, the worst case first; see `attacks.suite` and `attack`."""
    from .attacks.suite import place_of, run_suite

    with _at_work(suite.first.model, progress) as (processes, shown):
        suite = suite.on(composed(suite.first))
        folder = Path(output_dir or place_of(suite))
        return _with_page(run_suite(suite, folder, progress=shown), folder, blur, command, processes)


def forget(
    settings: ForgetSettings,
    output_dir: Folder | None = None,
    *,
    own: Any = None,
    parts: Any = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> ForgetResult:
    """Make an image classifier forget, measure it, and write the run directory with its page; see `forgetting.forget`.

    Args:
        own: a torch module of one's own, see `classifier.load.wrap`, in the place of `settings.model`.
        parts: its data, a `classifier.data.Parts`, in the place of `settings.data`.
    """
    from .forgetting import forget as run_forgetting
    from .report import write_forgetting_report

    folder = Path(output_dir or forgetting_directory(settings))
    with _at_work(settings.model, progress) as (_, shown):
        result = run_forgetting(settings, folder, own=own, parts=parts, resume=resume, progress=shown)
        return dataclasses.replace(result, folder=folder, report=write_forgetting_report(folder))


def compare(
    comparison: Any,
    output_dir: Folder = RUNS / "compare",
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> ComparisonResult:
    """Every recipe on every target under every seed: one table, one page; see `comparison.compare`.

    Args:
        comparison: a `comparison.jobs.Comparison`.
    """
    from .comparison.compare import compare as run_comparison

    folder = Path(output_dir)
    with _at_work(comparison.settings.model, progress) as (_, shown):
        result = run_comparison(comparison, folder, command=command, progress=shown)
    return dataclasses.replace(result, folder=folder, report=folder / "report.html")


def composed(settings: Measuring) -> Measuring:
    """Settings whose models are pipelines: single files converted, and `unet` put into `model`, whose baseline is then the base.

    Raises:
        UserError: see `with_unet` and `convert_single_files`.
    """
    from .models.composed import with_unet
    from .models.locate import convert_single_files

    convert_single_files(settings.model_config, settings.model, settings.baseline)
    if settings.unet is None:
        return settings
    base = str(settings.model)
    return dataclasses.replace(
        settings, model=with_unet(base, settings.unet), baseline=settings.baseline or base, unet=None, model_config=None
    )


@contextmanager
def _at_work(model: str, progress: Progress | None) -> Iterator[tuple[Processes, Progress]]:
    """The processes that share the work and the progress that is shown, with the libraries silent."""
    with quietly(threads=1 if is_small(model) else None):
        processes = Processes.here()
        shown = progress_here() if progress is None else progress
        yield processes, shown if processes.main else silent


def _with_page(result: Measured, folder: Path, blur: bool, command: Sequence[str], processes: Processes) -> Measured:
    """Note the command beside the figures, and write the page, and the card, that they belong on."""
    from .report import write_card, write_evaluation_report, write_report

    run = folder.parent.parent
    if not processes.main:
        return dataclasses.replace(result, folder=folder)
    if command:
        result = dataclasses.replace(result, command=tuple(command))
        write_json(folder / "summary.json", result.to_json())
    if folder.parent.name in ("eval", "attack") and (run / "run.json").exists():
        write_card(run)
        report = write_report(run, blur=blur)
    else:
        report = write_evaluation_report(folder, blur=blur)
    return dataclasses.replace(result, folder=folder, report=report)


def _as_html(result: Reported) -> str:
    from .report.notebook import fragment

    return fragment(result.to_json(), result.folder)


Reported.to_html = staticmethod(_as_html)
