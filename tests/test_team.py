"""Several processes, batches in parts, memory modes, single weights: other ways to the same erasure."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_unlearn import Regression
from together import DIES
from torch import nn
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.diffusion.dataset import encode_pictures
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.erasure_task import ErasureTask
from sd_scissorhands.diffusion.slots import encode, slotted, vocabularies
from sd_scissorhands.erasure import erase, slices_of
from sd_scissorhands.errors import UserError
from sd_scissorhands.forecast import Probe, forecast
from sd_scissorhands.machine import PeakMemory, Processes, machine_facts, processor, resolve_device
from sd_scissorhands.methods.distributed import FULL_BATCH, BatchSlice, gradients
from sd_scissorhands.methods.optimisers import OPTIMISERS
from sd_scissorhands.methods.project import SCALE_FREE
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.methods.selection import Selection
from sd_scissorhands.methods.sensitivity import sensitivity
from sd_scissorhands.models.apply import apply_delta
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.preparation import prepare
from sd_scissorhands.recipes import MEMORY
from sd_scissorhands.settings import EraseSettings

STAGES = ("data", "scores", "selection", "edited")
SEVERAL = int(os.environ.get("SDSCISSOR_PROCESSES", "2"))  # that share the work here; more take minutes on two cores


def unet_of(folder):
    return load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def farthest_but_a_digit(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The same without a last digit of fp16, which two numbers next to each other can round to on either side."""
    assert one.keys() == other.keys()
    pairs = [(one[name].numpy(), other[name].numpy()) for name in one]
    return max(float((np.abs(a.astype("f4") - b) - np.spacing(np.maximum(abs(a), abs(b)))).max()) for a, b in pairs)


