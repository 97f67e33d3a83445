"""What `sdscissor erase` does around the erasure: pictures before and after, --then, --rehearse and --log-with."""

from __future__ import annotations

import dataclasses
import json
import shutil

import accelerate.tracking
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sd_scissorhands import api, pairs, rehearsal, tracking
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.cli import app, chain
from sd_scissorhands.cli.options import GateMissed, NotConverged
from sd_scissorhands.disk import write_json
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UsageError, UserError
from sd_scissorhands.evaluation import evaluate
from sd_scissorhands.evaluation.records import Ledger
from sd_scissorhands.report import write_report
from sd_scissorhands.results.attack import AttackResult
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.results.pairs import Pairs
from sd_scissorhands.results.proof import Proof
from sd_scissorhands.run import silent
from sd_scissorhands.then import Part, parts_of

EVAL, ATTACK, SUITE = Part("eval"), Part("attack", "attack", "embedding"), Part("attack", "suite", "quick")


@pytest.fixture(scope="module")
def run(short, tmp_path_factory):
    """A run and what it came to."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    return folder, erase(short, folder)


@pytest.fixture
def copy(run, tmp_path):
    """The same, to be written into."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    return folder, dataclasses.replace(run[1], run_dir=str(folder), model_dir=str(folder / "model"))


# ---------------------------------------------------------------- pictures before and after


def test_pairs_are_drawn_once_are_on_the_page_and_change_nothing(copy, short, monkeypatch):
    folder, erased = copy
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert "Before and after" not in write_report(folder).read_text()
    assert pairs.draw_pairs(erased, short, silent) is None
    assert all(file.read_bytes() == content for file, content in before.items())
    found = Pairs.of(folder, erased.weights_sha256)
    assert [pair.seed for pair in found.pairs] == [0, 1, 2, 3] and not found.blurred
    assert ["heart" in pair.prompt for pair in found.pairs] == [True, True, False, False]
    original, model = (
        [Image.open(folder / "pairs" / getattr(pair, side)) for pair in found.pairs] for side in ("original", "model")
    )
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(original, model, strict=True))
    page = write_report(folder).read_text()
    assert "Before and after, on the same seeds" in page and f"seed 3: {found.pairs[3].prompt}" in page
    monkeypatch.setattr(pairs, "pictures", None)  # nothing is drawn again
    assert pairs.draw_pairs(erased, short, silent) is None
    assert Pairs.of(folder, "of other weights") is None


def test_explicit_pairs_are_blurred_before_they_are_written(copy, short, monkeypatch):
    folder, erased = copy
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    monkeypatch.setattr(pairs, "pictures", lambda *_, **__: [noise] * 4)
    pairs.draw_pairs(dataclasses.replace(erased, explicit=None), short, silent)
    assert Pairs.of(folder, erased.weights_sha256).blurred
    assert all(np.asarray(Image.open(file)).std() < 10 for file in (folder / "pairs").glob("*.png"))
    assert "Pictures that may be explicit are blurred" in write_report(folder, blur=False).read_text()


def test_a_large_model_on_a_cpu_draws_none_and_says_so(copy, short, monkeypatch):
    folder, erased = copy
    monkeypatch.setattr(pairs, "profile_of_model", lambda model: "large")
    monkeypatch.setattr(pairs, "pictures", None)
    undone = pairs.draw_pairs(erased, short, silent)
    assert (
        "a CPU minutes" in undone and f"sdscissor draw {folder} --prompt" in undone and not (folder / "pairs").exists()
    )


# ---------------------------------------------------------------- --then


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("eval,attack", (EVAL, ATTACK)), ("suite", (SUITE,)), ("attack:suite=quick , eval", (SUITE, EVAL)),
        ("attack:relearn,attack", (Part("attack", "attack", "relearn"), ATTACK)),
    ],
)  # fmt: skip
def test_then_names_parts(text, parts):
    assert parts_of(text) == parts


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("evil", "choose eval"), ("eval,eval", "twice"), ("attack:relern", "did you mean 'relearn'"), ("attack:suite=fast", "full"), ("attack:list", "sdscissor attack"),
        ("eval,", "unknown"), ("suite:x", "unknown"),
    ],
)  # fmt: skip
def test_other_parts_are_refused(text, why):
    with pytest.raises(UsageError, match=why):
        parts_of(text)


