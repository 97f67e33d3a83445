"""The command line before and around the work: help, the settings file, mistyped names, completion, and being stopped."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sd_scissorhands import show
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.cli import app, main
from sd_scissorhands.cli.flags import fields_of
from sd_scissorhands.cli.options import check_concepts
from sd_scissorhands.comparison.compare_settings import CompareSettings
from sd_scissorhands.declaration import BASIC, declared_of
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.methods.method import declared_settings
from sd_scissorhands.settings import EraseSettings, ForgetSettings, load_settings
from sd_scissorhands.stages import Stages

SETTINGS = {
    "erase": EraseSettings, "eval": EvaluateSettings, "attack": AttackSettings, "compare": CompareSettings,
    "forget": ForgetSettings,
}  # fmt: skip


def shown(*words: str) -> str:
    """What a command prints for help, on lines that nothing wraps."""
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    return done.output


def flags_in(text: str) -> list[str]:
    """The flags that have a line of help."""
    return re.findall(r"^│ [ *]*(--[\w-]+)", text, flags=re.M)


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", SETTINGS)
def test_help_shows_eight_flags_at_most_and_where_the_others_are(command):
    text = shown(command, "--help")
    assert re.findall(r"╭─ (.+?) ─", text) == [BASIC] and text.rstrip().endswith(f"{command} --help-all")
    few, every = flags_in(text), flags_in(shown(command, "--help-all"))
    assert 5 <= len(few) <= 8
    for name, _, declared, _ in fields_of(SETTINGS[command]):
        flag = (declared.flag or f"--{name.replace('_', '-')}").split("/")[0]
        assert flag in every and (flag in few) == (declared.level == "basic"), flag


@pytest.mark.parametrize("command", [[], ["draw"], ["export"], *([name] for name in SETTINGS)])
def test_no_type_of_a_programmer_is_shown(command):
    text = shown(*command, "--help-all" if command and command[0] in SETTINGS else "--help")
    assert not re.search(r"<(bool|str|int|float|path|list\b.*?)>|BOOLEAN|INTEGER", text)


def test_a_switch_is_shown_with_both_its_names():
    text = shown("erase", "--help-all")
    assert all(f"--{name} / --no-{name} " in text for name in ("calibrate", "verify", "compile"))


# ---------------------------------------------------------------- init


def test_every_setting_is_in_the_template_and_uncommented_it_is_the_defaults(tmp_path):
    text = shown("init")
    lines = re.sub(r"^#(?=\w+ = )", "", text, flags=re.M)
    (tmp_path / "as-is.toml").write_text(text)
    (tmp_path / "every.toml").write_text(lines)
    for name in ("as-is.toml", "every.toml"):
        assert load_settings(EraseSettings, tmp_path / name, {}) == EraseSettings()
    declared = {field.name for field in dataclasses.fields(EraseSettings) if declared_of(field)}
    assert {*re.findall(r"^(\w+) = ", lines, flags=re.M)} == declared | {*declared_settings()}
    assert max(map(len, text.splitlines())) <= 100 and "Default: by recipe (0.001).\n#top_k" in text


def test_an_empty_text_in_a_file_leaves_a_setting_open_and_excuses_no_unknown_one(tmp_path):
    (tmp_path / "c.toml").write_text('lr = ""\nsteps = 3\n')
    assert load_settings(EraseSettings, tmp_path / "c.toml", {}) == EraseSettings(steps=3)
    (tmp_path / "c.toml").write_text('lrr = ""\n')
    with pytest.raises(UserError, match="unknown key 'lrr', did you mean 'lr'"):
        load_settings(EraseSettings, tmp_path / "c.toml", {})


# ---------------------------------------------------------------- mistyped names, and completion

TYPOS = {
    "erasee": "'erasee' is no command, did you mean 'erase'? Choose erase",
    "erase --model tiny": "nothing to erase: name a preset",
    "erase --model tiny --concept hart": "--concept 'hart' is not of the embedded model's world, did you mean 'heart'?",
    "erase --model tiny --concept heart --anchor trangle": "of the embedded world, did you mean 'triangle'?",
    "erase --concept nuditty": "--concept 'nuditty', did you mean 'nudity'? It is no preset",
    "erase --concept heart --recipe lra-np": "--recipe 'lra-np' is unknown, did you mean 'lra-npp'? Choose scissorhands",
    "eval --model tiny --concept hart": "did you mean 'heart'?",
    "attack --model tiny --concept hart": "did you mean 'heart'?",
    "attack --model tiny --concept heart --attack embeding": "--attack 'embeding' is unknown, did you mean 'embedding'?",
    "attack --model tiny --concept heart --suite quik": "--suite 'quik' is unknown, did you mean 'quick'?",
    "compare --concept hart": "did you mean 'heart'?",
    "compare --concept heart --recipes esdd": "--recipes 'esdd' is unknown, did you mean 'esd'?",
    "concepts --check nuditty": "did you mean 'nudity'?",
    "erase --concept heart --model ./nowhere": "--model ./nowhere does not exist",
    "eval --concept heart --model me/heart.safetensors": "does not exist",
    "draw nowhere": "does not exist",
}
COMPLETED = {
    "erase --recipe l": ["lra-npp", "l-codec"],
    "erase --concept he": ["heart"],
    "erase --concept nu": ["nudity"],
    "attack --attack paraphrase,em": ["paraphrase,embedding"],
    "compare --recipes esd,sal": ["esd,salun"],
    "compar": ["compare"],
}
WITHOUT_TORCH = """
import contextlib, io, json, os, sys
from sd_scissorhands.cli import main

