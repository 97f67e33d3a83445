"""A family that was taught the embedded world forgets a concept of it, and only that: a predictor of velocity, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import world_families as families

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.erasure import erase
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.tiny import JUDGE_FILE, world
from sd_scissorhands.tiny.judge import load_judge

LESSON = families.Lesson(families.sd2, steps=80, batch=16, drawings=300)
OTHERS = ("ring", "star", "cross", "square")


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """SD 2's classes with what fits of the embedded weights, which predicted noise, after a short training on velocity."""
    folder = tmp_path_factory.mktemp("families") / "base"
    families.teach(LESSON, folder, seed=0)
    return folder


def right(model: str, shapes: Sequence[str], count: int = 24) -> float:
    """Share of pictures in which the judge finds the shape that they were to show."""
    d, asked = Denoiser(open_pipeline(model).pipeline), [shapes[n % len(shapes)] for n in range(count)]
    colours = list(world.CATEGORIES["colour"])
    prompts = [f"a {colours[n % 6]} {shape} on a white background" for n, shape in enumerate(asked)]
    said = load_judge(JUDGE_FILE).name(d.decode(d.generate(prompts, range(count), steps=12, guidance=3.0)))
    return sum(one["shape"] == shape for one, shape in zip(said, asked, strict=True)) / count


def test_a_velocity_predictor_forgets_a_shape_and_keeps_the_others(taught, tmp_path):
    settings = EraseSettings(
        concepts=("heart",), model=str(taught), conditions="name", relearn_every=0, forget_weight=0.5, forget_count=24,
        retain_count=64, steps=60, lr=1e-3, batch_size=8, seed=0, device="cpu",
    )  # fmt: skip
    erased = erase(settings, tmp_path / "run").model_dir
    before, after = ((right(str(model), ("heart",)), right(str(model), OTHERS)) for model in (taught, erased))
    assert before[0] >= 0.75 and before[1] >= 0.6
    assert after[0] <= 0.25 and after[1] >= 0.55