def test_gates_go_to_the_parts_that_have_the_figure():
    gates = chain.gates_after((EVAL, ATTACK), ["asr_after=.1", "IRA=1"], ["UA=.9"])
    assert [(part, [gate[0] for gate in own]) for part, own in gates] == [
        (EVAL, ["IRA", "UA"]),
        (ATTACK, ["asr_after", "IRA"]),
    ]
    with pytest.raises(UsageError, match="--then"):
        chain.gates_after((), ["UA=.9"], None)


def command(*more):
    return CliRunner().invoke(
        app, ["erase", "--concept", "heart", "--model", "tiny", "--json", "--quiet", "--no-verify", *more]
    )


def test_then_measures_in_one_go_and_a_repetition_reads(copy, monkeypatch):
    folder, erased = copy
    monkeypatch.setattr(api, "erase", lambda *_, **__: dataclasses.replace(erased, folder=folder))
    monkeypatch.setattr(evaluate, "PICTURES_EACH", 2)
    attacked, real = [], api.attack

    def short_attack(settings, *more, **how):
        attacked.append(settings)
        few = dict(count=2, sampling_steps=2, learn_from=2, steps=2, restarts=1, batch_size=2)
        return real(AttackSettings("embedding", settings.concept, settings.model, **few), *more, **how)

    monkeypatch.setattr(api, "attack", short_attack)
    found = command("--then", "eval,attack", "--fail-above", "IRA=0")
    values = json.loads(found.stdout)
    assert isinstance(found.exception, GateMissed) and "IRA is" in str(found.exception)
    assert values["concepts"] == ["heart"] and [one["kind"] for one in values["then"]] == ["canvas", "attack"]
    assert values["then"][0]["command"] == ["sdscissor", "eval", "--model", str(folder), "--concept", "heart"]
    assert values["then"][0]["UA"] is not None and "samples" not in values["then"][0]
    monkeypatch.setattr(api, "evaluate", None)  # nothing is made again
    again = command("--then", "eval,attack")
    assert again.exit_code == 0 and len(attacked) == 1
    assert [one["weights_sha256"] for one in json.loads(again.stdout)["then"]] == [erased.weights_sha256] * 2


def test_then_leaves_another_evaluation_as_it_is_and_makes_its_own(copy, monkeypatch):
    folder, erased = copy
    monkeypatch.setattr(api, "erase", lambda *_, **__: dataclasses.replace(erased, folder=folder))
    Ledger(folder / "eval" / "canvas" / "model.jsonl", {"steps": 4})

    def measure(settings, place, *, command, progress):
        Ledger(place / "model.jsonl", {"steps": 20})
        result = ConceptEvaluation(kind="canvas", weights_sha256=erased.weights_sha256, command=tuple(command))
        write_json(place / "summary.json", result.to_json())
        return result

    monkeypatch.setattr(api, "evaluate", measure)
    files = [folder / "eval" / name / "model.jsonl" for name in ("canvas", "canvas-then")]
    (one,) = json.loads(command("--then", "eval").stdout)["then"]
    assert [json.loads(file.read_text())["steps"] for file in files] == [4, 20]
    assert one["command"][-2:] == ["--output-dir", str(files[1].parent)]
    assert "canvas holds another measurement" in one["remarks"][0] and "canvas-then" in one["remarks"][0]
    monkeypatch.setattr(api, "evaluate", None)  # it is not made again
    assert command("--then", "eval").exit_code == 0


def test_nothing_follows_an_erasure_that_saved_no_model(monkeypatch):
    def fail(*_, **__):
        raise UserError("holds no model")

    monkeypatch.setattr(api, "erase", fail)
    monkeypatch.setattr(api, "evaluate", None)
    found = command("--then", "eval")
    assert isinstance(found.exception, UserError) and not found.stdout


PROOF = Proof(
    converged=False, gone=False, whole=True, sentence="not gone", remedy="more", pictures=1, original=1, shown=1, changed=0, explained=1
)  # fmt: skip


def test_the_worst_exit_code_counts(run, monkeypatch, capsys):
    unproven = dataclasses.replace(run[1], converged=False, proof=PROOF)
    monkeypatch.setattr("sd_scissorhands.then.run_part", lambda part, *_: iter([MEASURED[part.command]]))
    how = dict(settings=None, repo=None, progress=silent, as_json=True)
    gates = chain.gates_after((EVAL, ATTACK), ["asr_after=.1"], None)
    with pytest.raises(GateMissed, match=r"asr_after is 0.5, above 0.1; .* not converged: not gone; more"):
        chain.finish(unproven, gates, **how)
    with pytest.raises(NotConverged, match="not converged: not gone; more"):
        chain.finish(unproven, chain.gates_after((EVAL, ATTACK), ["asr_after=.9"], None), **how)
    chain.finish(run[1], [], **how)
    *both, alone = map(json.loads, capsys.readouterr().out.splitlines())
    assert "then" not in alone and all(len(one["then"]) == 2 for one in both)


