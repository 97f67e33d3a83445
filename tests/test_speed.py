"""What an erasure takes is counted, learned from the last one, and said before hours of work."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from huggingface_hub import constants

from sd_scissorhands import drawn_before, show
from sd_scissorhands import forecast as forecasting
from sd_scissorhands.cli.erase import _consider
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.erasure_task import ErasureTask
from sd_scissorhands.diffusion.layout import channels_last
from sd_scissorhands.diffusion.slots import Slotted
from sd_scissorhands.erasure import _mixture, erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluations import evaluations_of
from sd_scissorhands.methods.adversary import Adversary
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.models.load import LoadedPipeline
from sd_scissorhands.models.tensor_files import hash_tensors
from sd_scissorhands.preparation import prepare
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.terminal import Terminal


def test_evaluations_are_counted_before_as_they_are_made_and_their_time_is_learned(short, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv(drawn_before.SWITCH, "on")
    asked = dataclasses.replace(short, recipe="scissorhands-open", retain_count=16, calibrate=False, verify=True)
    before = forecasting.forecast(asked)
    assert not before.learned
    erase(asked, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    made = {name: stage.get("evaluations") for name, stage in manifest["stages"].items()}
    counted = evaluations_of(EraseSettings.from_json(manifest["settings"]))
    assert before.evaluations == counted
    assert (made["data"], made["held-out"]) == (counted["data"], counted["held out"])
    assert made["repair"] == pytest.approx(counted["repair"], rel=0.1)
    assert made["model"] == pytest.approx(counted["proof"], rel=0.1)

    after = forecasting.forecast(asked)
    assert after.learned
    for stage in ("data", "repair"):
        assert after.seconds[stage] == pytest.approx(manifest["stages"][stage]["seconds"], rel=0.15, abs=0.1)
    (tmp_path / "hf" / "sd_scissorhands" / "speeds.json").write_text("[1]")
    assert not forecasting.forecast(asked).learned


@pytest.mark.parametrize("recipe", ["scissorhands-open", "esd"])
def test_a_repair_step_reads_nothing_back_from_the_device(recipe, short, monkeypatch):
    """On a device without values, from which reading raises, a step of all parts: mixture, teacher, adversary, optimiser."""
    prepared = prepare(dataclasses.replace(short, recipe=recipe, forget_count=4, retain_count=4, sampling_steps=2))
    pipeline, settings, cpu = prepared.opened.pipeline, prepared.settings, prepared.denoiser
    words = cpu.encode(["a heart"] * 4)
    data = {f"{side}_latents": torch.randn(4, *cpu.latent_shape) for side in ("forget", "anchor", "retain")}
    data |= {f"{side}_condition": words for side in ("forget", "anchor", "retain")} | {"empty_condition": words[0]}
    mixture = _mixture(prepared)
    pipeline.unet.to("meta")
    pipeline.text_encoder.to("meta")
    denoiser = Denoiser(pipeline)
    if mixture:
        mixture.denoiser, mixture.names = denoiser, mixture.names.to("meta")
        mixture.generic = [[own.to("meta") for own in row] for row in mixture.generic]
        mixture.slotted = {key: Slotted(s.ids.to("meta"), s.free.to("meta")) for key, s in mixture.slotted.items()}
    task = ErasureTask(denoiser, data, settings, mixture)
    parameters = denoiser.scope(settings.scope)
    task.teacher = denoiser.teacher(parameters)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda tensors, lr, fused: adam(tensors, lr=lr, foreach=False))
    repair = Repair(task, parameters, RepairSettings(2, 1e-3, 1.0))
    with pytest.raises(RuntimeError, match="meta"):
        words.to("meta").sum().item()
    for step in range(3):
        repair.step = step
        repair._descend(None, Adversary(parameters, 1e-3))
    assert {weight.device.type for weight in parameters.values()} == {"meta"}


def test_channels_last_changes_no_value_and_leaves_what_is_trained(short):
    denoiser = prepare(short).denoiser
    noisy, t, words = torch.randn(2, *denoiser.latent_shape), torch.tensor([10, 900]), denoiser.encode(["a heart"] * 2)
    trained = [name for name in denoiser.parameters if name.startswith("mid_block")]

    def facts():
        with torch.no_grad():
            return hash_tensors(denoiser.module.state_dict().items()), denoiser.predict(noisy, t, words)

    before, out = facts()
    channels_last(denoiser.module, trained)
    after, again = facts()
    assert after == before and torch.allclose(out, again, atol=1e-5)
    convolutions = {name: own for name, own in denoiser.module.named_parameters() if own.ndim == 4 and own.shape[2] > 1}
    assert {name for name, own in convolutions.items() if own.is_contiguous()} == {*trained} & {*convolutions}
    assert len(convolutions) > len({*trained} & {*convolutions}) > 0


def test_guidance_of_one_takes_one_pass(short):
    resolved = dataclasses.replace(short, recipe="scissorhands-anchored").resolved("small")
    one, two = (evaluations_of(dataclasses.replace(resolved, guidance=scale))["data"] for scale in (1.0, 3.0))
    assert two == 2 * one == 2 * 16 * 2


def test_hours_on_a_cpu_are_said_before_work(short, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(LoadedPipeline, "profile", "large")
    monkeypatch.setattr(forecasting, "_times", lambda denoiser, memory: (100.0, 100.0))
    prepared = prepare(dataclasses.replace(short, forget_count=64, retain_count=256))
    sentence = forecasting.slowness(prepared)
    assert "hours" in sentence and "--device cuda" in sentence and "--set forget_count=16" in sentence
    _consider(False, prepared)  # not a terminal
    assert "hours" in capfd.readouterr().err
    monkeypatch.setattr(Terminal, "is_terminal", True)
    _consider(True, prepared)
    with pytest.raises(UserError, match="add --yes"):
        erase(short, tmp_path / "run", consider=lambda made: _consider(False, made))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(forecasting, "_times", lambda denoiser, memory: (1e-4, 1e-4))
    assert not forecasting.slowness(prepared)
    assert show.console.is_terminal
