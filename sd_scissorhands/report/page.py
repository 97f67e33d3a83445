"""Files in, one file out; the sentences are in templates/.

The page carries its own pictures and plots, loads nothing and runs nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from ..run import atomic
from ..settings import EraseSettings, UserError, flag
from .found import KINDS, Found, read_controls, read_run
from .pictures import picture_grids
from .plots import layer_plot, repair_plot
from .words import change, grade, markdown, number, percent, plain, points

FIGURES = {"UA": "UA", "UA_synonyms": "UA synonyms", "IRA": "IRA", "CRA": "CRA", "CRA_forget": "CRA on forget prompts"}
GONE, WHOLE = (0.95, 0.80), (-0.02, -0.05)  # least UA, least change of IRA and CRA, for "good" and for "fair"
FILE_ONLY = (
    "forget_count",
    "retain_count",
    "sampling_steps",
    "guidance",
    "anchor_share",
    "score_draws",
    "memories",
    "memory_every",
)


def write_report(run_dir: Path, *, blur: bool = True) -> Path:
    """Write `run_dir/report.html`, whole in itself: pictures and plots inside, no scripts, no network.

    Args:
        blur: blur the pixels of an explicit concept's pictures and of those that NudeNet flagged.

    Raises:
        UserError: `run_dir` is not a run directory, or cannot be written to.
    """
    run = read_run(run_dir)
    controls = read_controls(run)
    grids = [grid for summary in run.evaluations.values() for grid in picture_grids(run, summary, blur)]
    page = _template("report.html.j2").render(
        run=run, controls=[(c, plain(difference(c.settings, run.settings))) for c in controls], grids=grids,
        repair=repair_plot(run), layers=layer_plot(run), again=again(run), measure=measure(run), **_names(),
    )  # fmt: skip
    return _write(run_dir / "report.html", page)


def write_card(run_dir: Path) -> Path:
    """Write `run_dir/model/README.md`, a Hugging Face model card with YAML front matter.

    Raises:
        UserError: `run_dir` is not a run directory, has no model yet, or cannot be written to.
    """
    run = read_run(run_dir)
    if not (run_dir / "model").is_dir():
        raise UserError(f"{run_dir} has no model yet: finish the run with --resume")
    card = _template("card.md.j2").render(run=run, base=hub_id(run.source.get("model")), **_names())
    return _write(run_dir / "model" / "README.md", card)


def _names() -> dict[str, Any]:
    return {"figures": FIGURES, "kinds": KINDS, "gone": GONE, "whole": WHOLE}


def _write(path: Path, text: str) -> Path:
    with atomic(path) as new:
        new.write_text(text, encoding="utf-8", errors="replace")
    return path


def _template(name: str) -> Any:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=ChainableUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {f.__name__: f for f in (percent, points, number, plain, markdown, grade, change)}
    return environment.get_template(name)


# ---------------------------------------------------------------- the commands that repeat it


def again(run: Found) -> str:
    """Shell lines that make this run again, in a directory of its own."""
    defaults = EraseSettings().resolved("tiny" if run.in_world else "sd")
    different = difference(run.settings, defaults.to_json())
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in different.items() if name in FILE_ONLY]
    words = ["sdscissor", "erase", *flags(different), *(["--config", "again.toml"] if lines else [])]
    words += ["--output-dir", f"{run.result.get('run_dir', run.path)}-again"]
    return (f"cat > again.toml <<'END'\n{''.join(lines)}END\n" if lines else "") + shlex.join(words)


def measure(run: Found) -> str:
    """The shell line that evaluates this run's model, as far as one can be known."""
    model, words = str(run.result.get("model_dir", run.path / "model")), ["sdscissor", "eval"]
    if run.in_world:
        words += ["--model", model, "--canvas", "--concept", str((run.result.get("concepts") or [run.concepts])[0])]
    elif run.result.get("explicit"):
        words += ["--model", model, "--baseline", str(run.source.get("model")), "--i2p"]
    return shlex.join(words)


def difference(settings: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not as in `against`; None, which neither flag nor file can say, is left out."""
    return {name: value for name, value in settings.items() if value is not None and value != against.get(name)}


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as words of the command line, but for those that only a file can say."""
    said = []
    for name, value in settings.items():
        key = "--concept" if name == "concepts" else flag(name)
        if isinstance(value, bool):
            said.append(key if value else f"--no-{key[2:]}")
        elif name not in FILE_ONLY:
            for item in value if isinstance(value, list) else [value]:
                said += [f"{key}={item}"] if str(item).startswith("-") else [key, str(item)]
    return said


def hub_id(model: Any) -> str | None:
    """`model` if it names a repository of the Hugging Face hub and no directory."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(model), re.ASCII)
    return str(model) if named and not Path(str(model)).exists() else None
