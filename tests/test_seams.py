"""Adding one of a noun takes one file: a temporary file declares a toy of each, and every command knows them.

The file is imported before the command line runs. Each toy is then found in `--help-all`, in the JSON, on the page, in a gate.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from sd_scissorhands.tiny import MODEL_DIR

TOYS = """
from dataclasses import dataclass

import torch

from sd_scissorhands.attacks import ATTACKS
from sd_scissorhands.attacks.base import Attack, Outcome
from sd_scissorhands.declaration import setting
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import Canvas
from sd_scissorhands.evaluation.judges import JUDGES
from sd_scissorhands.evaluation.judges.canvas import CanvasJudge
from sd_scissorhands.evaluation.metrics import METRICS
from sd_scissorhands.evaluation.metrics.base import Share
from sd_scissorhands.methods.edits import EDITS
from sd_scissorhands.methods.losses import Loss, OwnError
from sd_scissorhands.methods.method import Edit, Options, Scorer
from sd_scissorhands.methods.objectives import OBJECTIVES, Objective
from sd_scissorhands.methods.retain_losses import RETAIN_LOSSES, RetainLoss
from sd_scissorhands.methods.scorers import SCORERS
from sd_scissorhands.recipes import DENOISERS, RECIPES, Recipe


@dataclass(frozen=True)
class ToyScorerOptions(Options):
    toy_gain: float = setting(2.0, "What magnitudes are multiplied with.", level="file", least=0)


def toy_score(task, parameters, options):
    return {name: options.toy_gain * p.detach().abs().float() for name, p in parameters.items()}


def toy_edit(task, parameters, selection, options):
    selection.put(parameters, {name: torch.full((len(rows),), 0.01) for name, rows in selection.indices.items()})


class ToyLoss(Loss):
    def questions(self, x):
        return [(x.noisy, x.anchor_words)]


class ToyJudge(CanvasJudge):
    summary, domain, second = "a toy judge", "toy-domain", None

    def __init__(self, concept):
        super().__init__(concept)
        self.facts = {"judge": "toy-judge"}


class ToyDomain(Canvas):
    name, evaluation, marker = "toy-domain", "toy-evaluation", "toy.json"
    judge_flags = ("--judge", "toy-judge")

    def default_judge(self, concept):
        return "toy-judge"


@dataclass(frozen=True)
class ToyAttackOptions:
    toy_loudness: int = setting(2, "How loudly the concept is asked for.", least=1)


def toy_attack(context, side, data):
    return Outcome(context.hits(side, "after"), [row.prompt for row in context.rows], "after")


SCORERS.add("toy-scorer", Scorer(toy_score, needs=(), passes=0, options=ToyScorerOptions))
EDITS.add("toy-edit", Edit(toy_edit))
OBJECTIVES.add("toy-objective", Objective("a toy in the concept's place", diffusion=ToyLoss()))
RETAIN_LOSSES.add("toy-retain", RetainLoss("a toy retain loss", OwnError()))
METRICS.add("TOY", Share(
    "toy metric", "a toy's meaning.", lambda recorded, side, judge: [True, False], question="whole", finding="toys stand in",
))
METRICS.add("TOY_GONE", Share("toy gone", "a toy's absence.", lambda recorded, side, judge: [True, False], question="gone"))
JUDGES.add("toy-judge", ToyJudge)
ATTACKS.add("toy-attack", Attack("a toy that asks loudly", "toy attack", toy_attack, options=ToyAttackOptions))
DOMAINS.add("toy-domain", ToyDomain())
RECIPES["toy-recipe"] = Recipe(
    "A toy of every part.", "nobody",
    dict(scorer="toy-scorer", edit="toy-edit", top_k=0.01, repair="toy-objective", retain_loss="toy-retain", toy_gain=3.0),
    fits=DENOISERS,
)
"""
COMMANDS = """
import contextlib, io, json, sys, toys
from sd_scissorhands.cli import main
for line in sys.stdin:
    sys.argv, said, code = ["sdscissor", *json.loads(line)], io.StringIO(), 0
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
SETTINGS = "steps = 2\nforget_count = 4\nretain_count = 8\nsampling_steps = 2\nbatch_size = 2\nverify = false\n"


