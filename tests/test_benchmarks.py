"""The benchmarks' plain baselines compute what the package computes, and their rows hold what is promised."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

gpu, memory, reference, rows, sd14, steps = (
    pytest.importorskip(name) for name in ("gpu", "memory", "reference", "rows", "sd14", "steps")
)

from sd_scissorhands.methods.method import Options, score  # noqa: E402
from sd_scissorhands.methods.project import PAPER_RULE  # noqa: E402

KEYS = {"name", "ours", "baseline", "ratio", "extra_bytes", "weights"}


@pytest.fixture(scope="module")
def scene():
    """The reference on pictures and words, and ours on their latents and conditions, at an eighth of the width."""
    torch.manual_seed(0)
    denoiser, encoders = sd14.build(8, 8), sd14.build_encoders(8)
    task, parameters, settings = sd14.erasure(denoiser, recipe="scissorhands", batch_size=1)
    plain = reference.Reference(denoiser, *encoders, parameters)
    return task, parameters, settings, plain


def shown(task, plain, side: str, purpose: str):
    """A batch for the reference whose latents and conditions ours has cached: the draw is that of step 0."""
    batch = reference.Batch.random(plain.denoiser)
    rows_, _, t, noise, *_ = task.batches.draw(side, purpose, 0)
    with torch.no_grad():
        latents = plain.vae.encode(batch.pictures).latent_dist.mode() * plain.vae.config.scaling_factor
        task.data[f"{side}_latents"][rows_] = latents
        task.data[f"{side}_condition"][:] = plain.words(batch.ids)[0]
    return reference.Batch(batch.pictures, batch.ids, t, noise)


def test_the_reference_takes_the_step_that_ours_takes(scene):
    task, parameters, settings, plain = scene
    forget, retain = (shown(task, plain, s, p) for s, p in (("forget", "repair"), ("retain", "repair retain")))
    anchor = torch.randint(1000, forget.ids.shape)
    with torch.no_grad():
        task.data["anchor_condition"][:] = plain.words(anchor)[0]
    task.data["empty_condition"] = task.data["retain_condition"][0]
    start = {name: p.detach().clone() for name, p in parameters.items()}
    ours = steps.Steps(task, parameters, settings)
    ours.step()
    moved = [{name: p.detach() - start[name] for name, p in parameters.items()}]
    assert all(ours.clock.seconds[part] > 0 for part in reference.PARTS[1:])
    for name, parameter in parameters.items():
        parameter.data.copy_(start[name])
    plain.prepare(settings.lr, ours.memory, PAPER_RULE, settings.forget_weight)
    plain.step(forget, anchor, retain)
    assert plain.conflict
    moved.append({name: p.detach() - start[name] for name, p in parameters.items()})
    apart = sum(float((a - b).square().sum()) for a, b in zip(*(m.values() for m in moved), strict=True))
    assert apart < 1e-4 * sum(float(a.square().sum()) for a in moved[0].values())
    assert all(seconds > 0 for seconds in plain.clock.seconds.values())
    ours.end()
    for name, parameter in parameters.items():
        parameter.data.copy_(start[name])


def test_the_reference_scores_as_ours_scores(scene):
    task, parameters, _, plain = scene
    batch = shown(task, plain, "forget", "forget")
    found, ours = plain.scores([batch]), score(task, parameters, "plain", Options(draws=1))
    total = sum(float(s.sum()) for s in ours.values())
    assert found.keys() == ours.keys() and total > 0
    for name, values in ours.items():
        assert torch.allclose(found[name] * total, values, rtol=1e-3, atol=1e-5 * float(values.max()))


def test_an_error_of_a_step_reaches_the_one_who_asks_for_it(scene):
    task, parameters, settings, _ = scene
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "repair", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            steps.Steps(task, parameters, settings).step()


def test_rows_and_tables_hold_what_is_promised(tmp_path):
    document = tmp_path / "benchmarks.md"
    names = ("steps", "parts", "forecast", "checkpointing")
    document.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
    bench = steps.Bench(8, 8, document, rounds=2)
    steps.repair(bench)
    steps.checkpointing(bench)
    rows.record([steps.foreseen("low", "data", 110, 100, 5)], document)
    recorded = json.loads(document.with_suffix(".json").read_text())
    assert {one["name"] for one in recorded} >= {"steps: repair, attn", "parts: ours", "parts: reference"}
    assert all(one.keys() >= KEYS for one in recorded)
    assert recorded[-1]["ratio"] == 1.1
    step = recorded[0]
    assert [len(step["rounds"][side]) for side in ("ours", "baseline", "ours_bytes", "probe_ms")] == [2] * 4
    assert step["ours"] > 0 and step["baseline"] > 0 and step["ratio"] > 0 and step["extra_bytes"] > 0
    text = document.read_text()
    assert "| repair, attn |" in text and "| ours |" in text and "times the activations" in text


def test_without_a_gpu_it_prints_so_and_ends_well():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "not measured: no GPU here"


def test_an_erasure_that_does_not_fit_into_the_time_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "forecast", lambda settings: SimpleNamespace(seconds={"data": 60.0}, scope_size=1))
    monkeypatch.setattr(gpu, "erase", lambda *given: pytest.fail("there is no time"))
    bench = gpu.Bench("cpu", True, 0.0, tmp_path)
    gpu.erasures(bench)
    assert len(bench.left_out) == len(gpu.MODES) and not bench.rows
    assert "Not measured, for lack of time: erase, balanced (about 60 s)" in gpu.note(bench, [])


def test_memory_is_counted_without_values():
    with memory.FakeTensorMode():
        layers = torch.nn.Sequential(*(torch.nn.Linear(100, 100, bias=False) for _ in range(3)))
        row, weights = torch.empty(1, 100), list(layers.parameters())

        def forward():
            with torch.no_grad():
                layers(row)

        assert memory.held(weights, forward) == 2 * 400  # one layer's output beside the next one's
        both = memory.held(weights, lambda: layers(row).sum().backward())
    assert 3 * 40_000 <= both <= 3 * 40_000 + 8 * 400  # gradients of all, and some rows


def test_memory_of_a_family_is_that_of_its_parts():
    small = dict(block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                 up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=16, layers_per_block=1)  # fmt: skip
    family = dataclasses.replace(memory.FAMILIES["SD 1"], config=sd14.SD14 | small, texts=())
    scope, stages = memory.forecast(family, memory="fast")
    assert stages.keys() == {"data", "repair"} and stages["data"] < stages["repair"]
    assert stages["repair"] > 40 * scope  # weights, teacher, gradients, moments and the adversary's
