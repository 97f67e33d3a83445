"""The models of experiments/models.py: what the digits' world shows, how it is counted, and what the table is made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import digits_judge
import digits_world
import numpy as np
import torch
import world_families

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.tiny import networks, world

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

import models
import runner

NAMED = {"digit": "three", "tint": "red", "background": "pink"}


# ---------------------------------------------------------------- the digits' world


def test_a_digit_has_the_tint_and_the_background_that_it_is_listed_with():
    drawn = digits_world.draw(40, 3)
    again, other = digits_world.draw(40, 3), digits_world.draw(40, 4)
    assert torch.equal(drawn.pixels, again.pixels) and not torch.equal(drawn.pixels, other.pixels)
    for row, pixels in enumerate(drawn.pixels):
        found = {tuple(colour) for colour in pixels.flatten(1).T.tolist()}
        named = drawn.named(row)
        assert {world.INK[named["tint"]], world.PAPER[named["background"]]} <= found


def test_no_digit_of_the_judge_s_test_is_one_that_training_saw():
    (seen, _), (unseen, _) = digits_world.strokes(held_out=False), digits_world.strokes(held_out=True)
    assert len(seen) + len(unseen) == 1797 and len(unseen) == digits_world.HELD_OUT


def test_captions_name_what_is_drawn_in_words_of_one_token():
    tokenizer, rng = networks.build_tokenizer(digits_world.words()), np.random.default_rng(0)
    assert all(len(tokenizer(word).input_ids) == 3 for names in digits_world.DIGITS.values() for word in names)
    captions = [digits_world.caption(NAMED, rng) for _ in range(300)]
    named = [text for text in captions if {"three", "3"} & set(text.replace(",", "").split())]
    assert 200 <= len(named) <= 270 and 10 <= captions.count("") <= 60
    others = {*digits_world.DIGITS, *world.INK} - {"three", "red"}
    assert not [text for text in captions if others & set(text.split())]


def test_prompts_are_the_same_every_time_and_say_what_they_ask_for():
    asked = digits_judge.prompts("three", 12)
    assert asked == digits_judge.prompts("three", 12) != digits_judge.prompts("four", 12)
    assert all("three" in text and shown["digit"] == "three" for text, shown in asked["named"])
    assert all("three" not in text and shown["digit"] != "three" for text, shown in asked["siblings"])
    assert ("", {}) in asked["open"] and not any("digit" in shown for _, shown in asked["open"] + asked["unlisted"])


def test_figures_count_the_digit_its_siblings_and_the_rest_apart():
    kinds = ("named", "synonyms", "siblings", "open", "unlisted")
    asked = {kind: [("", NAMED), ("", NAMED | {"digit": "four"})] for kind in kinds}
    eight = NAMED | {"digit": "eight"}
    shown = {kind: [eight, eight | {"tint": "blue"}] for kind in kinds}
    before = shown | {"open": [NAMED, eight], "unlisted": [eight, NAMED | {"digit": "two"}]}
    assert digits_judge.figures("three", "eight", asked, shown, before) == {
        "UA": 1, "UA_synonyms": 1, "UA_generic": 1, "anchor": 1, "IRA": 0, "CRA": 0.75, "CRA_forget": 0.75,
        "open_unchanged": 1, "unlisted_unchanged": 0.5,
    }  # fmt: skip


def test_a_pipeline_and_its_judge_come_out_and_are_counted(tmp_path):
    folder = tmp_path / "digits"
    digits_world.train(folder, steps=1, judge_steps=1, count=30)
    found = digits_judge.judged(folder, folder, "three", "eight", 2)
    assert found["figures"] == found["original"] and found["figures"]["unlisted_unchanged"] in (1, None)
    assert (folder / "model_index.json").exists() and not (folder / "world.json").exists()


# ---------------------------------------------------------------- widths


def test_a_unet_of_twice_the_width_computes_the_same(monkeypatch):
    from diffusers import UNet2DConditionModel

    monkeypatch.setattr(world_families, "NOISE", 0.0)
    torch.manual_seed(0)
    given = torch.randn(2, 4, 8, 8), torch.tensor([900, 50]), torch.randn(2, 24, 64)
    with torch.no_grad():
        old = world_families.part(UNet2DConditionModel, "unet")(*given).sample
        new = world_families.wide().unet(*given).sample
    assert torch.allclose(old, new, atol=1e-4)


def test_one_token_of_zeros_stands_for_all_of_them_in_training():
    torch.manual_seed(0)
    d = Denoiser(world_families.sd3())
    for parameter in d.module.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    ids = torch.cat([encoder.ids(["a red heart", ""]) for encoder in d.family.encoders], 1)
    given = torch.randn(2, 4, 8, 8), torch.tensor([900, 50])
    with torch.no_grad():
        whole = d.predict(*given, d.family.condition(ids))
        with world_families.computed_as_one(d, 256):
            assert d.family.condition(ids).shape[1] < 30
            short = d.predict(*given, d.family.condition(ids))
        again = d.predict(*given, d.family.condition(ids))
    assert torch.allclose(whole, short, atol=1e-5) and torch.equal(whole, again)


# ---------------------------------------------------------------- the table


def test_a_line_of_the_table_has_what_erase_eval_and_attack_print(tmp_path):
    def write(file: str, found: object) -> None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(found))

    figures = dict.fromkeys((*models.BESIDE, *models.ALONE, "UA_synonyms"), 1.0)
    for name, concept in (("half", "heart"), ("digits", "three")):
        write(f"{name}/quality.json", {"right": {"shape": 0.98}})
        write(f"erased/{name}-{concept}-0/erase.json", {"model_dir": "m", "converged": True, "seconds": 50.2})
        write(f"erased/{name}-{concept}-0/eval.json", {"figures": figures, "original": {"UA": 0.0, "IRA": 0.99}})
    write("erased/half-heart-0/attack.json", {"asr_after": 0.02, "original": {"asr_after": 1.0}})
    write("erased/half-heart-1/erase.json", {"model_dir": None})
    options = runner.Options(tmp_path, None, ("heart",), False)
    lines = models.table(("half",), options).splitlines()
    assert lines[2].startswith("| half the width | heart | 0 | true | 1.000 / 0.000 | 1.000 /  | 1.000 / 0.990 |")
    assert lines[2].endswith("| 1.000 | 1.000 | 1.000 | 0.02 / 1.00 | 50 |")
    assert lines[3].startswith("| half the width | heart | 1 | no model |") and lines[3].count("|") == lines[2].count(
        "|"
    )
    assert "half the width shape 0.980" in lines[-1]
    digits = models.table(("digits",), runner.Options(tmp_path, 1, ("three",), False)).splitlines()[2]
    assert digits.endswith("| 1.000 |  | 50 |") and digits.count("|") == lines[2].count("|")


def test_a_model_of_a_run_is_compared_with_what_it_was_erased_from(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"model": "somewhere/base"}}))
    assert models.original_of(tmp_path / "model") == Path("somewhere/base")
    assert models.original_of(tmp_path / "other" / "model") == tmp_path / "other" / "model"
