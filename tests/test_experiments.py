"""The experiments go through the package's public interface alone, and their tables are made of what it writes."""

from __future__ import annotations

import ast
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sd_scissorhands

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import calibration  # noqa: E402
import columns  # noqa: E402
import default  # noqa: E402
import fashion  # noqa: E402
import methods  # noqa: E402
import plots  # noqa: E402
import runner  # noqa: E402
import tables  # noqa: E402


def test_the_experiments_import_nothing_from_inside_the_package():
    for file in EXPERIMENTS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("sd_scissorhands.")], file
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sd_scissorhands"):
                assert node.module == "sd_scissorhands" and {alias.name for alias in node.names} <= set(
                    sd_scissorhands.__all__
                )


def test_every_table_has_its_marks_in_the_document():
    text = runner.DOCUMENT.read_text()
    for name in (*default.TABLES, *methods.TABLES, *fashion.TABLES, "models"):
        assert f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text, name
    text = calibration.DOCUMENT.read_text()
    assert all(f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text for name in calibration.TABLES)


def test_every_setting_of_a_run_is_known():
    tables = (*default.TABLES.values(), *methods.TABLES.values(), *calibration.TABLES.values())
    declared = [table for table in tables if isinstance(table, runner.Table)]
    for run in [run for table in declared for one in table.runs for run in (one, one.reduced())]:
        sd_scissorhands.EraseSettings(concepts=run.concepts, model="tiny", **run.settings)
        for settings in run.measures.values():
            if "suite" in settings:
                sd_scissorhands.Suite.of(settings["suite"], run.concepts[0], "tiny")
                continue
            attacked = "attack" in settings
            kind = sd_scissorhands.AttackSettings if attacked else sd_scissorhands.EvaluateSettings
            kind(concept=run.concepts[0], model="tiny", **settings)


@pytest.mark.parametrize("script", [default, methods, calibration])
def test_runs_that_share_a_folder_agree_on_what_is_erased_and_measured_there(script):
    erased: dict[Path, runner.Settings] = {}
    found: dict[tuple[Path, str], runner.Settings] = {}
    for table in script.TABLES.values():
        for run in table.runs if isinstance(table, runner.Table) else ():
            assert erased.setdefault(run.folder(Path()), run.settings) == run.settings
            for name, settings in run.measures.items():
                assert found.setdefault((run.folder(Path()), name), settings) == settings


# ---------------------------------------------------------------- tables


def attacked(*rates: float, back: int | None = 5) -> dict:
    restarts = [{"asr_after": rate} for rate in rates]
    steps = {"concept": back, "benign": None, "most": 160}
    return {
        "n": 48,
        "baseline_sha256": "abc",
        "restarts": restarts,
        "original": {"asr_after": 1.0},
        "steps_back": steps,
    }


def row(concept: str, seed: int, ua: float, **more) -> columns.Row:
    judged = {"n": {"UA": 10}, "baseline_sha256": "abc", "figures": {"UA": ua}, "original": {"UA": 0.0}}
    return {"concept": concept, "seed": seed, "variant": "a", "seconds": 50.0, "canvas": judged, **more}


def test_cells_are_means_over_what_was_measured():
    rows = [
        row("heart", 0, 1.0, embedding=attacked(0.0, 0.5)),
        row("heart", 1, 0.5),
        row("ring", 0, 0.0, embedding=attacked(1, back=None)),
    ]
    assert columns.share("canvas", "UA")(rows) == "0.500"
    assert columns.beside("canvas", "UA")(rows[:1]) == "1.000 / 0.000"
    assert columns.success("embedding")(rows) == "0.50 (1.00) / 1.00"
    assert columns.success("embedding")(rows[1:2]) == ""
    assert columns.steps_back("embedding")(rows) == "5, never within 160"
    assert columns.steps_back("embedding", "benign")(rows[:1]) == "never within 160"
    assert columns.steps_back("embedding")([row("x", 0, 1, embedding=attacked(0, back=n)) for n in (7, 2)]) == "2 to 7"
    assert columns.only(columns.share("canvas", "UA"), concept="ring")(rows) == "0.000"
    assert columns.seconds(rows) == "50"
    assert columns.mean([1.0, None, 2.0], 1, spread=True) == "1.5 (1.0 to 2.0)" and columns.mean([None]) == ""


