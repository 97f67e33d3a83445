"""The page of a classifier that was made to forget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..classifier.metrics import CLASSIFIER_METRICS
from ..lineage import MANIFEST
from ..methods.method import declared_settings
from ..parsing import read_json
from ..recipes import RECIPES
from ..settings import ForgetSettings
from .commands import command_with, difference
from .page import template, write_page
from .plots import layer_plot, repair_plot
from .reading import RunRecord, read_run


def write_forgetting_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, whole in itself.

    Raises:
        UserError: `run_dir` is not a run directory, or cannot be written to.
    """
    run = read_run(run_dir)
    page = template("forgetting.html.j2").render(
        run=run, recipe=RECIPES[run.settings["recipe"]], metrics=CLASSIFIER_METRICS, repair=repair_plot(run.history),
        layers=layer_plot(run.layers), repeat=_repeat_command(run),
    )  # fmt: skip
    return write_page(run_dir / "report.html", page)


def is_forgetting(run_dir: Path) -> bool:
    """Whether a run directory is that of a classifier; an unreadable one is not."""
    try:
        return "forget_class" in read_json(run_dir / MANIFEST)["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _repeat_command(run: RunRecord) -> str:
    """Shell lines that make this run again, in a directory of its own."""
    chosen: dict[str, Any] = {"recipe": run.settings["recipe"]}
    usual = ForgetSettings(**chosen).resolved("classifier").to_json() | {"recipe": ForgetSettings().recipe}
    names = {
        *(field.name for field in dataclasses.fields(ForgetSettings)),
        *declared_settings(),
    }  # a former version had more
    known = {name: value for name, value in run.settings.items() if name in names}
    return command_with("forget", difference(known, usual), run)
