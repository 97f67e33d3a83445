"""Frozen weights shared out over processes (FSDP): the same erasure, with every process in step."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_team import STAGES, farthest, run_together, unet_of, unet_of_base
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.erasure_task import ErasureTask
from sd_scissorhands.diffusion.sharding import shared_out
from sd_scissorhands.erasure import erase, prepare
from sd_scissorhands.machine import Processes
from sd_scissorhands.methods.distributed import BatchSlice
from sd_scissorhands.models.load import hash_tensors, open_pipeline
from sd_scissorhands.settings import REPAIRS, EraseSettings, UserError, load_settings

SHARED = Processes(0, 1, sharded=True)  # one process that works as if there were more
ASKED = (  # six parts of a batch, of which most show nothing of what is relearned
    "forget_count = 4\nretain_count = 8\nsampling_steps = 2\nscore_draws = 1\nsteps = 3\nmemory_every = 2\n"
    "relearn_every = 2\nbatch_size = 3\nmicro_batch = 1\ncheckpointing = true\ntop_k = 0.01\n"
    'conditions = "mixture"\nmodel = "tiny"\nconcept = "heart"\nrecipe = "scissorhands-anchored"\n'
)


@pytest.fixture
def world(tmp_path_factory, monkeypatch):
    """A group of one process, which shares weights out with itself."""
    store = tmp_path_factory.mktemp("world") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    monkeypatch.setattr(Processes, "here", classmethod(lambda cls, **how: SHARED))
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[EraseSettings, Path]:
    """An erasure by one process that holds everything: what was asked, and where it lies."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "short.toml").write_text(ASKED)
    settings = load_settings(EraseSettings, folder / "short.toml", {})
    result = erase(settings, folder / "run")
    assert "shared_out" not in result
    return settings, folder


def same_up_to_the_repair(one: Path, two: Path) -> bool:
    return all(
        (one / f"{stage}.safetensors").read_bytes() == (two / f"{stage}.safetensors").read_bytes() for stage in STAGES
    )


def test_two_processes_with_half_the_frozen_weights_each_make_the_erasure_of_one(plain, tmp_path):
    """To the byte up to the repair, weights up to rounding, and what stays frozen as it was."""
    alone = plain[1] / "run"
    done = run_together(
        2, "erase", "--config", str(plain[1] / "short.toml"), "--output-dir", str(tmp_path), "--json",
        ACCELERATE_USE_FSDP="true", FSDP_CPU_RAM_EFFICIENT_LOADING="true",  # as `accelerate launch --use_fsdp` says
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert same_up_to_the_repair(alone, tmp_path)
    one, two, start = unet_of(alone), unet_of(tmp_path), unet_of_base()
    assert farthest(one, two) < 1e-4 < 1e-3 < farthest(one, start)
    frozen = [name for name in start if torch.equal(one[name], start[name])]
    assert all(torch.equal(two[name], start[name]) for name in frozen)
    count = sum(start[name].numel() for name in frozen)
    assert told["processes"] == 2 and told["shared_out"] == count and abs(told["held"] / count - 0.5) < 0.02
    opened = open_pipeline(str(tmp_path / "model"))
    assert type(opened.pipeline.unet).__name__ == "UNet2DConditionModel"
    assert told["weights_sha256"] == opened.weights == hash_tensors(two.items())


def test_an_erasure_with_weights_shared_out_resumes(plain, tmp_path, world):
    seen: list[str] = []

    @contextmanager
    def killing(stage, total):
        def tick(count):
            seen.append(stage)
            if seen.count("repair") == 4:  # where it stands, then three steps
                raise KeyboardInterrupt

        yield tick

    with pytest.raises(KeyboardInterrupt):
        erase(plain[0], tmp_path, progress=killing)
    result = erase(plain[0], tmp_path, resume=True)
    assert result["shared_out"] == result["held"] > 0 and result["steps"] == 3
    assert same_up_to_the_repair(plain[1] / "run", tmp_path)
    assert farthest(unet_of(plain[1] / "run"), unet_of(tmp_path)) < 1e-4


def test_thin_weights_are_shared_out_too(short, world):
    prepared = prepare(dataclasses.replace(short, memory="low", mixed_precision="bf16"))
    denoiser = prepared.denoiser
    denoiser.thin(prepared.parameters)
    asked = torch.randn(1, 4, 8, 8), torch.tensor([500]), denoiser.encode(["a red heart"])
    with torch.no_grad():
        wanted = denoiser.predict(*asked)
        with shared_out(denoiser, prepared.parameters):
            assert torch.equal(denoiser.predict(*asked), wanted)
    left = {name for name, p in denoiser.module.named_parameters() if p.numel()}
    assert left == set(prepared.parameters)  # nothing whole is kept beside the shares


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_sample_is_a_pass_all_the_same(short, world, checkpointing):
    prepared = prepare(dataclasses.replace(short, checkpointing=checkpointing))
    denoiser, trained, passes = prepared.denoiser, prepared.parameters, []
    for parameter in trained.values():
        parameter.requires_grad_(True)
    nothing = [torch.zeros(0, 4, 8, 8), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 24, 64)]
    assert not denoiser.predict(*nothing).requires_grad
    with shared_out(denoiser, trained):
        handle = denoiser.module.register_forward_hook(lambda *rest: passes.append(1))
        out = denoiser.predict(*nothing)
        out.sum().backward(inputs=list(trained.values()))
        handle.remove()
    assert passes and out.shape == (0, 4, 8, 8)
    assert all(p.grad is not None and not p.grad.any() for p in trained.values())
    assert denoiser.module is prepared.opened.pipeline.unet and not denoiser.in_step