MEASURED = {
    "eval": ConceptEvaluation(kind="canvas"),
    "attack": AttackResult(attack="embedding", asr_after=0.5, n=10, original=dataclasses.replace(AttackResult().original, asr_after=1.0)),
}  # fmt: skip


# ---------------------------------------------------------------- --rehearse


def test_a_rehearsal_runs_the_chain_and_leaves_nothing(short, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "forecast", lambda settings: FORECAST)
    made = []
    monkeypatch.setattr(pairs, "draw_pairs", lambda erased, *_: made.append(erased.run_dir))
    found = rehearsal.rehearse(dataclasses.replace(short, verify=True), tmp_path / "runs" / "heart", progress=silent)
    assert list(found.rehearsed) == list(found.seconds) == ["erase", "eval", "attack"] and found.judges[0] == "canvas"
    assert found.seconds["erase"] == 10 and found.seconds["eval"] > found.seconds["attack"] > 100
    assert ".rehearsal-" in made[0] and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        rehearsal.rehearse(short, tmp_path / "file" / "run", progress=silent)


FORECAST = rehearsal.Forecast(
    concepts=("heart",), anchors=("circle",), explicit=False, model="tiny", weights_sha256="0", ema="no", scope="full", scope_size=1,
    tensors=1, trimmed=0, memory_bytes=1, peak_bytes={}, seconds={"data": 4, "repair": 6}, picture_seconds=0.5, pass_seconds=0.0125,
    profile="small", evaluations={}, learned=False, settings={},
)  # fmt: skip


def test_a_rehearsal_is_no_dry_run():
    assert "leave out one" in str(command("--rehearse", "--dry-run").exception)


# ---------------------------------------------------------------- --log-with


class Tracker:
    """Stands for accelerate's."""

    def __init__(self, run_name, logging_dir, **how):
        self.scalars, self.images, self.place, self.how, self.ended = [], {}, (logging_dir, run_name), how, False
        Tracker.last = self

    def start(self):
        pass

    def log(self, values, step):
        self.scalars += [(name, value, step) for name, value in values.items()]

    def log_images(self, values, step, dataformats):
        self.images |= {name: (frames.shape, step, dataformats) for name, frames in values.items()}

    def finish(self):
        self.ended = True


def test_a_run_is_recorded(copy, short, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):  # accelerate leaves some behind
        monkeypatch.delenv(name, raising=False)
    folder, erased = copy
    monkeypatch.setattr(accelerate.tracking, "TensorBoardTracker", Tracker)
    monkeypatch.setattr(pairs, "pictures", lambda *_, **__: [np.zeros((32, 32, 3), np.uint8)] * 4)
    pairs.draw_pairs(erased, short, silent)
    tracking.RunLog(folder).finish(dataclasses.replace(erased, proof=PROOF))
    made = Tracker.last
    assert made.place == (folder, "logs") and made.how == {"purge_step": 0} and made.ended
    forget = [(value, step) for name, value, step in made.scalars if name == "repair/forget"]
    history = json.loads((folder / "repair" / "history.json").read_text())
    assert forget == [(one["forget"], one["step"]) for one in history]
    names = {name for name, _, _ in made.scalars}
    assert {"repair/retain", "seconds/data", "proof/shown"} <= names and not any("step" in name for name in names)
    assert made.images == {f"pairs/{side}": ((4, 32, 32, 3), 4, "NHWC") for side in ("original", "model")}


def test_a_repair_is_recorded_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "TensorBoardTracker", Tracker)
    log, steps = tracking.RunLog(tmp_path), [{"step": n, "forget": float(n)} for n in range(5)]
    looks = [{"step": 2, "left": {"name": 0.5}, "lr": 0.1, "did": ""}]
    log.follow(steps[:2], [])
    log.follow(steps[:4], looks)
    log.follow(steps[:1], looks)  # begun again
    assert [step for name, _, step in Tracker.last.scalars if name == "repair/forget"] == [0, 1, 2, 3, 0]
    assert [one for one in Tracker.last.scalars if "held" in one[0]] == [
        ("held out/left name", 0.5, 2),
        ("held out/lr", 0.1, 2),
    ]


def test_a_tracker_that_is_not_there_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert str(command("--log-with", "tensorboard").exception).endswith("pip install tensorboard")
    assert "choose tensorboard" in str(command("--log-with", "wandb").exception)
