"""The shell lines that the page writes: the same run again, what would measure it, what would attack it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

from ..recipes import DEFAULT_RECIPE, RECIPES
from ..settings import LEFT_OPEN, OPEN, EraseSettings, file_only, flag
from .reading import RunRecord


def repeat_command(run: RunRecord) -> str:
    """Shell lines that make this run again, in a directory of its own."""
    different = difference(run.settings, recipe_of(run) | {"recipe": DEFAULT_RECIPE, "concepts": []})
    return command_with("erase", different, run)


def command_with(command: str, different: dict[str, Any], run: RunRecord) -> str:
    """Shell lines of a command with settings that differ from its own, by flags and a file, beside where the run is."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in different.items() if file_only(name)]
    words = ["sdscissor", command, *flags(different), *(["--config", "again.toml"] if lines else [])]
    words += ["--output-dir", f"{run.result.run_dir if run.result else run.path}-again"]
    return (f"cat > again.toml <<'END'\n{''.join(lines)}END\n" if lines else "") + shlex.join(words)


def recipe_of(run: RunRecord) -> dict[str, Any]:
    """What the run's recipe sets on a model of its profile; a rate that was found is the recipe's own."""
    recipe, concepts, rate = run.settings.get("recipe"), run.settings.get("concepts"), run.settings.get("lr", OPEN)
    chosen = EraseSettings(concepts=tuple(concepts or ()), recipe=recipe if recipe in RECIPES else DEFAULT_RECIPE)
    values = chosen.resolved(run.profile).to_json()
    if values["lr"] is not OPEN:
        return values
    if run.settings.get("relative_lr"):
        return values | {"lr": rate}
    return dataclasses.replace(chosen, lr=rate).resolved(run.profile).to_json() | {"lr": OPEN}


def changed(control: RunRecord, run: RunRecord) -> dict[str, Any]:
    """The settings in which a control differs from a run; of another recipe only its name, and what departs from it."""
    theirs = run.settings
    if control.settings.get("recipe") != run.settings.get("recipe"):
        given = {field.name for field in dataclasses.fields(EraseSettings)} - LEFT_OPEN
        theirs = theirs | {name: value for name, value in recipe_of(control).items() if name not in given}
    return difference(control.settings, theirs)


def evaluation_command(run: RunRecord) -> str:
    """The shell line that evaluates this run's model, as far as one can be known."""
    words = ["sdscissor", "eval"]
    if run.domain.judge_flags:
        words += ["--model", _model(run), *run.domain.judge_flags, "--concept", _concept(run)]
    elif run.erased and run.erased.explicit:
        words += ["--model", _model(run), "--baseline", str(run.source.model), "--i2p"]
    return shlex.join(words)


def attack_command(run: RunRecord) -> str:
    """The shell line that attacks this run's model."""
    words = ["--model", _model(run), "--concept", _concept(run), "--attack", "embedding"]
    return shlex.join(["sdscissor", "attack", *words])


def _model(run: RunRecord) -> str:
    measured = next((one.model for one in run.summaries if one.model), None)
    return (run.erased and run.erased.model_dir) or measured or str(run.path / "model")


def _concept(run: RunRecord) -> str:
    return run.erased.concepts[0] if run.erased and run.erased.concepts else run.concepts


def difference(settings: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not as in `against`; None, which neither flag nor file can express, is left out."""
    return {name: value for name, value in settings.items() if value is not None and value != against.get(name)}


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as words of the command line, without those that only a file can set."""
    words = []
    for name, value in settings.items():
        key = "--concept" if name == "concepts" else flag(name)
        if isinstance(value, bool):
            words.append(key if value else f"--no-{key[2:]}")
        elif not file_only(name):
            for item in value if isinstance(value, list) else [value]:
                words += [f"{key}={item}"] if str(item).startswith("-") else [key, str(item)]
    return words


def hub_id(model: Any) -> str | None:
    """`model` if it names a repository of the Hugging Face hub and no directory."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(model), re.ASCII)
    return str(model) if named and not Path(str(model)).exists() else None