def run(words):
    out, err, sys.argv = io.StringIO(), io.StringIO(), ["sdscissor", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            return exit.code, out.getvalue(), err.getvalue()

typos, completed = json.load(sys.stdin)
ended = [run(words.split()) for words in typos]
os.environ["_SDSCISSOR_COMPLETE"] = "complete_bash"
for words in completed:
    os.environ.update(COMP_WORDS=f"sdscissor {words}", COMP_CWORD=str(len(words.split())))
    ended.append(run([]))
print(json.dumps([ended, "torch" in sys.modules]))
"""


def test_mistyped_names_are_answered_and_names_completed_without_torch():
    """In the order of the two tables, in one process; a shell asks through these variables."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input=json.dumps([[*TYPOS], [*COMPLETED]]),
        capture_output=True,
        text=True,
    )
    ended, has_torch = json.loads(done.stdout)
    assert not has_torch
    for (words, text), (code, out, err) in zip(TYPOS.items(), ended, strict=False):
        assert code in (1, 2) and not out and err.count("\n") == 1 and text in err, (words, err)
    for (words, names), (code, out, err) in zip(COMPLETED.items(), ended[len(TYPOS) :], strict=True):
        assert (code, out.split(), err) == (0, names, ""), words


def test_a_word_of_free_text_that_is_nearly_a_preset_is_remarked_on_and_taken(capsys):
    check_concepts(["nuditty"], "a shirt", "me/model")
    assert capsys.readouterr().err.split("\n")[0].endswith("erased as free text, did you mean 'nudity'?")
    check_concepts(["nudity", "a nuditty", "violet"], "a shirt", "me/model")
    check_concepts(["hart"], None, "me/model", on_hub=False)  # perhaps the path of a run, mistyped
    assert not capsys.readouterr().err


def test_completion_can_be_installed():
    assert "--install-completion" in shown("--help") and "--show-completion" in shown("--help")


# ---------------------------------------------------------------- stopped


def test_a_stopped_erasure_says_where_it_was_what_is_saved_and_how_to_continue(
    short, tmp_path, monkeypatch, capsys, request
):
    settings = {name: value for name, value in short.to_json().items() if value is not None}
    (tmp_path / "c.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    whole, before = (
        Stages._checkpoint,
        signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # a shell's background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    words = ["erase", "--config", str(tmp_path / "c.toml"), "--output-dir", str(tmp_path / "run")]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):

        def stop(stages, repair, number=number):
            whole(stages, repair)
            if repair.step == 3:
                signal.raise_signal(number)

        monkeypatch.setattr(Stages, "_checkpoint", stop)
        monkeypatch.setattr(sys, "argv", ["sdscissor", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        words += [] if "--resume" in words else ["--resume"]
        line = f"Stopped at step 3 of 4, saved at 2. Continue: sdscissor {' '.join(words)}\n"
        assert (stopped.value.code, capsys.readouterr().err) == (code, line)
    assert json.loads(Path(tmp_path / "run" / "run.json").read_text())["stages"]["repair"]["step"] == 2


def test_what_stops_any_other_stage_is_noted_with_its_name():
    with pytest.raises(KeyboardInterrupt) as stopped, show.progress(quiet=True)("data", 9) as tick:
        tick(4)
        raise KeyboardInterrupt
    assert stopped.value.__notes__ == ["in data, at 4 of 9"]
