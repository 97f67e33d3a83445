"""Files in, one file out; the sentences are in templates/.

The page carries its own pictures and plots, loads nothing and runs nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..disk import atomic
from ..settings import UserError
from . import phrases as words
from . import verdict
from .card import card_facts, use
from .commands import again, attack, changed, measure
from .found import Found, read_alone, read_controls, read_run
from .pictures import attack_grid, picture_grids
from .plots import layer_plot, relearn_plot, repair_plot, sweep_plot, tradeoff_plot
from .table import FIGURES, columns, returned, rows

FILTERS = ("percent", "points", "number", "total", "brief", "between", "plain", "command", "markdown", "change")


def write_report(run_dir: Path, *, blur: bool = True) -> Path:
    """Write `run_dir/report.html`, whole in itself: pictures and plots inside, no scripts, no network.

    Args:
        blur: blur the pixels of an explicit concept's pictures and of those that NudeNet flagged.

    Raises:
        UserError: `run_dir` is not a run directory, or cannot be written to.
    """
    run = read_run(run_dir)
    controls = [(control, words.plain(changed(control, run))) for control in read_controls(run)]
    models = [control for control, _ in controls]
    page = template("report.html.j2").render(
        controls=controls, columns=columns(run, models), rows=rows(run, controls), repair=repair_plot(run),
        layers=layer_plot(run), tradeoff=tradeoff_plot(verdict.tradeoff(run, [(one.path.name, one) for one in models])), again=again(run), measure=measure(run), **_shown(run, blur), **_names(),
    )  # fmt: skip
    return write_page(run_dir / "report.html", page)


def write_evaluation_report(folder: Path, *, blur: bool = True) -> Path:
    """Write `folder/report.html` for an evaluation or an attack that belongs to no run.

    Args:
        blur: as for `write_report`; without a run, pictures count as explicit unless they are the embedded world's.

    Raises:
        UserError: `folder` holds no summary, or is a run directory, or cannot be written to.
    """
    run = read_alone(folder)
    page = template("evaluation.html.j2").render(
        columns=columns(run, []), rows=rows(run, []), **_shown(run, blur), **_names()
    )
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
    facts = card_facts(run) | {"use": use(run, repo, file, to)}
    return template("card.md.j2").render(**facts, **_findings(run), **_names())


def _findings(run: Found) -> dict[str, Any]:
    return {
        "run": run, "collapsed": verdict.collapsed(run), "gone": [verdict.gone(run, s) for s in run.evaluations.values()],
        "whole": verdict.whole(run), "stays": verdict.stays(run),
    }  # fmt: skip


def _shown(run: Found, blur: bool) -> dict[str, Any]:
    grids = [grid for summary in run.evaluations.values() for grid in picture_grids(run, summary, blur)]
    attacked = {name: attack_grid(run, summary, blur) for name, summary in run.attacks.items()}
    return _findings(run) | {
        "grids": grids, "attacked": attacked, "blurred": any(g.blurred for g in [*grids, *attacked.values()] if g),
        "sweeps": {summary["kind"]: sweep_plot(summary) for summary in run.nudenets},
        "curves": {name: relearn_plot(summary) for name, summary in run.attacks.items()},
        "attack": attack(run),
    }  # fmt: skip


def _names() -> dict[str, Any]:
    limits = {"GONE": verdict.GONE, "WHOLE": verdict.WHOLE, "STAYS": verdict.STAYS}
    functions = {"broken": verdict.broken, "returned": returned}
    return {"figures": FIGURES} | functions | limits


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
    environment.filters |= {name: getattr(words, name) for name in FILTERS}
    return environment