def test_what_rounding_depends_on_names_the_kind_of_cpu(monkeypatch):
    device, here = torch.device("cpu"), processor()
    assert here in machine_facts(device) and torch.backends.cpu.get_cpu_capability() in here
    text = (
        "processor\t: 0\nvendor_id\t: Somebody\ncpu family\t: 6\nmodel\t\t: 7\nmodel name\t: fast\n\nprocessor\t: 1\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda file, **how: text)
    monkeypatch.setattr(Path, "exists", lambda file: True)
    assert processor().startswith("Somebody 6 7 ")
    monkeypatch.setattr(Path, "exists", lambda file: False)
    assert "Somebody" not in processor()


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("total,count", [(8, 1), (8, 2), (7, 3), (2, 5)])
def test_parts_share_out_a_batch_and_average_to_its_mean(total, count):
    values = torch.randn(total, dtype=torch.float64, generator=torch.Generator().manual_seed(total))
    parts = [BatchSlice(n, count) for n in range(count)]
    assert sorted(torch.cat([part.of(values) for part in parts]).tolist()) == sorted(values.tolist())
    means = torch.stack([part.mean(part.of(values), total) for part in parts])
    torch.testing.assert_close(means.mean(), values.mean())
    torch.testing.assert_close(FULL_BATCH.mean(values, total), values.mean())


def test_gradients_are_handed_on_draw_by_draw_and_none_is_left():
    task, found = Regression(), []
    gradients(task.forget, task.parameters, 3, lambda name, gradient: found.append((name, gradient.clone())))
    for draw in range(3):
        own = dict(found[draw * 4 : draw * 4 + 4])
        wanted = torch.autograd.grad(task.forget(draw), list(task.parameters.values()))
        assert all(torch.equal(own[name], g) for name, g in zip(task.parameters, wanted, strict=True))
    assert all(p.grad is None for p in task.parameters.values())
    gradients(task.forget, task.parameters, 0, lambda name, gradient: pytest.fail("no draw"))
    task.forget(0).backward()
    assert all(p.grad is not None for p in task.parameters.values())  # no hook stays


class Pretender:
    """A group of which every process is played in turn by the same one: `tell` hands on what the owner has."""

    def __init__(self, count: int, index: int, board: dict):
        self.count, self.index, self.board, self.told = count, index, board, 0

    def average(self, tensors):
        pytest.fail("scores are not averaged")

    def broadcast(self, tensors, owner):
        for tensor in tensors:
            self.told += 1
            if owner == self.index:
                self.board[self.told] = tensor.clone()
            else:  # in the first round nobody has told anything yet, and what is not told is whatever memory held
                tensor.copy_(self.board.get(self.told, torch.zeros_like(tensor)))


@pytest.mark.parametrize("count,draws", [(2, 4), (2, 5), (3, 4), (4, 2)])
def test_a_teams_scores_have_the_bytes_of_ones_own(count, draws):
    task = Regression()
    alone, board = sensitivity(task.forget, task.parameters, draws), {}
    for _ in range(2):  # first all write down what they own, then all read what the others own
        group = [
            sensitivity(task.forget, task.parameters, draws, group=Pretender(count, n, board)) for n in range(count)
        ]
    for scores in group:
        assert all(torch.equal(scores[name], alone[name]) for name in alone)


@pytest.mark.parametrize("rule,protect", [(None, False), (SCALE_FREE, False), (None, True), (SCALE_FREE, True)])
def test_a_repair_in_parts_takes_the_same_steps(rule, protect):
    tasks = [Regression(dtype=torch.float64) for _ in range(3)]
    for task, parts in zip(tasks, (1, 2, 5), strict=True):
        how = RepairSettings(6, 1e-2, 0.3, rule, memory_every=3, slices=parts, protect_retained=protect)
        repair = Repair(task, task.parameters, how)
        repair.run()
        assert not protect or repair.conflict_rate
    start = Regression(dtype=torch.float64).parameters
    for name, wanted in tasks[0].parameters.items():
        assert not torch.equal(wanted, start[name])
        assert all(torch.allclose(wanted, task.parameters[name], atol=1e-10) for task in tasks[1:])


@pytest.mark.parametrize("slices", [1, 3])
def test_single_weights_are_projected_as_whole_parameters(slices):
    whole, single = Regression(dtype=torch.float64), Regression(dtype=torch.float64)
    every = Selection({name: torch.arange(p.numel()) for name, p in single.parameters.items()})
    how = RepairSettings(6, 1e-2, 0.3, SCALE_FREE, memory_every=3, slices=slices, protect_retained=True)
    for task, only in ((whole, None), (single, every)):
        repair = Repair(task, task.parameters, how, only=only)
        repair.run()
        assert repair.conflict_rate
    for name, p in single.parameters.items():
        torch.testing.assert_close(p, whole.parameters[name])
        assert p.grad is None


def test_single_weights_are_trained_as_under_a_mask():
    task, other = Regression(), Regression()
    chosen = {"0.weight": torch.tensor([0, 7, 30]), "2.bias": torch.tensor([1])}
    repair = Repair(task, task.parameters, RepairSettings(5, 1e-2, 0.3), only=Selection(chosen))
    repair.run()
    adam = torch.optim.Adam(other.module.parameters(), lr=1e-2)
    for step in range(5):
        adam.zero_grad()
        forget, retain = other.repair(step)
        (retain + 0.3 * forget).backward()
        for name, p in other.parameters.items():
            mask = torch.zeros(p.numel(), dtype=torch.bool)
            mask[chosen.get(name, torch.tensor([], dtype=torch.int64))] = True
            p.grad.view(-1)[~mask] = 0
        for group in adam.param_groups:
            group["lr"] = 1e-2 * min(1.0, 0.1 + 1.8 * (1 - step / 5))
        adam.step()
    start = Regression().parameters
    for name, p in task.parameters.items():
        torch.testing.assert_close(p, other.parameters[name], rtol=1e-5, atol=1e-7)
        assert int((p != start[name]).sum()) == len(chosen.get(name, ()))
        assert p.grad is None  # nothing as large as a layer is held
    held = sum(t.numel() for t in repair.state().values())
    assert held == 3 * 4  # a value and two moments a weight


def test_eight_bit_moments_take_a_byte_and_resume():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    x, y = torch.randn(64, 128), torch.randn(64, 64)

    class Wide:
        module = nn.Linear(128, 64)

        @property
        def parameters(self):
            return dict(self.module.named_parameters())

        def repair(self, draw, part=FULL_BATCH, adversary=None):
            loss = (self.module(x) - y).square().mean()
            return torch.zeros(()), loss

    task = Wide()
    start = {name: p.detach().clone() for name, p in task.parameters.items()}
    ends, before = [], float(task.repair(0)[1].detach())
    for cut in (None, 3):
        with torch.no_grad():
            for name, p in task.parameters.items():
                p.copy_(start[name])
        how = RepairSettings(6, 1e-2, 0.0, optimiser=OPTIMISERS["adam-8bit"])
        repair = Repair(task, task.parameters, how)
        if cut:
            while repair.step < cut:
                repair._descend(None, None)
                repair.step += 1
            repair._read_losses()
            state, history = {n: t.clone() for n, t in repair.state().items()}, repair.history
            assert state["state1/weight"].dtype == torch.uint8 and len({t.data_ptr() for t in state.values()}) == len(
                state
            )
            repair = Repair(task, task.parameters, how)
            repair.restore(state, cut, history)
        repair.run()
        ends.append({name: p.detach().clone() for name, p in task.parameters.items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in start)
    assert float(task.repair(0)[1].detach()) < before


# ---------------------------------------------------------------- processes


def run_together(count: int, *commands: Sequence[str]) -> CompletedProcess[str]:
    """Commands in `torchrun --nproc_per_node COUNT`, as `accelerate launch` does it, on the CPU; see `together`."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    words = [sys.executable, *launch, str(Path(__file__).with_name("together.py")), json.dumps(commands)]
    return subprocess.run(words, capture_output=True, text=True)


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON of every command, which one process alone prints."""
    found, at = [], 0
    while at < len(text):
        one, at = json.JSONDecoder().raw_decode(text, at)
        found.append(one)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[str]:
    """The words of a short erasure with everything in it that processes share."""
    config = tmp_path_factory.mktemp("asked") / "short.toml"
    config.write_text(
        "forget_count = 6\nretain_count = 40\nsampling_steps = 2\nscore_draws = 3\nsteps = 6\nmemory_every = 3\n"
        'relearn_every = 2\nbatch_size = 5\ntop_k = 0.01\nconditions = "mixture"\n'
        'projection = "both"\nverify = false\n'
    )
    return ["erase", "--model", "tiny", "--concept", "heart", "--recipe", "scissorhands-anchored", "--config", str(config), "--keep-scores", "--json"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Both:
    """What one process and `SEVERAL` made of the same words; of an erasure more, whose second process died, there is no first."""

    folder: Path
    words: dict[str, list[str]]  # command -> its words before the folder
    results: dict[str, list[dict[str, Any]]]  # command -> its JSON by one process, and by two
    done: CompletedProcess[str]  # the two
    seconds: float


@pytest.fixture(scope="module")
def both(asked, tmp_path_factory) -> Both:
    """An evaluation, an erasure, and one that its second process does not survive; two processes are started once."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "p.txt").write_text("".join(f"a red circle {n}\n" for n in range(40)))
    drawn = ["eval", "--model", "tiny", "--steps", "2", "--keep-images", "--json", "--device", "cpu", "--prompts"]
    words = {"eval": [*drawn, str(folder / "p.txt"), "--output-dir"], "erase": [*asked, "--output-dir"]}
    began = time.monotonic()
    done = run_together(
        SEVERAL,
        *([*own, str(folder / f"{name}2")] for name, own in words.items()),
        [DIES, *words["erase"], str(folder / "cut")],
    )
    seconds = time.monotonic() - began
    two = dict(zip(words, documents(done.stdout), strict=True))  # and nothing of the one that died
    alone = {name: CliRunner().invoke(app, [*own, str(folder / f"{name}1")]) for name, own in words.items()}
    assert all(one.exit_code == 0 for one in alone.values()), alone
    return Both(folder, words, {name: [json.loads(alone[name].stdout), two[name]] for name in words}, done, seconds)


def test_two_processes_give_the_bytes_of_one(both):
    one, two = (
        {k: v for k, v in own.items() if k not in ("seconds", "judging_share", "command", "report")}
        for own in both.results["eval"]
    )
    assert one == two
    folders = [both.folder / name for name in ("eval1", "eval2")]
    pictures = [{f.name: f.read_bytes() for f in (folder / "images" / "model").iterdir()} for folder in folders]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 40
    ledgers = [(folder / "model.jsonl").read_text().splitlines() for folder in folders]
    assert sorted(ledgers[0]) == sorted(ledgers[1]) and not list(folders[1].glob("*.part*"))


def test_two_processes_make_the_erasure_of_one(both):
    """Sampling, scores and selection to the byte, weights up to rounding."""
    folders = [both.folder / name for name in ("erase1", "erase2")]
    for stage in STAGES:
        one, two = ((folder / f"{stage}.safetensors").read_bytes() for folder in folders)
        assert one == two, stage
    start = load_file(open_pipeline("tiny").directory / "unet" / "diffusion_pytorch_model.safetensors")
    one, two = map(unet_of, folders)
    assert farthest_but_a_digit(one, two) < 1e-4 < 1e-3 < farthest(one, start)
    one, two = both.results["erase"]
    assert two["processes"] == SEVERAL and one["trimmed"] == two["trimmed"]
    assert (folders[1] / "report.html").exists() and not any(list(folder.rglob(".*.partial")) for folder in folders)


def test_a_process_that_dies_ends_the_run_and_the_run_resumes(both):
    run = both.folder / "cut"
    assert both.done.returncode != 0 and both.seconds < 300
    assert "another process of this run has ended" in both.done.stderr or "exitcode  : 9" in both.done.stderr
    assert not (run / "model").exists()
    assert json.loads((run / "run.json").read_text())["stages"]["repair"]["step"] == 3
    resumed = CliRunner().invoke(app, [*both.words["erase"], str(run), "--resume"])  # by one process, as it happens
    assert resumed.exit_code == 0
    assert [r["step"] for r in json.loads((run / "repair" / "history.json").read_text())] == [*range(6)]
    assert (run / "model" / "model_index.json").exists()


@pytest.mark.parametrize("command", ["forget", "compare", "demo"])
def test_what_only_one_process_can_do_says_so(command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = {"forget": ["--forget-class", "3"], "compare": ["--concept", "heart"], "demo": []}[command]
    told = CliRunner().invoke(app, [command, *words])
    assert told.exit_code and f"sdscissor {command} runs in one process" in str(told.exception)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_weights_are_refused_in_one_line(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    told = CliRunner().invoke(app, ["eval", "--model", "tiny", "--concept", "heart"])
    assert told.exit_code and f"{name} is not supported: launch with --multi_gpu instead" == str(told.exception)


def test_a_batch_smaller_than_the_team_is_refused(short):
    with pytest.raises(UserError, match=r"--batch-size 4 is less than the 5 processes"):
        prepare(short, Processes(0, 5))


def test_a_lost_process_is_told_in_one_line(monkeypatch):
    def gone(*tensors):
        raise RuntimeError("Connection closed by peer [::1]:123\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    with pytest.raises(UserError, match=r"another process of this run has ended .*--resume"):
        Processes(0, 2).average([torch.zeros(1)])


# ---------------------------------------------------------------- memory


def test_memory_modes_fill_in_what_is_left_open(short):
    for memory, values in MEMORY.items():
        settings = dataclasses.replace(short, memory=memory).resolved("large")
        assert all(getattr(settings, name) == value for name, value in values.items())
    assert dataclasses.replace(short, memory="low", mixed_precision="no").resolved("large").mixed_precision == "no"
    assert EraseSettings().resolved("small").memory == "fast"
    with pytest.raises(UserError, match="--memory 'tiny' is unknown"):
        EraseSettings(memory="tiny")


def test_a_cpu_computes_in_float32_where_nothing_else_is_asked_for(short):
    low, other = (prepare(dataclasses.replace(short, memory=memory)).settings for memory in ("low", "balanced"))
    assert (low.mixed_precision, low.checkpointing, low.micro_batch) == ("no", True, 1)
    assert (other.mixed_precision, other.checkpointing, other.micro_batch) == ("no", False, 1)
    asked = prepare(dataclasses.replace(short, memory="balanced", mixed_precision="bf16", micro_batch=3)).settings
    assert (asked.mixed_precision, asked.micro_batch) == ("bf16", 3)


def test_small_parts_hold_one_side_each(short, tmp_path):
    settings = prepare(dataclasses.replace(short, relearn_every=2)).settings
    erase(dataclasses.replace(settings, steps=0), tmp_path)
    task = ErasureTask(prepare(settings).denoiser, load_file(tmp_path / "data.safetensors"), settings)
    task.teacher = {}
    seen = []
    task.denoiser.predict = lambda noisy, *rest: seen.append(len(noisy)) or noisy
    for ahead in (None, True, False):
        terms = [task.repair(0, BatchSlice(n, 2 * settings.batch_size), ahead) for n in range(2 * settings.batch_size)]
        assert all(bool(forget) + bool(kept) <= 1 for forget, kept in terms)
        assert max(seen) == 1


def test_slices_of_a_batch(short):
    settings = dataclasses.replace(short, batch_size=7).resolved("small")
    assert slices_of(settings, 2) == 1
    assert [slices_of(dataclasses.replace(settings, micro_batch=4), n) for n in (1, 2, 4)] == [4, 2, 1]


@pytest.mark.parametrize(
    "values", [dict(relearn_every=2), dict(recipe="scissorhands", projection="paper"), dict(recipe="esd")]
)
def test_checkpointing_and_parts_change_no_more_than_rounding(short, tmp_path, values):
    settings = dataclasses.replace(short, dtype="float32", **values)
    plain, frugal = tmp_path / "plain", tmp_path / "frugal"
    erase(settings, plain)
    erase(dataclasses.replace(settings, checkpointing=True, micro_batch=1), frugal)
    start = unet_of_base()
    assert farthest(unet_of(plain), unet_of(frugal)) < 1e-4 < farthest(unet_of(plain), start)
    left = [file.name for stage in STAGES for file in plain.glob(f"{stage}.safetensors")]
    assert left and all((plain / name).read_bytes() == (frugal / name).read_bytes() for name in left)


def unet_of_base() -> dict[str, torch.Tensor]:
    return load_file(open_pipeline("tiny").directory / "unet" / "diffusion_pytorch_model.safetensors")


def test_relevance_sees_the_whole_graph_under_checkpointing(short, tmp_path):
    settings = dataclasses.replace(short, recipe="lra-npp", steps=0, keep_scores=True)
    for name, checkpointing in (("with", True), ("without", False)):
        erase(dataclasses.replace(settings, checkpointing=checkpointing), tmp_path / name)
    one, two = ((tmp_path / name / "scores.safetensors").read_bytes() for name in ("with", "without"))
    assert one == two


def test_low_memory_leaves_the_frozen_weights_as_they_were(short, tmp_path):
    result = erase(dataclasses.replace(short, memory="low", mixed_precision="bf16", dtype="float32"), tmp_path / "run")
    start, now = unet_of_base(), unet_of(tmp_path / "run")
    scope = {name for name in start if ".attn" in name and ".norm" not in name}
    assert all(torch.equal(now[name], tensor.float()) for name, tensor in start.items() if name not in scope)
    assert sum(not torch.equal(now[name], start[name].float()) for name in scope) > 0.9 * len(scope)
    assert all(tensor.dtype == torch.float32 for tensor in now.values())
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (settings["mixed_precision"], settings["micro_batch"], settings["checkpointing"]) == ("bf16", 1, True)
    assert result.scope_size == sum(start[name].numel() for name in scope)


def test_little_memory_halves_what_is_frozen_and_norms_stay(short):
    prepared = prepare(dataclasses.replace(short, memory="low", mixed_precision="bf16"))
    denoiser = prepared.denoiser
    teacher = denoiser.teacher(prepared.parameters, dtype=torch.bfloat16)
    assert prepared.casts_frozen and all(tensor.dtype == torch.bfloat16 for tensor in teacher.values())
    denoiser.cast_frozen(prepared.parameters)
    for name, p in denoiser.module.named_parameters():
        wanted = name not in prepared.parameters and name in denoiser.scope("full")
        assert p.dtype == (torch.bfloat16 if wanted else torch.float32), name
    assert {p.dtype for encoder in denoiser.texts for p in encoder.parameters()} == {torch.bfloat16}
    some = vocabularies(denoiser)[0][:2]  # as vectors in the concept's place
    words = encode(denoiser, slotted(denoiser, ["a red {}"] * 2, width=2), some)
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        assert denoiser.predict(noisy, t, words, teacher).isfinite().all()


def test_the_forecast_of_memory_is_near_what_a_run_takes(asked, tmp_path):
    words = [*asked, "--scope", "full", "--output-dir", str(tmp_path / "run")]
    done = run_together(1, [*words, "--dry-run"], words)
    assert done.returncode == 0, done.stderr
    expected = documents(done.stdout)[0]["peak_bytes"]
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert set(expected) == {"data", "scores", "selection", "repair"}
    for stage, wanted in expected.items():
        assert stages[stage]["peak_bytes"] == pytest.approx(wanted, rel=0.15), stage


def test_less_memory_is_forecast_where_less_is_asked_for(short, foreign):
    settings = dataclasses.replace(short, model=str(foreign), anchor="a triangle", scope="full", steps=4, batch_size=4)
    found = {memory: forecast(dataclasses.replace(settings, memory=memory)).to_json() for memory in ("low", "fast")}
    assert found["low"]["settings"]["micro_batch"] == 1
    assert found["low"]["memory_bytes"] == max(found["low"]["peak_bytes"].values())


def test_single_weights_look_ahead_too(short, tmp_path):
    asked = dataclasses.replace(short, train="selection", steps=4)
    found = {
        every: erase(dataclasses.replace(asked, relearn_every=every), tmp_path / str(every)).weights_sha256
        for every in (0, 2)
    }
    assert found[0] != found[2]


def test_time_is_forecast_by_how_many_samples_go_together(short, monkeypatch):
    probe = Probe(alone=1.0, among=0.1, forward=1, backward=1, resident=1)
    monkeypatch.setattr("sd_scissorhands.forecast._probe", lambda prepared: probe)
    asked = dataclasses.replace(short, relearn_every=0, projection="none", edit="none")
    together, one_by_one = (
        forecast(dataclasses.replace(asked, micro_batch=size)).seconds for size in (0, 1)
    )  # 8 pictures of pairs and 8 to keep, 2 steps with guidance; 4 steps of 8 samples through teacher and student
    assert together == {"data": pytest.approx(16 * 2 * 2 * 0.1), "repair": pytest.approx(4 * 8 * 4 * 0.1)}
    assert one_by_one == together | {"repair": pytest.approx(4 * 8 * 4)}
    twice = forecast(dataclasses.replace(asked, micro_batch=0, projection="retain"))
    assert twice.seconds["repair"] == pytest.approx(4 * 8 * 6 * 0.1)  # backward a second time


def test_where_there_is_a_gpu_the_launcher_decides(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == "cpu"  # as all tests ask for it
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert resolve_device("auto") == "cuda"
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="2 processes for 1 GPU: launch with --num_processes 1, or with --cpu"):
        Processes.here()


def test_a_peak_within_a_peak_does_not_hide_it():
    outer = PeakMemory()
    block = torch.ones(200 << 20, dtype=torch.uint8)
    del block
    inner = PeakMemory()
    second = torch.ones(80 << 20, dtype=torch.uint8)
    small, large = inner.bytes(), outer.bytes()
    assert large > 190 << 20 and 60 << 20 < small < 120 << 20 and len(second)


# ---------------------------------------------------------------- single weights and their delta


def test_a_delta_gives_back_the_model_whose_selection_was_trained(short, tmp_path):
    result = erase(dataclasses.replace(short, train="selection"), tmp_path / "run")
    told = apply_delta("tiny", tmp_path / "run" / "delta.safetensors", output_dir=tmp_path / "again")
    assert told.weights_sha256 == result.weights_sha256 and told.weights <= result.trimmed
    now = load_file(tmp_path / "again" / "unet" / "diffusion_pytorch_model.safetensors")
    assert farthest(now, unet_of(tmp_path / "run")) == 0 < farthest(now, unet_of_base())
    assert result.delta_weights == told.weights and result.delta_bytes < 8 * told.weights + 2000
    whole = erase(short, tmp_path / "whole")
    assert whole.delta is None and not (tmp_path / "whole" / "delta.safetensors").exists()


def test_training_a_selection_that_is_empty_is_refused(short, tmp_path, monkeypatch):
    monkeypatch.setattr("sd_scissorhands.stages.select", lambda *rest, **how: Selection({}))
    with pytest.raises(UserError, match="--train selection has nothing to train"):
        erase(dataclasses.replace(short, train="selection", edit="none"), tmp_path / "run")


# ---------------------------------------------------------------- pictures


def test_pictures_are_encoded_once_and_drawn_from_their_posterior(short, tmp_path):
    import numpy as np
    from PIL import Image

    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    denoiser, ticks = Denoiser(open_pipeline("tiny").pipeline), []
    files = sorted(tmp_path.glob("*.png"))
    mean, deviation = encode_pictures(denoiser, files, 7, ticks.append)
    assert mean.shape == deviation.shape == (7, 4, 8, 8) and (deviation > 0).all() and sum(ticks) == 7
    assert torch.equal(mean[0], mean[3]) and torch.equal(mean[0], mean[6]) and not torch.equal(mean[0], mean[1])
    picture = torch.from_numpy(np.asarray(Image.open(files[1]))).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        posterior = denoiser.pipeline.vae.encode(picture).latent_dist
    torch.testing.assert_close(mean[1:2], posterior.mean * denoiser.pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(deviation[1:2], posterior.std * denoiser.pipeline.vae.config.scaling_factor)

    from sd_scissorhands.diffusion.erasure_task import ErasureTask

    words = denoiser.encode(["a red heart"] * 7)
    data = {"forget_latents": mean, "forget_deviation": 100 * torch.ones_like(mean), "forget_condition": words}
    settings = dataclasses.replace(short, batch_size=64).resolved("small")
    task = ErasureTask(denoiser, data, settings)
    rows, clean, _, noise, *_ = task.batches.draw("forget", "forget", 5)
    drawn = (clean - mean[rows]) / 100
    assert drawn.std() == pytest.approx(1, abs=0.05) and abs(float((drawn * noise).mean())) < 0.05
    assert torch.equal(clean, task.batches.draw("forget", "forget", 5)[1])
    del data["forget_deviation"]
    plain = ErasureTask(denoiser, data, settings).batches.draw("forget", "forget", 5)
    assert torch.equal(plain[0], rows) and torch.equal(plain[3], noise) and torch.equal(plain[1], mean[rows])
