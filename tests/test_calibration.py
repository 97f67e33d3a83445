"""A repair that adjusts itself while it runs, and the proof of what it came to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_robust import Forgetful
from typer.testing import CliRunner

from sd_scissorhands import erase
from sd_scissorhands.cli import app, main
from sd_scissorhands.diffusion.dataset import pair_correlation
from sd_scissorhands.diffusion.held_out import Drawn
from sd_scissorhands.erasure import _remarks_on
from sd_scissorhands.errors import UserError
from sd_scissorhands.methods.calibration import RESTARTS, Calibration, Look, Plan
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.preparation import relative_rate
from sd_scissorhands.proof import proof_of
from sd_scissorhands.settings import EraseSettings

pytestmark = pytest.mark.usefixtures("four_at_a_time")

STEPS = 100


def looked(name: float = 0.3, moved: float = 0.1, other: float | None = None) -> Look:
    other = name if other is None else other
    return Look({"name": name, "near": name, "arbitrary": other, "generic": other}, {"captions": moved, "open": moved})


def steadily(step: int) -> Look:
    """As a repair goes that needs nothing."""
    return looked(max(0.3, 1 - step / 60))


def ran(look, lr: float = 1e-2, steps: int = STEPS) -> Repair:
    """A repair of the small network under a calibration that sees what `look` makes of the repair."""
    task = Forgetful(dtype=torch.float64)
    calibration = Calibration(lambda: look(repair), steps)
    repair = Repair(task, task.parameters, RepairSettings(steps, lr, 0.1, memory_every=10), calibration=calibration)
    repair.run()
    return repair


def weights(repair: Repair) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in repair.trained.tensors.items()}


def decided(repair: Repair) -> list[tuple[int, str]]:
    assert repair.calibration
    return [(look["step"], look["did"]) for look in repair.calibration.looks]


def test_a_repair_that_needs_nothing_runs_as_without_calibration():
    repair, task = ran(lambda repair: steadily(repair.step)), Forgetful(dtype=torch.float64)
    plain = Repair(task, task.parameters, RepairSettings(STEPS, 1e-2, 0.1, memory_every=10))
    plain.run()
    assert decided(repair) == [(20, ""), (40, ""), (50, ""), (80, ""), (100, "")]
    assert all(torch.equal(one, weights(plain)[name]) for name, one in weights(repair).items())


def test_gradients_that_an_earlier_training_left_are_not_learned_from():
    def repaired(left: float | None) -> dict[str, torch.Tensor]:
        task = Forgetful(dtype=torch.float64)
        for parameter in task.parameters.values():
            parameter.grad = None if left is None else torch.full_like(parameter, left)
        repair = Repair(task, task.parameters, RepairSettings(STEPS, 1e-2, 0.1, memory_every=10))
        repair.run()
        return weights(repair)

    assert all(torch.equal(one, repaired(None)[name]) for name, one in repaired(9.0).items())


def test_too_fast_begins_again_from_the_first_weights_at_a_quarter_of_the_rate():
    fast = ran(lambda repair: looked(0.5, 9.0) if repair.plan.lr > 1e-3 else steadily(repair.step))
    slow = ran(lambda repair: steadily(repair.step), lr=1e-2 / 16)
    assert decided(fast)[:2] == [(20, "too fast")] * 2 and fast.step == STEPS and fast.plan.lr == 1e-2 / 16
    assert all(torch.equal(one, weights(slow)[name]) for name, one in weights(fast).items())
    assert [record["step"] for record in fast.history] == list(range(STEPS))


def test_a_loss_that_is_not_finite_begins_again_and_gives_up_after_so_often():
    class Explodes(Forgetful):
        def repair(self, draw, part=None, adversary=None):
            forget, retain = super().repair(draw)
            return forget * (float("inf") if draw > 5 else 1.0), retain

    task = Explodes(dtype=torch.float64)
    calibration = Calibration(looked, STEPS)
    repair = Repair(task, task.parameters, RepairSettings(STEPS, 1e-2, 0.1), calibration=calibration)
    with pytest.raises(FloatingPointError, match="not finite"):
        repair.run()
    assert calibration.restarts == RESTARTS and repair.plan.lr == pytest.approx(1e-2 / 4**RESTARTS)


def test_too_slow_raises_the_rate_by_what_is_missing_and_counts_its_steps_anew():
    repair = ran(lambda repair: looked(0.95) if repair.plan.first == 0 else steadily(repair.step - 40))
    assert decided(repair)[:2] == [(20, ""), (40, "too slow")]
    assert repair.plan == Plan(pytest.approx(6e-2), 0.1, steps=40 + STEPS, first=40) and repair.step == 140


def test_what_is_not_gone_gets_half_of_the_steps_more_and_twice_the_weight():
    late = ran(lambda repair: looked(0.7 if repair.step <= 50 else 0.3))
    assert (50, "not done") in decided(late) and late.step == 150 and late.plan.forget_weight == 0.1
    stays = ran(lambda repair: looked(0.3, other=0.9 if repair.step <= 100 else 0.5))
    assert (100, "not done") in decided(stays) and stays.step == 150 and stays.plan.forget_weight == 0.2
    never = ran(lambda repair: looked(0.59, other=0.9))
    assert never.step == 200 and never.plan.forget_weight == pytest.approx(0.4)  # twice, and no more


def test_harm_lowers_the_weight_of_forgetting():
    repair = ran(lambda repair: looked(max(0.3, 1 - repair.step / 60), 0.75 if repair.step == 50 else 0.1))
    assert (50, "harmful") in decided(repair)
    assert repair.plan.forget_weight == pytest.approx(0.1 * torch.tensor(-0.25).exp().item())


def test_a_rate_goes_by_the_weights_own_size():
    weight = torch.nn.Parameter(torch.full((10, 10), 0.5))
    assert relative_rate(0.01, {"one": weight, "two": torch.nn.Parameter(-weight)}) == 0.005
    resolved = EraseSettings(concepts=("heart",)).resolved("small")
    assert resolved.lr is None and resolved.relative_lr and resolved.calibrate
    fixed = EraseSettings(concepts=("heart",), lr=1e-3).resolved("small")
    assert fixed.lr == 1e-3 and not fixed.relative_lr and not fixed.calibrate
    assert not EraseSettings(concepts=("heart",), steps=5).resolved("small").calibrate
    assert EraseSettings(concepts=("heart",), lr=1e-3, calibrate=True).resolved("small").calibrate


# ---------------------------------------------------------------- the proof


def proved(look: Look | None = None, *, shown=0, changed=0.1, original=32, pictures=32, explained=0.95):
    return proof_of(
        look or looked(), Drawn({"heart": shown, "star": 0}, changed),
        original={"heart": original, "star": 16}, pictures={"heart": pictures, "star": 16}, explained=explained,
    )  # fmt: skip


def test_the_verdict_is_gone_and_whole_or_says_what_is_not():
    good = proved()
    assert (
        good.converged and good.gone and good.whole and good.sentence.startswith("gone (left in 0 of the 48 pictures")
    )
    for bad, word, remedy in (
        (proved(looked(0.6)), "not gone", "stays most under its name"),
        (proved(looked(0.3, other=0.9)), "not gone", "arbitrary vectors"),
        (proved(shown=9), "not gone", "heart stays in the pictures"),
        (proved(changed=0.6), "the rest damaged", "--forget-weight"),
        (proved(looked(moved=1.5)), "the rest damaged", "--forget-weight"),
        (proved(original=15), "nothing to erase: heart: 15 of 32 of the original's own pictures", "--anchor"),
        (proved(explained=0.05), "cannot tell: the original finds 5%", "a model that draws"),
        (proved(looked(float("nan"))), "not gone", "its name"),
    ):
        assert not bad.converged and word in bad.sentence, bad
        assert remedy.removeprefix("--") in bad.remedy or remedy in bad.remedy, bad


PROVED = dict(
    forget_count=8,
    retain_count=16,
    sampling_steps=8,
    retain_sampling_steps=4,
    batch_size=4,
    memory_every=10,
    device="cpu",
)


def test_what_erased_nothing_does_not_say_erased(tmp_path: Path, monkeypatch, capsys):
    settings = {**PROVED, "model": "tiny", "concepts": ["heart"], "steps": 0}
    config = tmp_path / "nothing.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    monkeypatch.setattr(
        "sys.argv", ["sdscissor", "erase", "--config", str(config), "--output-dir", str(tmp_path / "run"), "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (
        ended.value.code == 4
        and found["converged"] is False
        and found["proof"]["shown"] == found["proof"]["original"] > 8
    )
    assert "not converged: not gone" in " ".join(err.split()) and (tmp_path / "run/model/model_index.json").exists()
    assert all(value == pytest.approx(1) for value in found["proof"]["left"].values())
    page = (tmp_path / "run/report.html").read_text()
    assert "Not erased: heart" in page and "Not converged" in page
    shown = CliRunner().invoke(
        app, ["erase", "--config", str(config), "--output-dir", str(tmp_path / "run"), "--resume"]
    )
    assert "NOT erased" in shown.output and shown.exit_code  # and so the finished run again


def test_random_weights_are_never_erased(foreign: Path, tmp_path: Path):
    import shutil

    model = tmp_path / "random"
    shutil.copytree(foreign, model)
    file = next((model / "unet").glob("*.safetensors"))
    torch.manual_seed(0)
    save_file(
        {
            name: torch.randn_like(t.float()).to(t.dtype) * t.float().std().to(t.dtype) if t.numel() > 1 else t
            for name, t in load_file(file).items()
        },
        file,
    )
    settings = EraseSettings(
        model=str(model), concepts=("a heart",), anchor="a triangle", guidance=3.0, steps=2, **PROVED
    )
    found = erase(settings, tmp_path / "run")
    assert found.converged is False and found.proof and found.proof.explained < 0.3


def test_a_word_that_the_model_does_not_know_is_nothing_to_erase(foreign: Path, tmp_path: Path):
    settings = EraseSettings(model=str(foreign), concepts=("qqfz",), anchor="thing", guidance=3.0, steps=1, **PROVED)
    found = erase(settings, tmp_path / "run")
    assert found.converged is False and found.proof and "nothing to erase" in found.proof.sentence


def test_a_calibrated_run_that_is_killed_continues_to_the_same_bits(tmp_path: Path):
    settings = EraseSettings(
        model="tiny",
        concepts=("heart",),
        lr=0.02,
        calibrate=True,
        scope="xattn",
        steps=12,
        **PROVED | {"batch_size": 2},
    )
    whole = erase_or_none(settings, tmp_path / "whole")
    looks = json.loads((tmp_path / "whole/repair/looks.json").read_text())
    assert looks[1]["did"] == "too fast" and looks[1]["step"] == 9  # and from the beginning again

    def stop(stage: str, total: int):
        from contextlib import nullcontext

        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            if stage == "repair" and done >= 12:
                raise KeyboardInterrupt

        return nullcontext(tick)

    with pytest.raises(KeyboardInterrupt):
        erase(settings, tmp_path / "cut", progress=stop)
    assert erase_or_none(settings, tmp_path / "cut", resume=True) == whole
    assert json.loads((tmp_path / "cut/repair/looks.json").read_text()) == looks


def erase_or_none(settings: EraseSettings, folder: Path, **how) -> str:
    """The hash of the erased weights, or the error where no model may be kept."""
    try:
        return erase(settings, folder, **how).weights_sha256
    except UserError as error:
        return str(error).partition(" holds ")[2]


def test_without_a_proof_nothing_is_claimed(short: EraseSettings, tmp_path: Path):
    found = erase(dataclasses.replace(short, verify=False), tmp_path / "run")
    assert found.converged is None and found.proof is None


def test_pairs_that_have_nothing_in_common_are_remarked_on():
    torch.manual_seed(0)
    forget = torch.randn(8, 4, 8, 8)
    twins = {"forget_latents": forget, "anchor_latents": forget + 0.5 * torch.randn_like(forget)}
    others = {"forget_latents": forget, "anchor_latents": torch.randn_like(forget)}
    alike, apart = pair_correlation(twins), pair_correlation(others)
    assert alike and apart and alike[0] > 0.8 and abs(alike[1]) < 0.1 and abs(apart[0]) < 0.1
    assert _remarks_on(alike, "paired") == [] and _remarks_on(apart, "retain") == []
    assert "have little in common" in _remarks_on(apart, "paired")[0]
    assert pair_correlation(others | {"forget_deviation": forget}) is None  # a user's pictures have no pairs


@pytest.mark.parametrize("anchor", ["a heart", "Heart", "the heart", "a red heart"])
def test_an_anchor_that_is_the_concept_is_refused(foreign: Path, tmp_path: Path, anchor: str):
    with pytest.raises(UserError, match="is the concept itself"):
        erase(EraseSettings(model=str(foreign), concepts=("a heart",), anchor=anchor), tmp_path / "run")
    assert not (tmp_path / "run/run.json").exists()
