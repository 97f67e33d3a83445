"""Golden values: the weights of every recipe to the bit, and the JSON of a short evaluation, attack and comparison.

Everything is made anew through the public interface with seed 0, in a few steps, on one thread of the CPU, and compared
with golden.json beside this file, so that nothing moves unseen. What a machine or a day changes is left out: times, sizes of
memory, where files lie. Bytes are promised of one version of torch on one kind of CPU. With another kind an erasure's numbers must be
near, and the rest is skipped: six steps are enough for a classifier's rounding to grow into other figures.

To rewrite golden.json, where something is meant to move:

    SDSCISSOR_GOLDEN=write .venv/bin/python -m pytest tests/test_golden.py

Then read its diff. With -k only what is chosen is rewritten.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_scissorhands import (
    AttackSettings,
    Comparison,
    EraseSettings,
    EvaluateSettings,
    ForgetSettings,
    attack,
    compare,
    erase,
    evaluate,
    forget,
)
from sd_scissorhands.machine import processor

FILE = Path(__file__).with_name("golden.json")
WRITE = os.environ.get("SDSCISSOR_GOLDEN") == "write"
MADE_WITH = {"torch": torch.__version__, "cpu": processor()}
NEAR = 1e-3  # relative, of an erasure's numbers on two kinds of CPU; 5e-6 was seen
VOLATILE = (
    "seconds",
    "judging_share",
    "peak_bytes",
    "report",
    "run_dir",
    "model_dir",
    "output_dir",
    "command",
    "version",
    "versions",
)
Values = dict[str, Any]
Check = Callable[[str, str, Values], None]

SHORT: Values = dict(
    model="tiny", concepts=("heart",), seed=0, forget_count=8, retain_count=16, sampling_steps=2, retain_sampling_steps=3,
    score_draws=2, top_k=0.01, steps=6, memory_every=4, batch_size=4, device="cpu", dtype="float32",
    verify=False,
)  # fmt: skip
QUICK: Values = dict(
    forget_class="3", seed=0, score_draws=2, options={"rounds": 2}, steps=6, memory_every=4, batch_size=16, device="cpu"
)
WEIGHTS = "weights_sha256"
FACTS = (WEIGHTS, "scope_size", "trimmed", "steps", "conflict_rate", "mean_correction")

ERASURES = (
    "scissorhands-robust", "scissorhands-anchored", "scissorhands", "lra-npp", "l-codec", "retain-only", "gradient-ascent",
    "salun", "esd", "substitution", "random-k", "scissorhands-open",
)  # fmt: skip
FORGETTINGS = ("scissorhands", "lra-npp", "l-codec", "retain-only", "gradient-ascent", "salun", "random-k")
UNREPAIRED = ("lra-npp", "l-codec")  # forgettings whose recipe repairs nothing
REPAIRS = ("retain", "anchor", "paired", "ascent", "random-label", "negative-guidance")
# What no recipe has, over scissorhands-anchored: its scores, trim and projection run as well.
EXTRAS: dict[str, Values] = {
    "projection scale-free": dict(projection="scale-free"),
    "projection paper": dict(projection="paper"),
    "train selection": dict(train="selection"),
    **{f"retain_loss {name}": dict(retain_loss=name) for name in ("distil", "guided", "denoise")},
    "repair none": dict(repair="none", steps=None),
    **{f"repair {name}": dict(repair=name) for name in REPAIRS},
    "micro_batch 2": dict(micro_batch=2),
    "relearn_every 1": dict(relearn_every=1),
    "relearn_every 2, paired, micro_batch 2": dict(
        repair="paired", conditions="mixture", relearn_every=2, micro_batch=2
    ),
    "two concepts": dict(concepts=("heart", "star")),
}
ATTACKS: dict[str, Values] = {
    "embedding": dict(learn_from=4, restarts=2, steps=3, batch_size=2),
    "token": dict(steps=2, tokens=2),
    "paraphrase": {},
    "relearn": dict(few=2, steps=3, batch_size=2),
    "list": {},
}
PROMPTS = "a red heart\na valentine on white\na small figure\n"
COMPARED = ("scissorhands-anchored", "retain-only")
NAMES = {
    "erase": [*ERASURES, *EXTRAS],
    "forget": list(FORGETTINGS),
    "evaluate": ["heart"],
    "attack": list(ATTACKS),
    "compare": ["heart", "class 3"],
}


def as_dict(result: Any) -> Values:
    """A result's values by name, whatever object it is."""
    return result.to_json()


def facts(result: Any) -> Values:
    """What a run's outcome is told by."""
    values = as_dict(result)
    return {name: values[name] for name in FACTS}


