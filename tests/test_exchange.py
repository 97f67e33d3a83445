"""Results for other programs and papers: eval-unlearn's reports, I2P tables in three formats."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from test_report import add_nudenet, make_run, put
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.errors import UsageError, UserError
from sd_scissorhands.report.exchange import FORMATS, exchanged
from sd_scissorhands.report.i2p_table import COLUMNS, HEADER, Counted, as_csv, as_latex, as_markdown
from sd_scissorhands.results.evaluation import Exposed, NudityCounts, NudityEvaluation, SweepRow

PART = "FEMALE_BREAST_EXPOSED"
NUMBERS, OBJECTS = (int, float, type(None)), (dict,)
REPORT = {
    "run_id": str, "timestamp": float, "technique_name": (str, type(None)), "erase_concept": str, "metric_names": list,
    "metric_results": dict,
}  # fmt: skip
KEYS = {"ua_ira", "asr_i2p", "asr_p4d", "asr_mma_diffusion", "asr_ring_a_bell", "err", "fid", "clip_score", "tifa"}
HOSTILE = "=1+1 | <b> \\input{x} 50% a_b & #$~^\n*c*"


def counts(boxes: dict[str, int], images: int = 100, **more: object) -> dict[str, object]:
    total = sum(boxes.values())
    exposed = {name: Exposed(total, (0, total), total, (0, total)) for name in ("all", "core")}
    sweep = (SweepRow(0.5, 9, 8, 6, 5), SweepRow(0.6, total, total, total, total))
    return {"images": images, "boxes": boxes | {"FACE_FEMALE": 7}, "exposed": exposed, "sweep": sweep, **more}


def nudity(before: dict[str, int], after: dict[str, int], **more: object) -> dict[str, object]:
    """What NudeNet saw, as its summary has it."""
    baseline = NudityCounts(**counts(before, model="/home/me/sd-v1-4", weights_sha256="a" * 64))
    own = counts(after, model="runs/x/model", weights_sha256="b" * 64, threshold=0.6, **more)
    return NudityEvaluation("i2p", baseline=baseline, **own).to_json()


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with an evaluation of a concept, I2P counts and two attacks."""
    path = make_run(tmp_path / "heart")
    put(path / "eval/i2p/summary.json", nudity({PART: 30, "ANUS_EXPOSED": 1}, {PART: 3, "BELLY_EXPOSED": 2}))
    attack = {"kind": "attack", "concept": "heart", "weights_sha256": "b" * 64, "judge": {"judge": "canvas"}, "n": 40}
    rates = {"asr_before": 0.0, "asr_after": 0.1, "original": {"asr_after": 0.95}}
    put(path / "attack/embedding/summary.json", attack | rates)
    put(path / "attack/relearn/summary.json", attack | {"steps_back": {"concept": 40, "benign": None, "most": 160}})
    return path


def as_report(run: Path) -> dict:
    return json.loads(exchanged([run], "eval-unlearn"))


# ---------------------------------------------------------------- eval-unlearn


def test_a_report_has_what_eval_unlearns_has(run):
    report = as_report(run)
    for name, kind in REPORT.items():
        assert isinstance(report[name], kind), name
    assert re.fullmatch("[0-9a-f]{8}", report["run_id"]) and report["erase_concept"] == "heart"
    assert "1.1.2" in report["format"] and report["timestamp"] > 1.6e9
    assert list(report["metric_results"]) == report["metric_names"] and set(report["metric_names"]) >= KEYS
    for result in report["metric_results"].values():
        assert set(result) == {"name", "value", "details"}
        assert isinstance(result["value"], NUMBERS) and isinstance(result["details"], OBJECTS)


def test_shares_stay_shares_and_counts_are_whole(run):
    results = as_report(run)["metric_results"]
    ua, details = results["ua_ira"], results["ua_ira"]["details"]
    assert (details["ua_score"], details["ira_score"]) == (0.983, 0.954) and ua["value"] == pytest.approx(0.9685)
    assert (details["target_correct"], details["target_total"]) == (236, 240)
    assert details["original"]["ua_score"] == 0.021
    attacked = results["asr_embedding"]
    assert attacked["value"] == 0.1 and attacked["details"]["unsafe_count"] == 4
    assert attacked["details"]["original"] == 0.95
    i2p = results["asr_i2p"]
    assert i2p["value"] == 0.05 and i2p["details"]["original"] == {"total_images": 100, "unsafe_count": 5}


def test_what_was_not_measured_is_null_and_says_why(run):
    results = as_report(run)["metric_results"]
    for name in ("fid", "tifa", "err", "asr_p4d", "asr_mma_diffusion", "asr_ring_a_bell", "clip_score"):
        assert results[name]["value"] is None and results[name]["details"]["error"]
    again = results["asr_relearn"]
    assert again["value"] is None and again["details"]["unsafe_count"] is None
    assert again["details"]["steps_back"]["concept"] == 40


def test_a_clip_score_is_100_cosines_in_both(run):
    summary = json.loads((run / "eval/canvas/summary.json").read_text())
    kept = {"n": 16, "clip_score": {"model": 27.5, "original": 28.0}}
    put(run / "eval/canvas/summary.json", summary | {"kept": kept})
    score = as_report(run)["metric_results"]["clip_score"]
    assert score["value"] == 27.5 and score["details"]["evaluated_count"] == 16 and score["details"]["original"] == 28.0


def test_a_second_concept_has_a_result_of_its_own(run):
    summary = json.loads((run / "eval/canvas/summary.json").read_text())
    put(run / "eval/canvas-star/summary.json", summary | {"concept": "star"})
    results = as_report(run)["metric_results"]
    assert results["ua_ira"]["details"]["concept"] == "heart"
    assert results["ua_ira_canvas-star"]["details"]["concept"] == "star"


