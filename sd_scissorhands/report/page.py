"""Files in, one file out; the sentences are in templates/.

The page carries its own pictures, plots and one small script, loads nothing, and is whole without the script.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..disk import atomic
from ..errors import UserError
from ..evaluation.gone import LIMITS
from ..evaluation.metrics import METRICS, answering
from ..results.attack import AttackResult
from ..results.evaluation import Evaluation, NudityEvaluation
from . import phrases, verdict
from .card import card_facts, use
from .commands import attack_command, changed, evaluation_command, repeat_command
from .declared import Figure, evaluation_titles, figure, graded
from .phrases import known
from .pictures import BEHIND, ROW, attack_grid, first_pictures
from .plots import attacks_plot, layer_plot, looks_plot, relearn_plot, repair_plot, sweep_plot
from .reading import RunRecord, read_controls, read_measurement, read_run
from .scatter import tradeoff_plot
from .table import TableColumn, columns, returned, rows

FILTERS = (
    "between", "brief", "command", "described", "facts", "first_upper", "judge_errs", "links", "markdown", "number", "opposite", "percent", "plain", "points",
    "prompt", "shareable", "total", "worded",
)  # fmt: skip
WHOLE = 3  # attacks whose sections are open, the worst; those of more are folded away
SETTINGS = ("model", "baseline", "seed", "threshold", "protocol", "subset", "sampling", "judge")  # that results repeat


def write_report(run_dir: Path, *, blur: bool = True) -> Path:
    """Write `run_dir/report.html`, whole in itself: pictures and plots inside, no network.

    Args:
        blur: blur the pixels of an explicit concept's pictures and of those that NudeNet flagged.

    Raises:
        UserError: `run_dir` is not a run directory, or cannot be written to.
    """
    run = read_run(run_dir)
    controls = read_controls(run)
    tradeoff = verdict.tradeoff(run, [(control.path.name, control) for control in controls])
    page = template("report.html.j2").render(
        controls=controls, rows=rows(run, [(control, phrases.plain(changed(control, run))) for control in controls]),
        repair=repair_plot(run.history), looks=looks_plot(run.looks), layers=layer_plot(run.layers), tradeoff=tradeoff_plot(tradeoff),
        repeat=repeat_command(run), evaluate=evaluation_command(run), **_sections(run, blur, controls),
    )  # fmt: skip
    return write_page(run_dir / "report.html", page)


def write_evaluation_report(folder: Path, *, blur: bool = True) -> Path:
    """Write `folder/report.html` for an evaluation or an attack that belongs to no run.

    Args:
        blur: as for `write_report`; without a run, pictures count as explicit unless they are the embedded world's.

    Raises:
        UserError: `folder` holds no summary, or is a run directory, or cannot be written to.
    """
    run = read_measurement(folder)
    page = template("evaluation.html.j2").render(rows=rows(run, []), **_sections(run, blur, []))
    return write_page(folder / "report.html", page)


def write_card(run_dir: Path) -> Path:
    """Write `run_dir/model/README.md`, a Hugging Face model card with YAML front matter.

    Raises:
        UserError: `run_dir` is not a run directory, has no model yet, or cannot be written to.
    """
    return write_page(run_dir / "model" / "README.md", card_text(run_dir))


def card_text(run_dir: Path, *, repo: str | None = None, file: str | None = None, to: str = "diffusers") -> str:
    """The card, for a run's own model or for what was made of it.

    Args:
        repo: where it will be on the hub; None: in a directory.
        file: its name there, if it is one file.
        to: its format, one of `settings.OUTPUT_FORMATS`; all but diffusers are one file.

    Raises:
        UserError: `run_dir` is not a run directory, or has no model yet.
    """
    run = read_run(run_dir)
    if not (run_dir / "model").is_dir():
        raise UserError(f"{run_dir} has no model yet: finish the run with --resume")
    return template("card.md.j2").render(to=to, use=use(run, repo, file, to), **card_facts(run), **_findings(run))


def _findings(run: RunRecord) -> dict[str, Any]:
    """The answers to the three questions, and what a template needs to put them into words."""
    return {
        "run": run, "collapsed": verdict.collapsed(run), "gone": [verdict.is_gone(run, s) for s in run.evaluations.values()],
        "whole": verdict.is_whole(run, by_seed=False), "open": verdict.is_whole(run, by_seed=True), "stays": verdict.stays_gone(run), "broken": verdict.broken, "graded": graded,
        "returned": returned, "figure": figure, "headline": _headline, "retained_metrics": _retained_metrics(),
        "answering": answering, "LIMITS": LIMITS, "seen": verdict.seen, "fewer": verdict.fewer,
    }  # fmt: skip


def _sections(run: RunRecord, blur: bool, controls: Sequence[RunRecord]) -> dict[str, Any]:
    """The findings, and what the sections about evaluations and attacks show."""
    attacked = {name: attack_grid(run, attack, blur) for name, attack in run.attacks.items()}
    first, others = first_pictures(run, blur)
    pictured, figures = [grid for grid in [*first, *others, *attacked.values()] if grid], columns(run, controls)
    return _findings(run) | {
        "ROW": ROW, "BEHIND": BEHIND, "WHOLE": WHOLE, "first": first, "grids": others, "attacked": attacked, "blurred": any(grid.blurred for grid in pictured),
        "judged": [back for grid in pictured for back in grid.judged], "columns": figures, "terms": _terms(run, figures),
        "attacks_plot": attacks_plot({run.label(one): one for one in run.attacks.values()}),
        "sweep_plot": sweep_plot, "relearn_plot": relearn_plot, "titles": evaluation_titles(), "settings_of": _settings, "attack_command": attack_command(run),
    }  # fmt: skip


def _terms(run: RunRecord, figures: Sequence[TableColumn]) -> list[Figure]:
    """What the page explains: every figure on it, once."""
    others = [figure(name) for name in ("asr", "IRA", "CRA") if run.attacks]
    others += [figure(name) for name in _retained_metrics() if any(one.kept for one in run.judged.values())]
    return [one for one in dict.fromkeys([*(each.figure for each in figures), *others]) if one.meaning]


def _settings(summary: Evaluation | AttackResult) -> dict[str, Any]:
    """What an evaluation or an attack was made with."""
    own = summary.settings if isinstance(summary, AttackResult) else {}
    values = {name: getattr(summary, name, None) for name in SETTINGS if name not in own}
    if isinstance(summary, NudityEvaluation):
        values["baseline"] = summary.baseline.model if summary.baseline else None
    return {name: value for name, value in values.items() if phrases.plain(value) not in ("", "–")} | own


def _headline(figures: Mapping[str, float | None]) -> str:
    """The figures that the findings rest on, in a line."""
    names = [name for question in ("gone", "whole") for name in answering(question) if known(figures.get(name))]
    return ", ".join(f"{figure(name).title} {phrases.percent(figures[name])}" for name in names)


def _retained_metrics() -> dict[str, Any]:
    """The metrics of the pictures that should have stayed as they were, see `ConceptEvaluation.kept`."""
    return {
        name: metric for name, metric in METRICS if metric.unit == "distance" or getattr(metric, "under_kept", False)
    }


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all."""
    with atomic(path) as new:
        new.write_text(text, encoding="utf-8", errors="replace")
    return path


def template(name: str) -> Any:
    """One of templates/, with our filters."""
    return _environment().get_template(name)


@cache
def _environment() -> Any:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=ChainableUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {name: getattr(phrases, name) for name in FILTERS} | {"hashed": _hashed}
    return environment


def _hashed(script: str) -> str:
    """A script as the page's policy allows it, so that no other runs."""
    return f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}"
