"""The embedded model's world and judge, and the quality that the shipped card claims."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.errors import UserError
from sd_scissorhands.tiny import JUDGE_FILE, MODEL_DIR, world
from sd_scissorhands.tiny.judge import load_judge
from sd_scissorhands.tiny.quality import measure_judge, measure_pipeline
from sd_scissorhands.tiny.train import make_drawings, train_denoiser

CANVAS = DOMAINS["canvas"]


def test_drawings_repeat_with_the_generator_and_show_what_they_say():
    d = world.Drawing("circle", "red", "plain", "white")
    one, two = (world.draw(d, np.random.default_rng(3)) for _ in range(2))
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8 and np.array_equal(one, two)
    red = (one[..., 0] > 180) & (one[..., 1] < 90)
    assert 150 < red.sum() < 600 and (one[0, 0] > 240).all()


def test_captions_name_what_is_drawn():
    rng = np.random.default_rng(0)
    for _ in range(300):
        d = world.sample(rng)
        for domain, concept in world.read(world.caption(d, rng)).items():
            assert getattr(d, domain) == concept


def test_no_word_belongs_to_two_concepts():
    named = [w for concepts in world.CATEGORIES.values() for names in concepts.values() for w in names]
    assert len(named) == len(set(named)) and not set(named) & set(world.GENERIC_NOUNS)
    assert all(world.category_of(a) == world.category_of(c) and a != c for c, a in world.ANCHORS.items())


def test_a_concept_of_the_world_is_named_by_its_own_name_only():
    heart = world_concept("heart")
    assert len(heart.pairs) == 400
    for forget, twin in heart.pairs:
        assert world.read(forget)["shape"] == "heart" and world.read(twin)["shape"] == "triangle"
        assert not {"valentine", "lovesign"} & set(forget.split())
    assert not any("heart" in world.read(text).values() for text in CANVAS.captions(100, 0, tuple({"heart"})))


def test_words_are_told_apart_and_captions_fit():
    from transformers import CLIPTokenizer

    tokenizer, rng = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer"), np.random.default_rng(0)
    spelled = [tuple(tokenizer(word).input_ids) for word in world.words()]
    assert len(set(spelled)) == len(spelled) and tokenizer.unk_token_id not in {i for ids in spelled for i in ids[1:-1]}
    captions = [world.caption(world.sample(rng), rng) for _ in range(1000)]
    assert np.mean([len(tokenizer(text).input_ids) <= tokenizer.model_max_length for text in captions]) >= 0.99


def test_a_unet_can_be_trained_beside_a_text_encoder_that_stays(tmp_path):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", torch_dtype=torch.float32).eval()
    text, shipped = (CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder", torch_dtype=torch.float32) for _ in "ab")
    pictures, drawings = make_drawings(8, 0)
    told: list[int] = []
    kept, unet = train_denoiser(
        vae, pictures, drawings, tmp_path, steps=3, seed=1, text=text, log=lambda stage, step, *_: told.append(step)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), shipped.parameters(), strict=True))
    assert told == [0, 1, 2] and all(parameter.requires_grad for parameter in unet.parameters())


def test_words_outside_the_world_are_refused():
    with pytest.raises(UserError, match=r"not of the embedded model's world: choose one of circle"):
        CANVAS.resolve("nudity", None)
    with pytest.raises(UserError, match="must be another shape"):
        CANVAS.resolve("heart", "red")


def test_the_judge_meets_its_bars():
    figures = measure_judge(load_judge(JUDGE_FILE), drawings=2_000, seed=77)
    assert all(figures[domain] >= 0.99 for domain in world.CATEGORIES), figures
    assert all(figures[f"junk {domain}"] >= 0.97 for domain in world.CATEGORIES), figures


def test_the_model_draws_what_it_is_told():
    figures = measure_pipeline(MODEL_DIR, prompts=64, seed=5)
    assert figures["shape"] >= 0.93 and figures["colour"] >= 0.97 and figures["pattern"] >= 0.9, figures


def test_the_shipped_card_holds_the_bars():
    figures = json.loads((MODEL_DIR / "quality.json").read_text())["pipeline"]
    assert figures["shape"] >= 0.97 and all(figures[f"shape {c}"] >= 0.93 for c in world.CATEGORIES["shape"])
    assert figures["colour"] >= 0.99 and figures["background"] >= 0.99 and figures["pattern"] >= 0.95


def test_the_shipped_files_are_small_half_precision_and_no_pickle():
    files = [f for f in MODEL_DIR.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 12 * 2**20
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md", ".txt"}  # merges.txt
    from safetensors import safe_open

    with safe_open(MODEL_DIR / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
