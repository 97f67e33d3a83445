"""A suite of attacks: all of them in folders of their own, continued where it was cut off, the worst case first."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sd_scissorhands import api
from sd_scissorhands.attacks import ATTACKS
from sd_scissorhands.attacks.attack_settings import parse_attacks
from sd_scissorhands.attacks.suite import result_of
from sd_scissorhands.attacks.suite_settings import SUITES, Suite
from sd_scissorhands.cli import app
from sd_scissorhands.errors import UserError
from sd_scissorhands.results.attack import AttackResult, KindRate, OriginalRates
from sd_scissorhands.results.suite import SuiteResult

pytestmark = pytest.mark.usefixtures("four_at_a_time")

SHORT = dict(count=4, sampling_steps=2, device="cpu")


@pytest.fixture
def two(monkeypatch):
    """A suite of two attacks that take a moment."""
    monkeypatch.setitem(SUITES, "quick", ("paraphrase", "relearn:few=2,batch_size=2,steps=2"))


def suite(**more):
    return Suite.of("quick", "heart", "tiny", "tiny", **(SHORT | more))


@pytest.mark.parametrize("name", ["quick", "full"])
def test_every_attack_of_a_suite_is_one(name):
    named = parse_attacks(",".join(SUITES[name]))
    assert {one.attack for one in named} <= set(ATTACKS.names())
    assert set(Suite.of(name, "heart", "tiny").attacks) == {one.name for one in named}


def test_what_one_attack_alone_takes_is_refused():
    with pytest.raises(UserError, match="--restarts has no effect on --suite quick"):
        suite(restarts=2)
    with pytest.raises(UserError, match="--suite 'all' is unknown: choose quick, full"):
        Suite.of("all", "heart", "tiny")


def test_a_cut_off_suite_continues_with_the_same_figures(tmp_path, two, monkeypatch):
    whole = api.attack_suite(suite(), tmp_path / "whole")
    cut = tmp_path / "cut"
    with monkeypatch.context() as broken:
        broken.setattr("sd_scissorhands.attacks.attack.result_of", stop_at("relearn"))
        with pytest.raises(KeyboardInterrupt):
            api.attack_suite(suite(), cut)
    first = (cut / "paraphrase" / "summary.json").stat().st_mtime_ns
    resumed = api.attack_suite(suite(), cut)
    assert (cut / "paraphrase" / "summary.json").stat().st_mtime_ns == first
    figures = [
        [(row.name, row.asr_after, row.original_asr_after, row.n) for row in one.attacks] for one in (whole, resumed)
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 2
    with pytest.raises(UserError, match="holds another attack"):
        api.attack_suite(suite(seed=1), cut)
    page = (cut / "report.html").read_text()
    assert "Every attack on this model and on the original" in page and "Relearning" in page


def stop_at(name):
    """`attack.result_of` of all attacks but one, which is cut off there."""
    from sd_scissorhands.attacks.attack import result_of as made

    def result(context, evaluation):
        if context.settings.attack == name:
            raise KeyboardInterrupt
        return made(context, evaluation)

    return result


def attacked(asr, original=1.0, **more):
    return AttackResult(n=80, asr_after=asr, original=OriginalRates(0.0, original), **more)


def test_the_worst_that_proves_something_comes_first():
    kinds = {"a": KindRate(40, 0.1, 1.0), "b": KindRate(40, 0.2, 1.0)}
    found = result_of(suite_of("quick"), {
        "paraphrase": attacked(0.2, attack="paraphrase", kinds=kinds), "embedding": attacked(0.9, 0.1, attack="embedding", broken=True),
        "relearn": attacked(1.0, attack="relearn"), "completion": attacked(0.4, attack="completion"),
    })  # fmt: skip
    assert [row.name for row in found.attacks] == ["completion", "paraphrase", "relearn", "embedding"]
    assert (found.asr_after, found.working) == (0.4, pytest.approx(2 / 3, abs=1e-4))
    assert found.attacks[1].kind == "b"
    assert SuiteResult.from_json(found.to_json()) == found


def suite_of(name):
    return Suite.of(name, "heart", "tiny")


def test_the_command_prints_one_object_and_keeps_gates(tmp_path, two):
    words = ["attack", "--suite", "quick", "--model", "tiny", "--baseline", "tiny", "--concept", "heart", "--limit", "4", "--sampling-steps", "2",
             "--output-dir", str(tmp_path / "suite"), "--device", "cpu", "--json", "--quiet"]  # fmt: skip
    result = CliRunner().invoke(app, [*words, "--fail-above", "asr_after=0"])
    found = json.loads(result.stdout)
    assert found["kind"] == "suite" and [row["name"] for row in found["attacks"]] == ["paraphrase", "relearn"]
    assert result.exit_code in (1, 3) and "asr_after" in str(result.exception or result.stderr)
    both = CliRunner().invoke(app, [*words, "--attack", "token"])
    assert "--suite brings its own attacks" in str(both.exception or both.stderr)