def steady(value: Any, folder: Path) -> Any:
    """JSON without what differs from run to run; `folder` becomes DIR."""
    if isinstance(value, dict):
        return {name: steady(one, folder) for name, one in value.items() if name not in VOLATILE}
    if isinstance(value, list | tuple):
        return [steady(one, folder) for one in value]
    return str(value).replace(str(folder), "DIR") if isinstance(value, str | Path) else value


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """Compares a value with the golden one of its kind and name; or makes it the golden one."""
    golden: Values = json.loads(FILE.read_text()) if FILE.exists() else {}
    made_with = golden.get("made_with", {})
    if not WRITE and made_with.get("torch") != MADE_WITH["torch"]:
        pytest.skip(f"golden.json was made with {made_with}, here is {MADE_WITH}")

    made: Values = {}

    def compared(kind: str, name: str, value: Values) -> None:
        found = json.loads(json.dumps(value, allow_nan=False))
        if WRITE:
            made.setdefault(kind, {})[name] = found
        elif made_with == MADE_WITH:
            assert found == golden[kind][name]
        elif kind == "erase":
            ours, theirs = (
                {fact: own[fact] for fact in FACTS if fact != WEIGHTS and own[fact] is not None}
                for own in (found, golden[kind][name])
            )
            assert ours == pytest.approx(theirs, rel=NEAR)
        else:
            pytest.skip(f"golden.json was made with {made_with}, here is {MADE_WITH}")

    yield compared
    if made:
        merged = {kind: golden.get(kind, {}) | made.get(kind, {}) for kind in NAMES}
        kept = {
            kind: {name: merged[kind][name] for name in names if name in merged[kind]} for kind, names in NAMES.items()
        }
        FILE.write_text(json.dumps({"made_with": MADE_WITH} | kept, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is made."""
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    """A model to judge and to attack, from which hearts are half gone."""
    settings = EraseSettings(recipe="scissorhands-anchored", **SHORT | dict(steps=20, lr=2e-3))
    return as_dict(erase(settings, folder / "judged"))["model_dir"]


@pytest.fixture(scope="module")
def judged(folder: Path, model: str) -> Values:
    """Its evaluation, which lies beside the attacks."""
    told = evaluate(EvaluateSettings(model=model, concept="heart", limit=8, steps=3, batch_size=8, device="cpu"))
    return steady(as_dict(told), folder)


def test_every_recipe_has_its_golden_weights() -> None:
    from sd_scissorhands.recipes import recipes_for

    assert set(ERASURES) == set(recipes_for("small")) and set(FORGETTINGS) == set(recipes_for("classifier"))
    if not WRITE:
        golden = json.loads(FILE.read_text())
        assert {kind: list(golden[kind]) for kind in NAMES} == NAMES


@pytest.mark.parametrize("recipe", ERASURES)
def test_an_erasure_gives_the_same_weights(recipe: str, check: Check, tmp_path: Path) -> None:
    check("erase", recipe, facts(erase(EraseSettings(recipe=recipe, **SHORT), tmp_path / "run")))


@pytest.mark.parametrize("name", EXTRAS)
def test_an_erasure_with_what_no_recipe_has_gives_the_same_weights(name: str, check: Check, tmp_path: Path) -> None:
    settings = EraseSettings(recipe="scissorhands-anchored", **SHORT | EXTRAS[name])
    check("erase", name, facts(erase(settings, tmp_path / "run")))


@pytest.mark.parametrize("recipe", FORGETTINGS)
def test_a_forgetting_gives_the_same_weights_and_figures(recipe: str, check: Check, tmp_path: Path) -> None:
    steps = None if recipe in UNREPAIRED else QUICK["steps"]
    told = forget(ForgetSettings(recipe=recipe, **QUICK | dict(steps=steps)), tmp_path / "run")
    values = as_dict(told)
    beside = {name: values[name] for name in ("figures", "original", "retrained")}
    check("forget", recipe, facts(told) | steady(beside, tmp_path))


def test_an_evaluation_tells_the_same(judged: Values, check: Check) -> None:
    check("evaluate", "heart", judged)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_tells_the_same(name: str, model: str, judged: Values, check: Check, folder: Path) -> None:
    asked = dict(ATTACKS[name])
    if name == "list":
        (folder / "prompts.txt").write_text(PROMPTS)
        asked["prompts"] = str(folder / "prompts.txt")
    told = attack(AttackSettings(name, "heart", model, count=6, sampling_steps=3, seed=0, device="cpu", **asked))
    check("attack", name, steady(as_dict(told), folder))


def test_a_comparison_of_erasures_tells_the_same(check: Check, folder: Path) -> None:
    shared = {name: value for name, value in SHORT.items() if name not in ("concepts", "seed")}
    asked = Comparison(EraseSettings(**shared), ({"concepts": ("heart",)},), COMPARED, seeds=1)
    learning = dict(restarts=1, steps=2, learn_from=4, batch_size=2)
    measures = dataclasses.replace(asked.measures, count=4, sampling_steps=3, attack="embedding", attacking=learning)
    told = compare(dataclasses.replace(asked, measures=measures), folder / "compared")
    check("compare", "heart", steady(as_dict(told), folder))


def test_a_comparison_of_forgettings_tells_the_same(check: Check, folder: Path) -> None:
    shared = {name: value for name, value in QUICK.items() if name not in ("forget_class", "seed")}
    asked = Comparison(ForgetSettings(**shared), ({"forget_class": "3"},), ("scissorhands", "salun"), seeds=1)
    check("compare", "class 3", steady(as_dict(compare(asked, folder / "forgotten")), folder))
