"""The Python interface: the commands' results without a terminal, in scripts and in notebooks."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import sd_scissorhands
from sd_scissorhands import AttackSettings, EraseSettings, EvaluateSettings, UserError, attack, erase, evaluate
from sd_scissorhands.quiet import bars, progress_here, quietly
from sd_scissorhands.run import silent

FEW = dict(forget_count=4, retain_count=8, sampling_steps=2, steps=2, batch_size=2, device="cpu")


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A run of two steps, and the stages that were told of."""
    stages: dict[str, int] = {}

    @contextmanager
    def progress(stage, total):
        stages[stage] = 0
        yield lambda count: stages.__setitem__(stage, stages[stage] + count)

    folder = tmp_path_factory.mktemp("api") / "heart"
    return erase(EraseSettings(concepts=("heart",), model="tiny", **FEW), folder, progress=progress), stages


def test_what_the_package_offers_is_there_and_nothing_heavy_is_loaded_for_it():
    assert all(getattr(sd_scissorhands, name) for name in sd_scissorhands.__all__)
    assert set(sd_scissorhands.__all__) <= set(dir(sd_scissorhands))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sd_scissorhands.nothing
    code = "import sys; from sd_scissorhands import EraseSettings; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_an_erasure_is_a_run_directory_with_card_and_page(erased):
    told, stages = erased
    assert (told.folder / "model" / "README.md").exists() and told.report == told.folder / "report.html"
    assert told.concepts == ("heart",) and told.steps == 2 and told.report.exists()
    assert stages["repair"] == 2 and stages["data"] == 16


def test_the_same_settings_again_need_resume(erased):
    settings = EraseSettings(concepts=("heart",), model="tiny", **FEW)
    with pytest.raises(UserError, match="add --resume"):
        erase(settings, erased[0].folder)
    assert erase(settings, erased[0].folder, resume=True).weights_sha256 == erased[0].weights_sha256


def test_an_evaluation_and_an_attack_land_beside_the_run_and_show_their_pictures(erased, capfd):
    model = erased[0].model_dir
    judged = evaluate(EvaluateSettings(model=model, concept="heart", limit=8, steps=2))
    assert judged.folder == erased[0].folder / "eval" / "canvas" and judged.n["UA"] == 8
    page = judged._repr_html_()
    assert page.count("data:image/png") >= 16 and "<script" not in page and '<th scope="row">UA</th>' in page
    assert f'<th scope="row">verdict</th><td>{judged.verdict}</td>' in page and judged.verdict
    struck = attack(AttackSettings("paraphrase", "heart", model, count=6, sampling_steps=2))
    assert struck.folder == erased[0].folder / "attack" / "paraphrase" and struck.baseline == "tiny"
    assert f'<th scope="row">verdict</th><td>{struck.verdict}</td>' in struck._repr_html_() and struck.verdict
    assert "data:image/png" in struck._repr_html_() and judged.figures["IRA"] == struck.IRA
    assert struck.report == erased[0].folder / "report.html"
    assert capfd.readouterr() == ("", "")


def test_a_run_shows_its_values(erased):
    page = erased[0]._repr_html_()
    assert "weights sha256" in page and "<img" not in page


def test_what_was_set_in_the_libraries_is_set_again():
    import diffusers.utils.logging as theirs

    theirs.enable_progress_bar()
    level, threads, filters = theirs.get_verbosity(), torch.get_num_threads(), list(warnings.filters)
    plain = logging.getLogger("bitsandbytes.backends")  # which advises where it is imported
    advises = plain.isEnabledFor(logging.WARNING)
    with quietly(threads=1):
        assert torch.get_num_threads() == 1 and not theirs.is_progress_bar_enabled()
        assert not plain.isEnabledFor(logging.WARNING)
    assert theirs.is_progress_bar_enabled() and theirs.get_verbosity() == level
    assert plain.isEnabledFor(logging.WARNING) == advises
    assert torch.get_num_threads() == threads and warnings.filters == filters


def test_bars_are_shown_in_a_notebook_alone(monkeypatch, capfd):
    assert progress_here() is silent
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress_here() is bars
    monkeypatch.delitem(sys.modules, "IPython")
    with bars("repair", 3) as tick:
        tick(3)
    assert "repair: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("wrong, says", [
    (dict(model="tiny"), "exactly one of"),
    (dict(concept="heart"), "--model is missing"),
    (dict(model="tiny", concept="heart", i2p=True), "exactly one of"),
    (dict(model="tiny", concept="heart", protocol="published"), "no effect without --i2p"),
    (dict(model="tiny", i2p=True, judge="clip"), "no effect without --concept"),
    (dict(model="tiny", concept="heart", judge="me"), "choose canvas, classifier, clip, geometry, nudenet"),
    (dict(model="tiny", concept="heart", limit=1), "at least 2"),
])  # fmt: skip
def test_evaluations_that_mean_nothing_are_refused_at_once(wrong, says):
    with pytest.raises(UserError, match=says):
        EvaluateSettings(**wrong)