def test_eval_unlearns_own_code_takes_the_report(run, tmp_path):
    artifacts, types = pytest.importorskip("eval_unlearn.artifacts"), pytest.importorskip("eval_unlearn.types")
    report, older = as_report(run), tmp_path / "results"
    writer = artifacts.ArtifactWriter(str(older))
    for time in (0, -1):  # the second is older than the copy that lies there, and is read to find that out
        writer.save_run("x", report["technique_name"], "multi", [], report | {"timestamp": report["timestamp"] + time})
    latest = older / f"{report['technique_name']}_heart_latest_report.json"
    assert json.loads(latest.read_text()) == report
    assert [types.MetricResult(**one).value for one in report["metric_results"].values()]


# ---------------------------------------------------------------- I2P


def other(run: Path) -> Path:
    """Another model's counts beside the same original, in a folder of their own."""
    put(run.parent / "i2p/summary.json", nudity({PART: 30, "ANUS_EXPOSED": 1}, {"FEET_EXPOSED": 4}))
    return run.parent / "i2p"


def test_the_original_comes_first_and_once(run):
    table = list(csv.reader(io.StringIO(exchanged([run, other(run)], "i2p-csv"))))
    assert table[0] == ["Method", *COLUMNS, "Total", "Pictures", "Threshold"] and len(COLUMNS) == 8
    assert [row[0] for row in table[1:]] == ["original (sd-v1-4)", "scissorhands-anchored", "runs/x/model"]
    assert table[1][1:] == ["0", "0", "0", "0", "30", "0", "0", "0", "30", "100", "0.6"]
    assert table[2][1:] == ["0", "2", "0", "0", "3", "0", "0", "0", "5", "100", "0.6"]


def test_runs_of_one_recipe_have_their_folders_names(run, tmp_path):
    second = make_run(tmp_path / "again")
    put(second / "eval/i2p/summary.json", nudity({PART: 31}, {PART: 1}))
    table = list(csv.reader(io.StringIO(exchanged([run, second], "i2p-csv"))))
    assert [row[0] for row in table[3:]] == ["scissorhands-anchored, heart", "scissorhands-anchored, again"]
    assert [row[-3] for row in table[1:3]] == ["30", "31"]  # two originals, for they differ


def test_markdown_and_latex_have_the_same_cells(run):
    text = exchanged([run], "i2p-markdown").splitlines()
    assert text[0] == f"| {' | '.join(HEADER)} |" and text[3].endswith("| 0 | 2 | 0 | 0 | 3 | 0 | 0 | 0 | 5 | 100 |")
    assert "1 boxes in all rows" in text[-1].replace("\\", "")
    text = exchanged([run], "i2p-latex").splitlines()
    assert text[0] == r"\begin{tabular}{lrrrrrrrrrr}" and text[-2] == r"\end{tabular}" and text[-1].startswith("% ")
    assert r"scissorhands-anchored & 0 & 2 & 0 & 0 & 3 & 0 & 0 & 0 & 5 & 100 \\" in text


def test_no_name_means_anything_to_a_format():
    row = [Counted(HOSTILE, (0,) * 8, 1)]
    assert next(iter(csv.reader(io.StringIO(as_csv(row)[len(as_csv([])) :]))))[0].startswith("'=1+1")
    markdown = as_markdown(row).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", markdown)) == len(HEADER) + 1 and "<b>" not in markdown
    latex = as_latex(row).splitlines()[4]
    assert r"\input" not in latex and len(re.findall(r"(?<!\\)&", latex)) == len(HEADER) - 1
    assert not re.search(r"(?<!\\)[%#$_]", latex) and r"\textbackslash{}input\{x\}" in latex


# ---------------------------------------------------------------- refusals and the command


def test_what_cannot_be_handed_on_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="choose eval-unlearn"):
        exchanged([run], "xml")
    with pytest.raises(UsageError, match="one folder, not 2"):
        exchanged([run, run], "eval-unlearn")
    with pytest.raises(UserError, match="holds no results"):
        exchanged([make_run(tmp_path / "unmeasured", evaluated=False)], "eval-unlearn")
    with pytest.raises(UserError, match="--i2p makes them"):
        exchanged([make_run(tmp_path / "uncounted")], "i2p-csv")
    put(run / "eval/i2p/summary.json", nudity({PART: 3}, {PART: 3}) | {"threshold": 0.5})
    with pytest.raises(UserError, match=r"from a score of 0.5.*--threshold 0.6"):
        exchanged([run], "i2p-csv")
    add_nudenet(run)  # of a version that left the totals out
    with pytest.raises(UserError, match="are damaged"):
        exchanged([run], "i2p-csv")
    put(run / "eval/i2p/summary.json", nudity({PART: 3}, {PART: 3}) | {"weights_sha256": "c" * 64})
    with pytest.raises(UserError, match="other weights"):
        exchanged([run], "eval-unlearn")


def test_the_command_prints_or_writes(run, tmp_path):
    def called(*words: object):
        return CliRunner().invoke(app, ["report", *map(str, words)])

    file = tmp_path / "report.json"
    assert json.loads(called(run, "--format", "eval-unlearn").stdout)["erase_concept"] == "heart"
    written = called(run, "--format", "eval-unlearn", "--output", file, "--json")
    assert json.loads(written.stdout) == {"output": str(file)} and json.loads(file.read_text())["metric_results"]
    again = called(run, "--format", "eval-unlearn", "--output", file)
    assert isinstance(again.exception, UserError) and "choose another" in str(again.exception)
    assert "--format" in str(called(run, other(run)).exception)
    assert all(one in called("--help").stdout for one in FORMATS)
