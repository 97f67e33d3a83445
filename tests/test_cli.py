"""The command line as scripts see it: stdout, exit codes, one clear line for bad input, nothing destroyed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.cli import app, main
from sd_scissorhands.comparison.compare_settings import CompareSettings
from sd_scissorhands.comparison.jobs import folder_name
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.parsing import parse_json, parse_toml
from sd_scissorhands.places import erasure_directory, file_name
from sd_scissorhands.results.manifest import Manifest
from sd_scissorhands.settings import EraseSettings, ForgetSettings, load_settings
from sd_scissorhands.tiny import MODEL_DIR

runner = CliRunner()
SHORT = """
recipe = "scissorhands-anchored"
model = "tiny"
forget_count = 4
retain_count = 8
sampling-steps = 2
score_draws = 1
steps = 2
batch_size = 2
memory_every = 2
verify = false
device = "cpu"
"""


def apart(*arguments: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a user's script runs it."""
    return subprocess.run([sys.executable, "-m", "sd_scissorhands", *arguments], capture_output=True, text=True)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "short.toml"
    file.write_text(SHORT)
    return file


def test_erase_eval_report_end_to_end(config, tmp_path, sdscissor):
    run = tmp_path / "run"
    done = sdscissor(
        "erase", "--concept", "heart", "--config", str(config), "--output-dir", str(run), "--seed", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["run_dir"] == str(run) and told["model_dir"] == str(run / "model") and told["seed"] == 3
    assert (
        told["concepts"] == ["heart"]
        and told["trimmed"] > 0
        and told["scope_size"] > told["trimmed"]
        and told["seconds"] > 0
    )
    assert 0 <= told["conflict_rate"] <= 1
    assert (
        "base_model" in (run / "model" / "README.md").read_text() or "tiny" in (run / "model" / "README.md").read_text()
    )
    ask = ("eval", "--model", str(run / "model"), "--canvas", "--concept", "heart", "--limit", "8", "--json")
    ask = (*ask, "--steps", "10")
    done = runner.invoke(app, ask)
    assert done.exit_code == 0, done.output
    judged = json.loads(done.stdout)
    assert {"UA", "UA_synonyms", "IRA", "CRA", "CRA_forget", "n", "original"} <= set(judged)
    assert judged["weights_sha256"] == told["weights_sha256"] and judged["n"]["UA"] == 8
    assert "UA" in (run / "report.html").read_text()
    missed = sdscissor(*ask, "--fail-below", "IRA=1.01")
    assert missed.returncode == 3 and "error: IRA is" in missed.stderr and json.loads(missed.stdout)["n"] == judged["n"]
    attacked = runner.invoke(app, [
        "attack", "--model", str(run / "model"), "--concept", "heart", "--attack", "paraphrase", "--limit", "6",
        "--sampling-steps", "10", "--json", "--fail-above", "asr_after=1",
    ])  # fmt: skip
    assert attacked.exit_code == 0, attacked.output
    told = json.loads(attacked.stdout)
    assert {"attack", "concept", "n", "asr_before", "asr_after", "IRA", "CRA", "seed", "seconds"} <= set(told)
    assert told["attack"] == "paraphrase" and "asr_after" in told["original"] and told["IRA"] == judged["IRA"]
    assert (run / "attack" / "paraphrase" / "summary.json").exists()
    assert "paraphrase" in (run / "report.html").read_text()
    rebuilt = runner.invoke(app, ["report", str(run), "--json"])
    assert json.loads(rebuilt.stdout)["report"] == str(run / "report.html")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """The embedded model with the UNet's weights shuffled, tensor by tensor: it draws nothing that has a name."""
    folder = tmp_path_factory.mktemp("shuffled") / "model"
    shutil.copytree(MODEL_DIR, folder)
    file, chance = folder / "unet" / "diffusion_pytorch_model.safetensors", torch.Generator().manual_seed(0)
    weights = {
        name: one.flatten()[torch.randperm(one.numel(), generator=chance)].view_as(one)
        for name, one in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("words", "missed"),
    [
        (["eval", "--steps", "1", "--fail-below", "UA=.9", "--fail-above", "collapsed=0"], "UA"),
        (["attack", "--attack", "paraphrase", "--sampling-steps", "1", "--fail-above", "asr_after=.1"], "asr_after"),
    ],
)
def test_of_random_weights_nothing_is_gone_and_no_gate_passes(shuffled, tmp_path, sdscissor, words, missed):
    """Every picture is free of hearts, with the original's weights too."""
    both = ["--model", str(shuffled), "--baseline", str(shuffled), "--concept", "heart", "--limit", "8"]
    done = sdscissor(*words, *both, "--output-dir", str(tmp_path / "out"))
    reason = "nothing to erase: the original shows it in 0 of 8"
    assert done.returncode == 3 and f"verdict  {reason}" in done.stderr
    assert done.stderr.splitlines()[-1] == f"sdscissor: error: {missed} proves nothing ({reason})"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["nothing_to_erase"] is True and summary["verdict"] == reason
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'<p class="word">N{reason[1:]}</p>' in page and '<p class="word">Gone' not in page


def test_a_text_concept_is_judged_by_clip(foreign, clip_dir, tmp_path):
    """Any text on any model: zero-shot CLIP, its features for the distances, a folder of real pictures beside them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(tmp_path / f"real{n}.png")
    done = runner.invoke(app, [
        "eval", "--model", str(foreign), "--baseline", str(foreign), "--concept", "a red fox", "--anchor", "a grey cat",
        "--clip", str(clip_dir), "--reference", str(tmp_path), "--limit", "6", "--steps", "1", "--device", "cpu",
        "--output-dir", str(tmp_path / "out"), "--json", "--fail-above", "collapsed=1",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["kind"] == "concept" and told["judge"]["judge"] == "clip" and told["judge"]["threshold"] == 0.5
    assert (
        told["UA"] == told["original"]["UA"] and told["CRA"] is not None and told["IRA"] is None
    )  # free text has no neighbours
    assert told["kept"]["features"] == f"CLIP {clip_dir}" and told["kept"]["clip_score"]["model"] > 0
    assert told["kept"]["reference"]["n"] == 3 and told["kept"]["reference"]["frechet"]["model"] > 0
    assert "a red fox" in (tmp_path / "out" / "report.html").read_text()


def test_an_explicit_concept_has_two_judges(foreign, clip_dir, tmp_path):
    done = runner.invoke(app, [
        "eval", "--model", str(foreign), "--baseline", str(foreign), "--concept", "nudity", "--clip", str(clip_dir),
        "--limit", "4", "--steps", "1", "--device", "cpu", "--output-dir", str(tmp_path / "out"), "--json",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["judge"]["judge"] == "nudenet" and told["second"]["judge"]["judge"] == "clip"
    assert told["UA"] == 1.0 and told["n"]["UA_synonyms"] == 2 and told["second"]["figures"]["IRA"] is not None


def test_i2p_with_a_clip_score(foreign, clip_dir, tmp_path):
    (tmp_path / "x.csv").write_text("prompt,sd_seed,categories,nudity_percentage\na,1,sexual,60\nb,2,hate,0\n")
    done = runner.invoke(app, [
        "eval", "--model", str(foreign), "--i2p-file", str(tmp_path / "x.csv"), "--categories", "sexual", "--steps", "1",
        "--clip", str(clip_dir), "--output-dir", str(tmp_path / "out"), "--json", "--device", "cpu",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["images"] == 1 and told["clip_score"]["clip"] == str(clip_dir) and told["protocol"] == "published"
    assert told["subset"]["categories"] == ["sexual"] and told["exposed"]["core"]["boxes"] == 0
    assert told["command"][:2] == ["sdscissor", "eval"] or told["command"]


def test_dry_run_writes_nothing(config, tmp_path):
    done = runner.invoke(
        app,
        [
            "erase",
            "--concept",
            "heart",
            "--config",
            str(config),
            "--output-dir",
            str(tmp_path / "r"),
            "--dry-run",
            "--json",
        ],
    )
    assert done.exit_code == 0 and not (tmp_path / "r").exists()
    assert {"trimmed", "memory_bytes", "seconds", "scope_size"} <= set(json.loads(done.stdout))


def test_concepts_are_listed():
    told = json.loads(runner.invoke(app, ["concepts", "--json"]).stdout)
    assert {"nudity", "violence", "van-gogh"} <= {c["name"] for c in told["presets"]} and "heart" in told["tiny"][
        "shape"
    ]
    assert "nudity" in runner.invoke(app, ["concepts"]).stdout


# ---------------------------------------------------------------- bad input


def refused(*arguments: str) -> str:
    """The error of a command that must fail with one line."""
    done = runner.invoke(app, list(arguments))
    assert done.exit_code != 0
    assert isinstance(done.exception, UserError | SystemExit), done.exception
    return str(done.exception) if isinstance(done.exception, UserError) else done.output


def test_errors_are_one_line_on_stderr_and_exit_1():
    done = apart("erase", "--concept", "heart", "--model", "/no/such/model", "--json")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().count("\n") == 0 and "/no/such/model does not exist" in done.stderr


@pytest.mark.parametrize("arguments", [
    ["erase", "--no-such-flag"],
    ["eval", "--model", "tiny"],
    ["eval", "--canvas", "--concept", "heart"],
    ["eval", "--model", "tiny", "--canvas", "--i2p"],
    ["eval", "--images", "x", "--fail-above", "nudity"],
    ["eval", "--images", "x", "--fail-above", "nudty=0"],
    ["eval", "--images", "x", "--threshold", "7"],
    ["eval", "--images", "x", "--limit", "0"],
    ["eval", "--images", "x", "--protocol", "published"],
    ["eval", "--model", "tiny", "--i2p", "--protocol", "mine"],
    ["eval", "--model", "tiny", "--i2p", "--guidance", "3"],
    ["eval", "--model", "tiny", "--i2p", "--judge", "clip"],
    ["eval", "--model", "tiny", "--concept", "heart", "--rows", "x"],
    ["eval", "--model", "tiny", "--concept", "heart", "--judge", "me"],
    ["attack", "--model", "tiny", "--concept", "heart", "--fail-above", "x=1"],
])  # fmt: skip
def test_usage_errors_exit_2(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sdscissor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize("k", ["0", "1", "-0.5", "2"])
def test_k_outside_its_range(k):
    assert "outside (0, 1)" in refused("erase", "--model", "tiny", "--concept", "heart", "--top-k", k)


def test_a_run_that_is_not_there_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("heart", "star"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    said = refused("erase", "--concept", "heart", "--model", "runs/hart")
    assert "runs/hart does not exist, runs has other runs, did you mean 'heart'? Choose heart, star" in said
    assert "runs/hart does not exist" in refused("draw", "runs/hart", "--prompt", "a heart")


def test_models_that_cannot_be_used(foreign, tmp_path):
    def erase(model):
        return refused("erase", "--model", str(model), "--concept", "nudity", "--output-dir", str(tmp_path / "out"))

    assert "does not exist" in erase("./nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no model_index.json" in erase(tmp_path / "empty")
    index = '{"_class_name": "FluxFillPipeline"}'
    (tmp_path / "empty" / "model_index.json").write_text(index)
    assert "is a FluxFillPipeline: supported is StableDiffusionPipeline" in erase(tmp_path / "empty")
    (tmp_path / "file.ckpt").write_text("x")
    assert "is a file that does not end with .safetensors" in erase(tmp_path / "file.ckpt")
    assert "cannot be had from the hub" in erase("nobody/no-such-model-here")

    cut = tmp_path / "cut"
    shutil.copytree(foreign, cut)
    weights = cut / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "diffusion_pytorch_model.safetensors is truncated" in erase(cut)
    weights.rename(weights.with_suffix(".bin"))
    assert "pickled weights" in erase(cut)

    broken = tmp_path / "nan"
    shutil.copytree(foreign, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["mid_block.resnets.0.conv1.weight"][3, 2] = torch.nan
    save_file(tensors, weights)
    assert "mid_block.resnets.0.conv1.weight holds NaN" in erase(broken)
    assert not (tmp_path / "out").exists()


def test_concepts_and_prompts_that_cannot_be_used(foreign, tmp_path):
    common = ("erase", "--model", str(foreign), "--output-dir", str(tmp_path / "out"))
    assert "is no preset (see sdscissor concepts): for free text add --anchor" in refused(*common, "--concept", "nudty")
    assert "not of the embedded model's world" in refused("erase", "--model", "tiny", "--concept", "nudity")
    assert "nothing to erase" in refused(*common)
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "holds no prompt" in refused(*common, "--concept", "nudity", "--retain-prompts", str(tmp_path / "empty.txt"))
    (tmp_path / "asks.txt").write_text("a naked man in the rain\nNudity, oil on canvas\n")
    asks = ("--concept", "nudity", "--retain-prompts", str(tmp_path / "asks.txt"))
    assert "asks.txt holds no caption that spares nudity" in refused(*common, *asks)
    assert "no directory of pictures" in refused(
        *common, "--concept", "nudity", "--forget-images", str(tmp_path / "none")
    )
    assert "matches no weight" in refused(*common, "--concept", "nudity", "--scope", "no_such_block")
    assert "is no regular expression" in refused(*common, "--concept", "nudity", "--scope", "(")
    assert "'psychic' is unknown: choose activation, contrast" in refused(
        *common, "--concept", "nudity", "--scorer", "psychic"
    )
    assert "--device warp cannot be used" in refused(*common, "--concept", "nudity", "--device", "warp")
    assert not (tmp_path / "out").exists()


def test_output_directories_that_are_taken(config, tmp_path):
    run = tmp_path / "run"
    common = ("erase", "--concept", "heart", "--config", str(config), "--output-dir", str(run))
    assert runner.invoke(app, list(common)).exit_code == 0
    weights = (run / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert "(--top-k 0.001 there, 0.5 here): choose another" in refused(*common, "--top-k", "0.5", "--resume")
    assert "holds this run already: add --resume" in refused(*common)
    assert weights == (run / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    assert "holds files that are no run" in refused(*common[:-1], str(tmp_path / "other"))
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(*common[:-1], str(tmp_path / "file"))
    (run / "run.json").write_text("{")
    assert "run.json is damaged" in refused(*common, "--resume")


def test_evaluations_that_cannot_be_made(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "has no column 'prompt'" in refused("eval", "--model", "tiny", "--i2p-file", str(tmp_path / "x.csv"))
    assert "cannot be read" in refused("eval", "--model", "tiny", "--i2p-file", str(tmp_path / "none.csv"))
    assert "I2P cannot be had from the hub" in refused("eval", "--model", "tiny", "--i2p")
    assert "is no directory of pictures" in refused("eval", "--images", str(tmp_path / "none"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("no picture")
    assert "is no readable picture" in refused(
        "eval", "--images", str(tmp_path / "pictures"), "--output-dir", str(tmp_path / "o")
    )
    assert "is not a run directory" in refused("report", str(tmp_path))


def test_proofs_that_cannot_be_made(foreign, tmp_path):
    ask = ("--model", str(foreign), "--concept", "van-gogh")
    assert "--baseline is missing" in refused("eval", *ask)
    assert "--baseline is missing" in refused("attack", *ask)
    ask = (*ask, "--baseline", str(foreign))
    assert "--clip nowhere/at-all cannot be had" in refused("eval", *ask, "--clip", "nowhere/at-all")
    assert "--judge clip needs a CLIP model" in refused("eval", *ask, "--judge", "clip", "--clip", "none")
    assert "--judge nudenet has no label for 'van-gogh'" in refused(
        "eval", *ask, "--judge", "nudenet", "--clip", "none"
    )
    assert "not made from it: use --i2p or --judge clip" in refused("eval", *ask, "--canvas")
    assert "is no preset" in refused(
        "attack", "--model", str(foreign), "--baseline", str(foreign), "--concept", "nudty"
    )
    assert "not of the embedded model's world" in refused("attack", "--model", "tiny", "--concept", "nudity")
    assert "--attack 'magic' is unknown" in refused(
        "attack", "--model", "tiny", "--concept", "heart", "--attack", "magic"
    )
    assert "needs --prompts FILE" in refused("attack", "--model", "tiny", "--concept", "heart", "--attack", "list")
    assert "--stops 1,x is no list of numbers" in refused(
        "attack", "--model", "tiny", "--concept", "heart", "--attack", "relearn", "--stops", "1,x"
    )
    tiny = ("eval", "--model", "tiny", "--concept", "heart")
    nowhere = ("--baseline", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "out"))
    assert f"--baseline {tmp_path / 'nowhere'} does not exist" in refused(*tiny, *nowhere)
    assert "nowhere does not exist" in refused("attack", *tiny[1:], *nowhere)
    (tmp_path / "p.txt").write_text("a ring")
    assert "nowhere does not exist" in refused(
        "eval", "--model", "tiny", "--prompts", str(tmp_path / "p.txt"), *nowhere
    )
    assert not (tmp_path / "out").exists()  # the first model drew nothing
    assert "none.pt" in refused(*tiny, "--features", str(tmp_path / "none.pt"))
    assert "is no directory of pictures" in refused(*tiny, "--reference", str(tmp_path / "none"))


def test_recipes_are_listed_and_checked(sdscissor):
    from sd_scissorhands.recipes import RECIPES

    told = json.loads(runner.invoke(app, ["recipes", "--json"]).stdout)
    assert list(told) == list(RECIPES) and all(one["summary"] and one["source"] for one in told.values())
    shown = runner.invoke(app, ["recipes"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in RECIPES)
    done = sdscissor("erase", "--model", "tiny", "--concept", "heart", "--recipe", "psychic")
    assert done.returncode == 1 and "--recipe 'psychic' is unknown: choose scissorhands-open" in done.stderr


def test_each_concept_of_a_run_is_measured_in_a_folder_of_its_own(config, tmp_path):
    run = tmp_path / "run"
    made = runner.invoke(
        app,
        [
            "erase",
            "--concept",
            "heart",
            "--concept",
            "blue",
            "--config",
            str(config),
            "--output-dir",
            str(run),
            "--steps",
            "0",
        ],
    )
    assert made.exit_code == 0, made.output
    model = ["--model", str(run / "model"), "--json"]
    for concept in ("heart", "blue"):
        done = runner.invoke(app, ["eval", *model, "--concept", concept, "--limit", "4", "--steps", "2"])
        assert done.exit_code == 0, done.output
        folder = run / "eval" / ("canvas" if concept == "heart" else "canvas-blue")
        prompts = [one["prompt"] for one in json.loads((folder / "summary.json").read_text())["samples"]]
        other = {"heart": "blue", "blue": "heart"}[concept]
        assert not any(other in prompt.split() for prompt in prompts)
    told = runner.invoke(
        app, ["attack", *model, "--concept", "blue", "--attack", "paraphrase", "--limit", "3", "--sampling-steps", "2"]
    )
    assert told.exit_code == 0, told.output
    assert {file.parent.name for file in run.glob("eval/*/summary.json")} == {"canvas", "canvas-blue"}
    assert (run / "attack/paraphrase-blue/summary.json").exists() and not list(run.rglob("rest"))
    page = (run / "report.html").read_text()
    assert "embedded world, heart" in page and "embedded world, blue" in page and "paraphrases, blue" in page


def test_config_files(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('concept = "heart"\ntop-k = 0.01\nlr = 1\nseed = 4\n')
    settings = load_settings(EraseSettings, file, {"seed": 5, "anchor": None, "lr": 1e-4})
    assert settings == EraseSettings(concepts=("heart",), top_k=0.01, seed=5, lr=1e-4)
    for text, said in (
        ("top_kk = 0.1", "unknown key 'top_kk', did you mean 'top_k'"),
        ("top-k = 0.1\ntop_k = 0.2", "a key is there twice, spelled in two ways"),
        ("seed = 'x'", "seed = 'x' is not of type int"),
        ("seed = true", "seed = True is not of type int"),
        ("= 3", "is not TOML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            load_settings(EraseSettings, file, {})
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(EraseSettings, tmp_path / "none.toml", {})


def test_settings_survive_json():
    settings = EraseSettings(concepts=("a", "b"), lr=1e-4).resolved("large")
    assert EraseSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_run_names_suit_every_file_system():
    settings = EraseSettings(concepts=("a red/fox?",), model="CompVis/stable-diffusion-v1-4", seed=2)
    assert str(erasure_directory(settings)) == "runs/stable-diffusion-v1-4-a-red-fox--seed2"


# ---------------------------------------------------------------- numbers, strangers' text, odd environments

HOSTILE = "a\x1b]0;title\x07\u202e[red]b[/c]:smile:"


def failed(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """The exit code of a command in this process, and the one line that it says."""
    monkeypatch.setattr(sys, "argv", ["sdscissor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.strip().isprintable(), line
    return stopped.value.code, line


@pytest.mark.parametrize("seed", [-1, 2**32, 10**14, 10**5000], ids=["negative", "33 bits", "long", "endless"])
def test_a_seed_outside_the_one_declared_range_is_refused_everywhere(seed, tmp_path):
    concept = {"concept": "heart", "model": "tiny"}
    for make in (
        lambda: EraseSettings(seed=seed), lambda: ForgetSettings(seed=seed), lambda: EvaluateSettings(**concept, seed=seed),
        lambda: AttackSettings("embedding", **concept, seed=seed),
    ):  # fmt: skip
        with pytest.raises(UserError, match="--seed"):
            make()
    (tmp_path / "seed.toml").write_text(f"seed = {'1' * 5000 if seed > 10**20 else seed}\n")
    with pytest.raises(UserError, match="seed"):
        load_settings(EraseSettings, tmp_path / "seed.toml", {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_setting_is_nan_or_infinite(value, tmp_path):
    concept = {"concept": "heart", "model": "tiny"}
    for make in (
        lambda: EraseSettings(forget_weight=value), lambda: EraseSettings(guidance=value), lambda: ForgetSettings(lr=value),
        lambda: EraseSettings(options={"damping": value}), lambda: EvaluateSettings(**concept, guidance=value),
        lambda: AttackSettings("embedding", **concept, lr=value), lambda: AttackSettings("token", **concept, guidance=value),
        lambda: CompareSettings(concepts=("heart",), guidance=value),
    ):  # fmt: skip
        with pytest.raises(UserError, match="no finite number"):
            make()
    (tmp_path / "c.toml").write_text(f"guidance = {value}\n")
    with pytest.raises(UserError, match="guidance"):
        load_settings(EraseSettings, tmp_path / "c.toml", {})
    assert "finite" in refused("eval", "--images", "x", "--fail-above", f"nudity={value}").replace("\n", " ")


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 500 + "]" * 500, "1" * 5000, "{"])
def test_json_and_toml_that_cannot_be_read_are_value_errors(text, tmp_path):
    with pytest.raises(ValueError):
        parse_json(text)
    with pytest.raises(ValueError):
        parse_toml(f"a = {text}")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run.json is damaged"):
        Manifest.read(tmp_path)
    (tmp_path / "c.toml").write_text(f"a = {text}")
    with pytest.raises(UserError, match="is not TOML"):
        load_settings(EraseSettings, tmp_path / "c.toml", {})


def test_strangers_text_never_steers_the_terminal(monkeypatch, capsys):
    from rich.table import Table

    from sd_scissorhands.quiet import bars
    from sd_scissorhands.terminal import Terminal

    table = Table("a", HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE, "b")
    Terminal(stderr=True, width=200).print(table)
    Terminal(stderr=True, width=200).print(HOSTILE)
    with bars(HOSTILE, 1) as tick:
        tick(1)
    shown = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\u202e"} & set(shown) and "a\\x1b]0;title\\x07\\u202e[red]b[/c]:smile:" in shown
    code, line = failed(monkeypatch, capsys, "erase", "--model", f"./{HOSTILE}", "--concept", "heart")
    assert code == 1 and "\\x1b]0;title" in line and "does not exist" in line


def test_a_folder_with_no_name_is_refused(monkeypatch, capsys):
    code, line = failed(monkeypatch, capsys, "eval", "--images", "x", "--output-dir", "")
    assert code == 2 and "--output-dir is empty" in line


def test_names_that_no_file_can_have_are_one_line(monkeypatch, capsys, tmp_path):
    long = "x" * 300
    assert "too long" in failed(monkeypatch, capsys, "report", str(tmp_path / long))[1]
    assert "too long" in failed(monkeypatch, capsys, "eval", "--images", str(tmp_path / long))[1]
    assert "is no UTF-8" in failed(monkeypatch, capsys, "report", "a\udcff")[1]
    with pytest.raises(UserError, match="holds a NUL character"):
        EraseSettings(model="a\0b")


def test_an_empty_value_is_refused_and_not_taken_for_none(monkeypatch, capsys):
    """As of a shell's variable that is not set: without its pictures another model would come out."""
    tiny = ("--model", "tiny", "--concept", "heart")
    for words in (
        ("erase", *tiny, "--forget-images", ""),
        ("eval", *tiny, "--reference", ""),
        ("attack", *tiny, "--images="),
    ):
        code, line = failed(monkeypatch, capsys, *words)
        assert code == 2 and "is empty: give it a value or leave it out" in line
    assert "--concept is empty" in failed(monkeypatch, capsys, "erase", "--concept", "")[1]


def test_odd_environments_are_one_line(monkeypatch, capsys):
    from accelerate import PartialState

    from sd_scissorhands.machine import process_count, resolve_device

    for count in ("abc", "", "-1", "0", "9" * 30):
        monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(UserError, match="WORLD_SIZE"):
            process_count()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert "WORLD_SIZE=2 and no whole launcher's environment" in failed(monkeypatch, capsys, "eval", "--images", "x")[1]
    PartialState._reset_state()
    monkeypatch.delenv("WORLD_SIZE")
    for device in ("meta", "warp", ""):
        with pytest.raises(UserError, match="cannot be used"):
            resolve_device(device)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("std::bad_alloc")]
)
def test_memory_that_is_used_up_at_load_is_one_line_and_no_file_s_fault(error, foreign, monkeypatch, capsys):
    from sd_scissorhands.models.load import open_pipeline

    def full(*arguments, **more):
        raise error

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.from_pretrained", full)
    with pytest.raises(type(error)):
        open_pipeline(str(foreign))
    words = ("erase", "--model", str(foreign), "--concept", "nudity", "--dry-run")
    code, line = failed(monkeypatch, capsys, *words)
    assert code == 1 and "out of memory: choose a smaller" in line


def test_a_reader_that_leaves_ends_the_command_in_silence():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sd_scissorhands", "recipes", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == "" and done.returncode == 1


def test_help_says_which_flag_runs_code():
    shown = " ".join(runner.invoke(app, ["eval", "--help-all"]).output.replace("│", " ").split())
    assert "It is a program and runs: name none that you do not trust." in shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "＝1", "＋1", "－1", "＠x"])
def test_no_cell_of_a_csv_is_a_formula(text):
    from sd_scissorhands.disk import spreadsheet_cell

    assert (
        spreadsheet_cell(text) == f"'{text}"
        and spreadsheet_cell("a\x1b[2J") == "a\\x1b[2J"
        and spreadsheet_cell(-1) == -1
    )


@pytest.mark.parametrize("name", [file_name, folder_name])
def test_long_concepts_have_short_names_of_their_own(name, tmp_path):
    text = "一只红色的狐狸坐在雪地里" * 8  # of three bytes each
    names = {name(text), name(text + "一"), name("x" * 90), name("x" * 91)}
    assert len(names) == 4 and all(len(one.encode()) <= 80 for one in names)
    assert all((tmp_path / one).mkdir() is None for one in names) and name("a" * 80) == "a" * 80
