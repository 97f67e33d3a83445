"""The judge that measures: right about drawings, wary of junk, and of one mind with the learned judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sd_scissorhands.tiny import JUDGE_FILE, MODEL_DIR, world
from sd_scissorhands.tiny.geometry import Geometry, centred, flattened, grow, shrink, templates
from sd_scissorhands.tiny.judge import load_judge
from sd_scissorhands.tiny.networks import SAMPLING, as_input
from sd_scissorhands.tiny.quality import judge_all

FLOORS = {"shape": 0.98, "colour": 0.99, "pattern": 0.98, "background": 0.99}


def test_drawings_are_named():
    rng = np.random.default_rng(41)
    seen = [world.sample(rng) for _ in range(400)]
    named = Geometry().name(np.stack([world.draw(d, rng) for d in seen]))
    for domain, floor in FLOORS.items():
        assert np.mean([n[domain] == getattr(d, domain) for n, d in zip(named, seen, strict=True)]) >= floor, domain


@pytest.mark.parametrize("kind", [kind for kind in world.JUNK_KINDS if kind != "blend"])
def test_junk_is_called_other_where_it_is(kind):
    rng = np.random.default_rng(42)
    drawn = [world.junk(rng, kind) for _ in range(100)]
    named = Geometry().name(np.stack([pixels for pixels, _ in drawn]))
    for domain in world.CATEGORIES:
        assert np.mean([n[domain] == truth[domain] for n, (_, truth) in zip(named, drawn, strict=True)]) >= 0.92, domain


def test_naming_repeats_and_knows_no_batch():
    rng = np.random.default_rng(43)
    pictures = np.stack([world.draw(world.sample(rng), rng) for _ in range(12)])
    whole = Geometry().name(pictures)
    assert whole == Geometry().name(pictures)
    assert whole == [Geometry().name(picture[None])[0] for picture in pictures]


def test_it_agrees_with_the_learned_judge_on_generated_pictures():
    rng, template = np.random.default_rng(44), "a {pattern} {colour} {noun} on a {background} background"
    prompts = [world.caption(world.sample(rng), rng, generic=0, template=template) for _ in range(32)]
    pixels = generated(prompts)
    measured = Geometry().name(pixels)
    learned = judge_all(load_judge(JUDGE_FILE), torch.from_numpy(pixels).permute(0, 3, 1, 2))
    for domain in world.CATEGORIES:
        assert np.mean([a[domain] == b[domain] for a, b in zip(measured, learned, strict=True)]) >= 0.9, domain
        assert np.mean([n[domain] == world.read(p)[domain] for n, p in zip(measured, prompts, strict=True)]) >= 0.9


def generated(prompts: list[str]) -> np.ndarray:
    """What the embedded model draws, as its card was measured: (B, 32, 32, 3) uint8."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    drawn = pipeline(
        prompts, num_inference_steps=SAMPLING["steps"], guidance_scale=SAMPLING["guidance"], generator=generators,
        output_type="np",
    ).images  # fmt: skip
    return (drawn * 255).round().astype(np.uint8)


def test_it_holds_where_the_learned_judge_can_be_fooled():
    """A change of 12 of 255 a channel, made against the learned judge, moves the one and not the other."""
    rng, judge = np.random.default_rng(45), load_judge(JUDGE_FILE)
    seen = [world.sample(rng) for _ in range(64)]
    pictures = torch.from_numpy(np.stack([world.draw(d, rng) for d in seen])).permute(0, 3, 1, 2)
    fooled = against(judge, pictures, [list(world.CATEGORIES["shape"]).index(d.shape) for d in seen], 12)
    shares = [
        np.mean([n["shape"] == d.shape for n, d in zip(named, seen, strict=True)])
        for named in (judge_all(judge, fooled), Geometry().name(fooled.permute(0, 2, 3, 1).numpy()))
    ]
    assert shares[0] < 0.5 and shares[1] > 0.9, shares


def against(judge, pictures: torch.Tensor, shapes: list[int], reach: int) -> torch.Tensor:
    """Pictures changed by at most `reach` a channel, in ten signed gradient steps, to be named other shapes."""
    changed = pictures.clone()
    for _ in range(10):
        seen = as_input(changed).requires_grad_()
        loss = torch.nn.functional.cross_entropy(judge(seen)["shape"], torch.tensor(shapes))
        step = torch.autograd.grad(loss, seen)[0].sign() * (reach / 5)
        moved = (changed.float() + step).clamp(pictures.float() - reach, pictures.float() + reach)
        changed = moved.clamp(0, 255).round().to(torch.uint8)
    return changed


def test_templates_are_the_worlds_own_shapes():
    outlines, owners = templates()
    assert set(outlines.reshape(-1).tolist()) == {0.0, 1.0} and set(owners) == set(range(8))
    circle = outlines[owners == 0].reshape(-1, 32, 32)
    areas = circle.sum((1, 2))
    assert abs(areas.max() - np.pi * (0.92 * 13) ** 2) < 15 and abs(areas.min() - np.pi * (0.92 * 8) ** 2) < 15


def test_masks_are_centred_grown_and_shrunk():
    mask = np.zeros((32, 32), bool)
    mask[2:5, 20:25] = True
    assert np.abs(np.argwhere(centred(mask)).mean(0) - 15.5).max() <= 0.5
    assert not centred(np.zeros((32, 32), bool)).any()
    assert grow(mask[None])[0].sum() == 5 * 7 and shrink(mask[None])[0].sum() == 1 * 3
    assert np.allclose(flattened([np.ones((128, 128), bool)]), 1)