def test_a_table_has_a_line_for_every_group_and_stands_between_its_marks(tmp_path):
    rows = [row("heart", 0, 1.0), row("green", 0, 0.5), row("heart", 1, 0.5)]
    table = runner.Table((), ("concept",), {"UA": columns.share("canvas", "UA")}, mean=True, bold=("green",))
    text = runner.text_of(table, rows)
    assert text.splitlines()[2:5] == ["| heart | 0.750 |", "| **green** | 0.500 |", "| mean | 0.667 |"]
    assert "Seeds 0, 1. Pictures per run: canvas: 10 for UA." in text and "Embedded model abc." in text
    document = tmp_path / "page.md"
    document.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb\n")
    tables.publish("t", text, document)
    assert document.read_text() == f"a\n<!-- t -->\n\n{text}\n\n<!-- /t -->\nb\n"
    with pytest.raises(ValueError, match="no marks <!-- u -->"):
        tables.publish("u", text, document)


# ---------------------------------------------------------------- Fashion-MNIST


def as_published(folder: Path, count: int) -> None:
    """The four files of Fashion-MNIST's layout, picture n all n, its label n modulo 10."""
    for part in ("train", "t10k"):
        pictures = b"".join(bytes([number % 256]) * 784 for number in range(count))
        labels = bytes(number % 10 for number in range(count))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pictures))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))


def test_fashion_is_read_as_it_is_published_and_a_tenth_of_it_is_the_seed_s(tmp_path):
    as_published(tmp_path, 700)
    options = runner.Options(tmp_path / "runs", None, None, smoke=True)
    shelf = fashion.Shelf(options, tmp_path, pictures=600, epochs=1)
    with np.load(fashion.written(shelf)) as data:
        assert data["pictures"].shape == (600, 28, 28) and data["pictures"][37].tolist() == [[37] * 28] * 28
        assert data["labels"][:12].tolist() == [*range(10), 0, 1] and tuple(data["names"]) == fashion.CLASSES
        assert data["val_labels"].shape == data["test_labels"].shape == (200,)
        dresses, one, other = (
            fashion.forgotten(*way)
            for way in (("class", data["labels"], 0), ("random", data["labels"], 0), ("random", data["labels"], 1))
        )
    assert dresses.nonzero()[0][:3].tolist() == [3, 13, 23] and one.sum() == other.sum() == 60 and (one != other).any()
    flag, file = fashion.target(shelf, "random", 0)
    assert flag == "--forget-indices" and [int(row) for row in file.read_text().split()] == one.nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "nowhere"], "--data nowhere has no train-images-idx3-ubyte.gz: install Debian's"),
        (["--data", "nowhere", "digits"], "digits is no table: choose fashion-class, fashion-random"),
    ],
    ids=str,
)
def test_what_fashion_lacks_is_named_in_one_line(words, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fashion.py", *words])
    with pytest.raises(SystemExit):
        fashion.main()
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_table_comes_out_of_erasure_evaluation_and_attack(tmp_path):
    words = ["stages", "--smoke", "--concepts", "heart", "--seeds", "1", "--root", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "default.py", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| scissorhands-open \| \d\.\d{3} \|", done.stdout, re.M)


def test_the_plot_of_recipes_pools_pictures_and_is_the_same_twice(tmp_path):
    def row(recipe: str, concept: str, again: float, n: int) -> dict[str, object]:
        shares, counts = dict.fromkeys(plots.KEPT, 0.75), dict.fromkeys(plots.KEPT, 4)
        kept = {"figures": shares, "original": shares, "another_seed": dict.fromkeys(plots.KEPT, 0.25), "n": counts}
        attack = {"asr_after": again, "n": n, "original": {"asr_after": 1.0}}
        return {"variant": recipe, "concept": concept, "seed": 0, plots.EVALUATION: kept, "words": attack}

    rows = [row("esd", "heart", 0.5, 10), row("esd", "blue", 0.0, 30), row("salun", "heart", 1.0, 10)]
    assert plots.attacked(rows, "words") == {"esd": (0.125, 40), "salun": (1.0, 10), "original": (1.0, 40)}
    assert plots.kept(rows, "IRA")["original"] == (0.75, 8) and plots.kept(rows, "open_unchanged")["original"] == (
        0.25,
        8,
    )
    assert [round(end, 4) for end in plots.interval(0.0, 48)] == [0.0, 0.0741]
    for name in ("a.svg", "b.svg"):
        plots.plot({"": rows}, ["words"], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "salun" in (tmp_path / "a.svg").read_text() and "another seed" in (tmp_path / "a.svg").read_text()
    attacked = [{name: value for name, value in row.items() if name != plots.EVALUATION} for row in rows]
    plots.plot({"shapes": attacked[::2], "colours": attacked[1:2]}, ["words"], tmp_path / "c.svg")
    assert "colours" in (tmp_path / "c.svg").read_text() and "another seed" not in (tmp_path / "c.svg").read_text()
