"""Comparisons: rows that can be trusted, continued where they were cut, told on one page; bad input before any work."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from sd_scissorhands import compare as compare_recipes
from sd_scissorhands import demo as demonstration
from sd_scissorhands.cli import app, main
from sd_scissorhands.comparison import erasures, forgettings
from sd_scissorhands.comparison.jobs import Comparison, Measures
from sd_scissorhands.comparison.measure import Measured
from sd_scissorhands.comparison.table import summarise
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.chance import wilson
from sd_scissorhands.recipes import RECIPES, recipes_for
from sd_scissorhands.report import write_comparison
from sd_scissorhands.report.comparison_page import ROWS
from sd_scissorhands.results.attack import AttackResult, OriginalRates
from sd_scissorhands.results.comparison import ComparisonResult, ComparisonRow
from sd_scissorhands.results.erase import EraseResult
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.results.forget import ForgetResult
from sd_scissorhands.settings import EraseSettings, ForgetSettings
from sd_scissorhands.tiny import MODEL_DIR

runner = CliRunner()
SHORT = dict(
    forget_count=2, retain_count=4, sampling_steps=1, guidance=3.0, score_draws=1, steps=1, memory_every=1, batch_size=2,
    device="cpu", verify=False,
)  # fmt: skip
QUICK = Measures(count=2, sampling_steps=1, attacking={"restarts": 1, "steps": 1, "learn_from": 2, "batch_size": 2})
PAIR = ("scissorhands-anchored", "retain-only")


def compare(comparison: Comparison, folder: Path, **more: Any) -> dict[str, Any]:
    """The JSON of a comparison."""
    return compare_recipes(comparison, folder, **more).to_json()


def hearts(**changes: Any) -> Comparison:
    """Two recipes on one concept and one seed, in seconds."""
    asked: dict[str, Any] = dict(
        settings=EraseSettings(model="tiny", **SHORT), targets=({"concepts": ("heart",)},), recipes=PAIR, seeds=1,
        measures=QUICK,
    )  # fmt: skip
    return Comparison(**asked | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """A comparison that nothing interrupted, through the command line but for what it has no flag for."""
    return compare(hearts(), tmp_path_factory.mktemp("whole") / "out", command=["sdscissor", "compare", "a b"])


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line.to_json() for line in summarise([ComparisonRow.from_json(row) for row in rows])]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# ---------------------------------------------------------------- denoisers


def test_rows_have_every_figure_with_n_and_interval(whole):
    assert [row["recipe"] for row in whole["rows"]] == ["original", *PAIR]
    for row in whole["rows"]:
        assert row["concept"] == "heart" and row["seed"] == 0
        for name in ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA", "CRA_forget", "asr"):
            low, high = row["intervals"][name]
            assert low - 1e-4 <= row[name] <= high + 1e-4 and row["n"][name] >= 1
            assert row["intervals"][name] == wilson(round(row[name] * row["n"][name]), row["n"][name])
    original, trimmed, baseline = whole["rows"]
    assert original["seconds"] is None and original["run"] is None and baseline["baseline"] and not trimmed["baseline"]
    assert trimmed["trimmed"] > 0 == baseline["trimmed"] and trimmed["seconds"] > 0
    assert {row["original_asr"] for row in whole["rows"]} == {original["asr"]} and original["n"]["UA"] == 2


def test_every_row_is_a_run_and_the_original_is_drawn_once(whole):
    root = Path(whole["output_dir"])
    for row in whole["rows"][1:]:
        run = root / row["run"]
        assert run == root / "heart" / f"{row['recipe']}-seed0"
        assert {"run.json", "model", "eval", "attack", "row.json", "report.html"} <= {one.name for one in run.iterdir()}
        told = json.loads((run / "eval" / "canvas" / "summary.json").read_text())
        assert told["figures"]["IRA"] == row["IRA"] and told["original"]["IRA"] == whole["rows"][0]["IRA"]
        for file in ("eval/canvas/original.jsonl", "attack/embedding/original-embedding-0.safetensors"):
            assert (run / file).read_bytes() == (root / "heart" / "original-seed0" / file).read_bytes()


def test_a_killed_comparison_continues(whole, tmp_path, monkeypatch):
    made: list[str] = []

    def once(settings, folder, what, progress):
        if made:
            raise KeyboardInterrupt
        made.append(folder.name)
        return measure(settings, folder, what, progress)

    measure = erasures.measure
    monkeypatch.setattr(erasures, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        compare(hearts(), tmp_path)
    assert made == ["scissorhands-anchored-seed0"] and not (tmp_path / ROWS).exists()
    first = json.loads((tmp_path / "heart" / made[0] / "row.json").read_text())["rows"]
    stages: list[str] = []

    def tell(stage, total):
        stages.append(stage)
        return demonstration.silent(stage, total)

    monkeypatch.setattr(erasures, "measure", lambda *given: made.append(given[1].name) or measure(*given))
    told = compare(hearts(), tmp_path, progress=tell)
    assert made[1:] == ["retain-only-seed0"]
    assert told["rows"][:2] == [first["original"], first["model"]] and untimed(told["rows"]) == untimed(whole["rows"])
    assert stages and all(stage.startswith("2/2 retain-only on heart, seed 0: ") for stage in stages)
    row = tmp_path / "heart" / made[0] / "row.json"
    former = json.loads(row.read_text())
    del former["made_by"]["other_words"]  # which former versions did not write
    row.write_text(json.dumps(former))
    again = compare(hearts(recipes=PAIR[:1]), tmp_path)
    assert again["rows"] == told["rows"][:2] and len(made) == 2


@pytest.mark.parametrize("changes", [
    {"measures": Measures(**{**vars(QUICK), "count": 3})},
    {"settings": EraseSettings(model="tiny", **SHORT | {"steps": 2})},
    {"measures": Measures(**{**vars(QUICK), "attacking": {**QUICK.attacking, "tokens": 2}})},
])  # fmt: skip
def test_other_settings_are_refused_before_any_work(whole, changes, monkeypatch):
    monkeypatch.setattr(erasures, "measure", lambda *given: pytest.fail("work was done"))
    with pytest.raises(UserError, match=r"--output-dir .* made with other settings"):
        compare(hearts(**changes), Path(whole["output_dir"]))


@pytest.mark.parametrize("changed", ["model", "judges", "concept"])
def test_rows_are_not_repeated_of_other_contents_under_the_same_names(tmp_path, monkeypatch, changed):
    base = tmp_path / "base"
    shutil.copytree(MODEL_DIR, base)
    quick = dataclasses.replace(QUICK, attack=None, attacking={})
    asked = hearts(settings=EraseSettings(model=str(base), **SHORT), recipes=PAIR[1:], measures=quick)
    told = compare(asked, tmp_path / "out")
    monkeypatch.setattr(erasures, "measure", lambda *given: pytest.fail("work was done"))
    assert compare(asked, tmp_path / "out")["rows"] == told["rows"]
    if changed == "model":
        with (base / "scheduler" / "scheduler_config.json").open("a") as file:
            file.write("\n")
    elif changed == "judges":
        monkeypatch.setattr("sd_scissorhands.evaluation.judges.canvas.hash_file", lambda file: "another")
    else:
        monkeypatch.setattr(erasures, "asdict", lambda concept: vars(concept) | {"anchor": "another"})
    with pytest.raises(UserError, match=rf"made with other settings \({changed}_sha256 "):
        compare(asked, tmp_path / "out")


def test_the_page_tells_everything_and_escapes_it(whole):
    root = Path(whole["output_dir"])
    page = Path(whole["report"]).read_text()
    for text in (
        "Compared: heart", RECIPES["retain-only"].summary, RECIPES["retain-only"].source, "Quality against attack",
        "sdscissor compare &#39;a b&#39;", "heart/retain-only-seed0/report.html", "baseline", "n = 2", "<svg",
    ):  # fmt: skip
        assert text in page, text
    assert page.count("<script") == 1 and "http:" not in page.replace("http://www.w3.org", "")
    told = json.loads((root / ROWS).read_text())
    hostile = "<img src=x onerror=alert(1)>"
    told["targets"] = told["command"] = [hostile]
    told["model"] = hostile
    for row in told["rows"]:
        row.update(concept=hostile, failed=hostile, UA=None, collapsed=True, nothing_to_erase=True, run=f"../{hostile}")
    told["recipes"]["retain-only"].update(summary=hostile, source=hostile)
    folder = root.parent / "hostile"
    folder.mkdir()
    (folder / ROWS).write_text(json.dumps(told | {"table": table(told["rows"])}))
    page = write_comparison(folder).read_text()
    assert "<img" not in page and "&lt;img src=x" in page and "Collapsed" in page and "Diverged" in page
    assert page.count("<strong>Nothing to erase</strong>") == 1  # of the original's row
    with pytest.raises(UserError, match="holds no comparison"):
        write_comparison(folder / "none")


def test_the_rows_are_a_csv_too(whole):
    with (Path(whole["output_dir"]) / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["recipe"] for row in rows] == ["original", *PAIR] and rows[0]["seconds"] == ""
    assert float(rows[1]["UA_low"]) == whole["rows"][1]["intervals"]["UA"][0] and rows[1]["n_UA"] == "2"


def test_the_command_line_prints_json_alone_and_a_table(whole, tmp_path, monkeypatch):
    config = tmp_path / "short.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in SHORT.items()))
    seen: list[Any] = []
    monkeypatch.setattr(
        "sd_scissorhands.comparison.compare.compare",
        lambda asked, root, **more: seen.append((asked, root)) or ComparisonResult.from_json(whole),
    )
    ask = [
        "compare", "--recipes", ",".join(PAIR), "--seeds", "1", "--concept", "heart", "--limit", "2", "--sampling-steps", "1",
        "--restarts", "1", "--attack-steps", "1", "--config", str(config), "--output-dir", str(tmp_path / "out"),
    ]  # fmt: skip
    done = runner.invoke(app, [*ask, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {"rows", "report", "table", "kind", "output_dir"} <= set(told)
    assert {"recipe", "concept", "seed", "UA", "IRA", "CRA", "asr"} <= set(told["rows"][0])
    asked, root = seen[0]
    assert asked.settings == hearts().settings and asked.recipes == PAIR and root == tmp_path / "out"
    assert asked.measures == Measures(count=2, sampling_steps=1, attacking={"restarts": 1, "steps": 1})
    done = runner.invoke(app, ask)
    assert done.stdout == "" and "retain-only" in done.stderr and "report.html" in done.stderr
    assert "nothing to erase" not in done.stderr
    whole = whole | {"rows": [row | {"nothing_to_erase": True} for row in whole["rows"]]}
    assert (
        runner.invoke(app, ask).stderr.count("nothing to erase on heart, seed 0: the original shows it in under half")
        == 1
    )


def test_several_attacks_each_have_columns_of_their_own(tmp_path):
    listed = "relearn:few=2,batch_size=2,stops=1+3,steps=4,embedding,paraphrase:count=1,embedding:tokens=2"
    measures = Measures(**{**vars(QUICK), "attack": listed, "attacking": QUICK.attacking | {"steps": 1}})
    told = compare(hearts(recipes=PAIR[:1], measures=measures), tmp_path / "out")
    original, own = told["rows"]
    further = ("asr_paraphrase", "asr_embedding-tokens-2", "relearn_steps", "relearn_benign_steps")
    assert set(told["columns"]) == set(further) and told["measures"]["attack"] == listed
    run = tmp_path / "out" / own["run"] / "attack"
    for name, folder in {"asr": "embedding", "asr_paraphrase": "paraphrase", further[1]: "embedding-tokens-2"}.items():
        found = json.loads((run / folder / "summary.json").read_text())
        assert (own[name], original[name]) == (found["asr_after"], found["original"]["asr_after"])
        assert own["intervals"][name] == found["interval_after"] and own["n"][name] == found["n"]
    assert own["n"]["asr_paraphrase"] == 1 and original["relearn_steps"] == 0
    curve = json.loads((run / "relearn" / "summary.json").read_text())
    assert [point["step"] for point in curve["curve"]] == [0, 1, 3, 4]
    assert own["relearn_steps"] == (curve["steps_back"]["concept"] or 4) and "relearn_steps" not in own["n"]
    page = Path(told["report"]).read_text()
    for column in told["columns"].values():
        assert column["header"] in page and column["meaning"][:60] in page
    assert "ASR, learned embedding (tokens 2)" in page and "relearn steps" in page
    assert told["table"][1]["figures"]["relearn_steps"]["mean"] == own["relearn_steps"]
    held = compare(hearts(recipes=PAIR[:1], measures=measures), tmp_path / "out")
    assert held["rows"] == told["rows"]


@pytest.mark.parametrize(("listed", "words"), [
    ("magic", "'magic' is unknown: choose completion, deployment, embedding"),
    ("embedding,embedding", "names embedding twice"),
    ("token:restarts=2", "'restarts' is none of its settings: choose count, images, steps, lr, tokens"),
    ("relearn:lr=fast", "lr=fast is no number"),
    ("paraphrase", "--restarts has no effect on --attack paraphrase"),
    ("embedding:steps=0", "--steps 0 is too small: it must be at least 1"),
])  # fmt: skip
def test_attacks_that_nobody_can_run_are_refused(listed, words):
    with pytest.raises(UserError, match=words):
        hearts(measures=Measures(attack=listed, attacking={"restarts": 1}))


def test_any_text_on_any_model(foreign, clip_dir, tmp_path):
    asked = hearts(
        settings=EraseSettings(model=str(foreign), anchor="a grey cat", **SHORT),
        targets=({"concepts": ("a red fox",)},), recipes=("substitution",),
        measures=Measures(count=2, sampling_steps=1, clip=str(clip_dir), attack="paraphrase"),
    )  # fmt: skip
    told = compare(asked, tmp_path)
    original, own = told["rows"]
    assert own["concept"] == "a red fox" and own["run"] == "a-red-fox/substitution-seed0" and own["baseline"]
    assert own["IRA"] is None and own["intervals"]["IRA"] is None and own["n"]["asr"] == original["n"]["asr"] > 0
    assert (tmp_path / own["run"] / "eval" / "concept" / "summary.json").exists()
    assert compare(asked, tmp_path)["rows"] == told["rows"] and "–" in Path(told["report"]).read_text()


def test_the_demo_goes_through_the_same_measurements(tmp_path, monkeypatch):
    evaluation = ConceptEvaluation("canvas", figures={"UA": 1.0}, original={"UA": 0.0})
    seen = []

    def fake(settings, folder, what, progress):
        seen.append((settings.recipe, folder, tuple(what.attacks), what.original))
        attacks = {
            name: AttackResult(asr_after=0.25, original=OriginalRates(asr_after=0.75), verdict="x")
            for name in what.attacks
        }
        erasure = EraseResult.from_json({"trimmed": 3, "seconds": 1.5}, strict=False)
        return Measured(erasure, evaluation, attacks)

    monkeypatch.setattr(demonstration, "measure", fake)
    monkeypatch.setattr(demonstration, "write_card", lambda folder: None)
    monkeypatch.setattr(demonstration, "write_report", lambda folder: folder / "report.html")
    told = demonstration.demo(tmp_path, "heart", count=8).to_json()
    assert seen[0] == ("scissorhands-open", tmp_path, ("embedding", "paraphrase"), tmp_path)
    assert seen[1:] == [
        (name, tmp_path / "controls" / name, ("embedding",), tmp_path) for name in demonstration.CONTROLS
    ]
    assert [row["name"] for row in told["rows"]] == ["original", "erased", *demonstration.CONTROLS]
    assert told["rows"][0] == {"name": "original", "figures": {"UA": 0.0}, "trimmed": 0, "seconds": 0.0, "asr": 0.75}
    assert told["rows"][1] == {"name": "erased", "figures": {"UA": 1.0}, "trimmed": 3, "seconds": 1.5, "asr": 0.25}
    assert told["attacks"]["paraphrase"] == {"asr_after": 0.25, "original": 0.75, "verdict": "x"}


# ---------------------------------------------------------------- classifiers

SHARES = {
    "forget_accuracy": 0.1,
    "retain_accuracy": 0.9,
    "test_accuracy": 0.8,
    "mia": 0.6,
    "mia_svc": 0.5,
    "probe": 0.4,
}
COUNTS = dict.fromkeys(SHARES, 50) | {"relearn": 3, "gap": 4}


def forgotten(settings, folder, *, shared, resume, progress):
    """What forgetting comes to, as `forget` tells it."""
    assert resume
    if settings.recipe == "salun":
        try:
            raise FloatingPointError("loss is nan")
        except FloatingPointError as error:
            raise UserError(str(error)) from None
    if settings.recipe == "l-codec" and settings.seed:
        raise UserError("no space left")
    folder.mkdir(parents=True)
    figures = SHARES | {"relearn": 7.0 + settings.seed, "gap": 0.02, "mia": math.nan}
    result = {
        "forget": "126 samples", "trimmed": 5, "seconds": 1.5, "peak_bytes": 3 * 2**20, "figures": figures, "n": COUNTS,
        "original": SHARES | {"gap": 0.3}, "retrained": SHARES | {"forget_accuracy": 0.0, "gap": 0.0},
        "intervals": {name: [value - 0.1, value + 0.1] for name, value in figures.items() if value == value},
        "intervals_beside": {name: {"forget_accuracy": wilson(0, 50)} for name in ("original", "retrained")},
    }  # fmt: skip
    return ForgetResult.from_json(result, strict=False)


@pytest.fixture
def fake(monkeypatch):
    """`forget`, without anything to learn or to forget."""
    monkeypatch.setitem(sys.modules, "sd_scissorhands.forgetting", SimpleNamespace(forget=forgotten))
    monkeypatch.setattr(forgettings, "write_forgetting_report", lambda folder: None)


def digits(**changes: Any) -> Comparison:
    asked: dict[str, Any] = dict(
        settings=ForgetSettings(), targets=({"forget_class": "3"}, {"forget_random": 0.1}),
        recipes=("scissorhands", "retain-only"), seeds=2,
    )  # fmt: skip
    return Comparison(**asked | changes)


def test_one_retrained_model_is_no_measure_of_several_random_tenths():
    tenth, both = {"forget_random": 0.1}, ForgetSettings(retrained="retrained")
    assert digits(settings=both, targets=(tenth,), seeds=1).seeds == 1
    assert digits(settings=both, targets=({"forget_class": "3"},), seeds=2).seeds == 2
    with pytest.raises(UserError, match="each target needs its own"):
        digits(settings=both)
    with pytest.raises(UserError, match="draws other pictures with each seed: name them with --forget-indices"):
        digits(settings=both, targets=(tenth,), seeds=2)


def test_classifiers_have_rows_of_original_and_retrained(fake, tmp_path):
    told = compare(digits(), tmp_path)
    assert [row["recipe"] for row in told["rows"]] == [
        name for name in ("original", "retrain", "scissorhands", "retain-only") for _ in range(4)
    ]
    assert {(row["forget"], row["seed"]) for row in told["rows"]} == {
        (target, seed) for target in ("class 3", "random 10 %") for seed in (0, 1)
    }
    own = told["rows"][8]
    assert own["mia"] is None and own["gap"] == 0.02 and own["peak_bytes"] == 3 * 2**20
    assert own["intervals"]["forget_accuracy"] == [0.0, 0.2] and own["run"] == "class-3/scissorhands-seed0"
    assert told["rows"][4]["intervals"]["forget_accuracy"] == wilson(0, 50) and told["rows"][4]["seconds"] is None
    json.loads((tmp_path / ROWS).read_text(), parse_constant=pytest.fail)
    page = Path(told["report"]).read_text()
    assert "–" in page and "3 MiB" in page and "retrain" in page and "What is retained against retraining" in page
    assert "<h3>Classes</h3>" in page and "<h3>Random shares</h3>" in page and page.count("<svg") == 2
    assert [(line["group"], line["recipe"], line["runs"]) for line in told["table"][3:5]] == [
        ("classes", "retain-only", 2), ("random shares", "original", 2),
    ]  # fmt: skip


def test_pictures_that_several_seeds_saw_count_once(fake, tmp_path):
    rows = compare(digits(targets=({"forget_class": "3"},)), tmp_path)["rows"]
    line = table(rows)[2]
    told = line["figures"]["forget_accuracy"]
    assert line["runs"] == 2 and told["n"] == 50 and told["interval"] == [0.0, 0.2]
    assert line["figures"]["relearn"] == {
        "mean": 7.5, "least": 7.0, "most": 8.0, "runs": 2, "n": 3, "interval": [7.4, 7.6],
    }  # fmt: skip
    assert line["figures"]["mia"] is None and line["figures"]["seconds"]["n"] is None


def test_two_classes_say_more_than_one(fake, tmp_path):
    told = compare(digits(targets=({"forget_class": "3"}, {"forget_class": "4"})), tmp_path)["table"][2]
    one = told["figures"]["forget_accuracy"]
    assert told["runs"] == 4 and one["n"] == 100 and one["interval"] == [round(0.1 - 0.1 / 2**0.5, 4), 0.1707]


def test_pictures_of_every_seed_count_where_they_differ():
    def row(seed: int, hits: int) -> dict[str, Any]:
        name = {"recipe": "esd", "concept": "heart", "seed": seed, "baseline": True}
        return name | {"UA": hits / 40, "n": {"UA": 40}, "intervals": {"UA": wilson(hits, 40)}}

    (line,) = table([row(0, 40), row(1, 37), row(2, 30) | {"failed": "nan", "UA": None}])
    assert line["failed"] == 1 and line["runs"] == 3
    assert line["figures"]["UA"] == {
        "mean": 0.9625, "least": 0.925, "most": 1.0, "runs": 2, "n": 80, "interval": wilson(77, 80),
    }  # fmt: skip


def test_a_recipe_that_diverges_is_a_row_and_any_other_failure_is_not(fake, tmp_path):
    told = compare(digits(recipes=("salun", "retain-only"), seeds=1), tmp_path)
    lost = [row for row in told["rows"] if row["recipe"] == "salun"]
    assert [row["failed"] for row in lost] == ["loss is nan"] * 2 and lost[0]["forget_accuracy"] is None
    assert [row["recipe"] for row in told["rows"]][:4] == ["original"] * 2 + ["retrain"] * 2
    assert "loss is nan" in Path(told["report"]).read_text() and told["table"][2]["failed"] == 1
    with pytest.raises(UserError, match="l-codec on class 3, seed 1: no space left"):
        compare(digits(recipes=("l-codec",)), tmp_path / "other")
    assert (tmp_path / "other" / "class-3" / "l-codec-seed0" / "row.json").exists()


def test_a_list_of_pictures_is_known_by_what_it_says(fake, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("1\n2\n")
    asked = digits(targets=({"forget_indices": str(file)},), seeds=1)
    told = compare(asked, tmp_path / "out")
    assert told["rows"][0]["forget"] == "rows" and told["rows"][0]["forgotten"] == "126 samples"
    file.write_text("1\n3\n")
    with pytest.raises(UserError, match="other settings"):
        compare(asked, tmp_path / "out")


def test_digits_forget_a_class(tmp_path):
    """The real thing, short."""
    pytest.importorskip("sd_scissorhands.forgetting")
    told = compare(digits(settings=ForgetSettings(steps=20), targets=({"forget_class": "3"},), seeds=1), tmp_path)
    assert [row["recipe"] for row in told["rows"]] == ["original", "retrain", "scissorhands", "retain-only"]
    original, retrain, *own = told["rows"]
    assert original["forget_accuracy"] > 0.9 and retrain["forget_accuracy"] < 0.1 and retrain["gap"] == 0
    for row in own:
        for name in ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia", "probe", "gap"):
            low, high = row["intervals"][name]
            assert low <= row[name] <= high and row["n"][name] > 0
        assert row["seconds"] > 0
    assert (
        compare(digits(settings=ForgetSettings(steps=20), targets=({"forget_class": "3"},), seeds=1), tmp_path)["rows"]
        == told["rows"]
    )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("arguments", "says"), [
    ([], "choose one of --concept"),
    (["--concept", "heart", "--forget-class", "3"], "choose one of --concept"),
    (["--concept", "heart", "--recipes", "bogus"], "'bogus' is unknown"),
    (["--concept", "heart", "--recipes", " , "], "names none"),
    (["--forget-class", "3", "--recipes", "esd"], "esd is not for this kind of model"),
    (["--concept", "heart", "--seeds", "0"], "it must be at least 1"),
    (["--concept", "heart", "--limit", "0"], "it must be at least 1"),
    (["--concept", "heart", "--attack", "magic"], "'magic' is unknown"),
    (["--concept", "heart", "--attack", "none", "--restarts", "2"], "has no effect"),
    (["--concept", "heart", "--data", "x"], "has no effect"),
    (["--forget-class", "3", "--limit", "9"], "has no effect"),
    (["--forget-random", "1.5"], "outside (0, 1)"),
    (["--concept", "heart", "--guidance", "nan"], "--guidance nan is no finite number"),
    (["--concept", "heart", "--threshold", "2"], "--threshold 2.0 is outside [0, 1]"),
])  # fmt: skip
def test_bad_usage_is_one_clear_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sdscissor", "compare", *arguments, "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and says in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "says"), [
    (["--concept", "unicorn"], "not of the embedded model's world"),
    (["--concept", "heart", "--model", "./nowhere"], "does not exist"),
    (["--forget-class", "zebra"], "no class 'zebra'"),
    (["--forget-indices", "missing.txt"], "cannot be read"),
    (["--concept", "heart", "--config", "own.toml"], "leave out 'seed'"),
    (["--concept", "heart", "--judge", "nudenet"], "no label"),
])  # fmt: skip
def test_bad_input_is_said_before_any_work(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("seed = 3\n")
    done = runner.invoke(app, ["compare", *arguments, "--output-dir", "out"])
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert not Path("out").exists()


def test_a_comparison_may_not_lie_in_something_else(whole, tmp_path):
    run = Path(whole["output_dir"]) / whole["rows"][1]["run"]
    with pytest.raises(UserError, match="holds a run or a measurement"):
        compare(hearts(), run)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        compare(hearts(), tmp_path / "file")
    (tmp_path / "heart" / f"{PAIR[0]}-seed0").mkdir(parents=True)
    (tmp_path / "heart" / f"{PAIR[0]}-seed0" / "row.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        compare(hearts(), tmp_path)


def test_recipes_default_to_all_that_fit():
    jobs = erasures.Erasures(hearts(recipes=())).jobs(Path("out"))
    assert tuple(job.settings.recipe for job in jobs) == recipes_for("small")
    jobs = forgettings.Forgettings(digits(recipes=(), seeds=1)).jobs(Path("out"))
    assert tuple(job.settings.recipe for job in jobs) == 2 * recipes_for("classifier")
    with pytest.raises(UserError, match="not for this kind of model"):
        forgettings.Forgettings(digits(recipes=("esd",))).jobs(Path("out"))
    for changes in ({"seeds": 0}, {"targets": ()}, {"recipes": ("bogus",)}, {"measures": Measures(attack="list")}):
        with pytest.raises(UserError):
            hearts(**changes)