@pytest.fixture(scope="module")
def sdscissor(tmp_path_factory):
    """(run a command line that knows the toys, the folder that it runs in, with a model of the toy domain in model/)."""
    folder = tmp_path_factory.mktemp("seams")
    (folder / "toys.py").write_text(TOYS)
    (folder / "few.toml").write_text(SETTINGS)
    shutil.copytree(MODEL_DIR, folder / "model")
    (folder / "model" / "world.json").rename(folder / "model" / "toy.json")

    def run(*words: str, code: int = 0) -> str:
        print(json.dumps(words), file=process.stdin, flush=True)
        ended, said = json.loads(process.stdout.readline())
        assert ended == code, said
        return said

    piped = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", COMMANDS], cwd=folder, **piped) as process:  # loads torch once
        yield run, folder


def test_help_lists_every_toy(sdscissor):
    run, _ = sdscissor
    erase, evaluate, attack = (" ".join(run(name, "--help-all").split()) for name in ("erase", "eval", "attack"))
    for name in ("toy-scorer", "toy-edit", "toy-objective", "toy-retain"):
        assert name in erase, name
    assert "toy-judge" in evaluate and "TOY" in evaluate
    assert "toy-attack" in attack and "--toy-loudness" in attack
    assert "toy-recipe" in run("recipes")


def test_what_a_scorer_declares_is_a_flag(sdscissor):
    run, _ = sdscissor
    asked = ("erase", "--model", "model", "--concept", "heart", "--recipe", "toy-recipe", "--dry-run", "--json")
    for words in (("--toy-gain", "5"), ("--set", "toy-gain=5")):
        assert json.loads(run(*asked, *words))["settings"]["toy_gain"] == 5.0
    settings = json.loads(run(*asked, "--set", "forget_count=3", "--set", "init=kaiming"))["settings"]
    assert (settings["forget_count"], settings["toy_gain"]) == (3, 3.0)
    run(*asked, "--toy-gain", "-1", code=1)
    run(*asked, "--toy-loss", "1", code=2)
    run(*asked, "--set", "toy-gain", code=2)


def test_toys_erase_are_judged_and_attack(sdscissor):
    """One erasure by a recipe of toys, on a model of a toy domain, judged by a toy metric and judge, under a toy attack."""
    run, folder = sdscissor
    common = ("--json", "--device", "cpu")
    erased = json.loads(
        run("erase", "--model", "model", "--concept", "heart", "--recipe", "toy-recipe", "--config", "few.toml",
            "--output-dir", "run", *common)
    )  # fmt: skip
    settings = json.loads((folder / "run" / "run.json").read_text())["settings"]
    page = (folder / "run" / "report.html").read_text()
    assert "sdscissor eval --model run/model --judge toy-judge --concept heart" in page
    assert (erased["recipe"], settings["toy_gain"]) == ("toy-recipe", 3.0) and erased["trimmed"] > 0 == erased[
        "trimmed"
    ] % 1
    drawn = ("--model", "run/model", "--baseline", "model", "--concept", "heart")
    judged = json.loads(run("eval", *drawn, "--limit", "4", "--steps", "2", "--fail-below", "TOY=0.2", *common))
    assert judged["kind"] == "toy-evaluation" and judged["judge"]["judge"] == "toy-judge"
    assert judged["figures"]["TOY"] == judged["TOY"] == 0.5 and judged["n"]["TOY"] == 2
    run("eval", *drawn, "--limit", "4", "--steps", "2", "--fail-below", "TOY=0.9", *common, code=3)
    found = json.loads(
        run(
            "attack",
            *drawn,
            "--attack",
            "toy-attack",
            "--toy-loudness",
            "5",
            "--limit",
            "4",
            "--sampling-steps",
            "2",
            *common,
        )
    )
    assert found["attack"] == "toy-attack" and found["settings"]["toy_loudness"] == 5
    page = (folder / "run" / "report.html").read_text()
    for text in (
        "toy-recipe",
        "toy gone: 50.0% (original: 50.0%)",  # among what says whether the concept is gone
        "toy metric",
        "a toy&#39;s meaning",
        "toy attack",
        "toy-scorer",
        "toy-edit",
        "toy-objective",
    ):
        assert text in page, text