@pytest.mark.parametrize("retain_loss", ["distil", "guided", "none"])
def test_every_part_of_a_batch_asks_the_model_as_often(short, retain_loss):
    denoiser, asked = Denoiser(open_pipeline("tiny").pipeline), []
    denoiser.predict = lambda noisy, *rest: asked.append(len(rest)) or noisy
    drawn, words = torch.randn(4, 4, 8, 8), torch.randn(4, 24, 64)
    data = {f"{side}_latents": drawn for side in ("forget", "anchor", "retain")}
    data |= {f"{side}_condition": words for side in ("forget", "anchor", "retain")} | {"empty_condition": words[0]}
    for repair in sorted(set(REPAIRS) - {"none"}):
        settings = dataclasses.replace(short, repair=repair, retain_loss=retain_loss, batch_size=3).resolved("tiny")
        task = ErasureTask(denoiser, data, settings)
        task.teacher = {}
        often = []
        for part in (BatchSlice(n, 8) for n in range(8)):  # more than the six samples
            asked.clear()
            for ahead in (None, True, False):
                task.repair(0, part, ahead)
            task.forget(0, part), task.relearn(0, part)
            often.append(list(asked))
        assert len(often[0]) >= 5 and all(one == often[0] for one in often), repair


def test_a_process_that_is_lost_within_a_pass_is_told_in_one_line(short, world):
    prepared = prepare(short)
    for said, told in (("gloo/transport/tcp/pair.cc: Connection reset by peer", UserError), ("a bug", RuntimeError)):
        with pytest.raises(told, match=said[:5]), shared_out(prepared.denoiser, prepared.parameters):
            raise RuntimeError(said)


def test_what_cannot_be_shared_out_is_refused(short, monkeypatch):
    for values, told in (dict(compile=True), "--compile does not go with FSDP"), (dict(scope="full"), "nothing does"):
        with pytest.raises(UserError, match=told):
            prepare(dataclasses.replace(short, **values), dataclasses.replace(SHARED))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Processes.here() == Processes()  # alone it changes nothing
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = CliRunner().invoke(app, ["eval", "--model", "tiny", "--concept", "heart"])
    assert told.exit_code and "FSDP is for erase alone" in str(told.exception)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"DEEPSPEED is not supported.* --multi_gpu"):
        Processes.here(sharding=True)
