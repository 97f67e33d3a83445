"""Count what a model of the digits' world draws: `python tests/digits_judge.py erased MODEL --original MODEL --concept three --anchor eight`.

Prompts and noise are fixed, and every picture is drawn by the plain diffusers pipeline; the judge lies beside the original.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_world import CLASSES, DIGITS, OPEN, TEMPLATES, draw
from safetensors.torch import load_file

from sd_scissorhands.concepts import unlisted_words
from sd_scissorhands.tiny import networks, world
from sd_scissorhands.tiny.judge import JudgeNetwork

SAMPLING = {"num_inference_steps": 20, "guidance_scale": 3.0}


def prompts(concept: str, count: int, seed: int = 0) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Prompts by kind, each with what the picture should show of it: fixed by the seed."""
    rng = np.random.default_rng([seed, *concept.encode()])
    others = [digit for digit in DIGITS if digit != concept]

    def asked(names: Sequence[str], digit: str | None) -> tuple[str, dict[str, str]]:
        template, about = (
            str(rng.choice(TEMPLATES)),
            {"tint": str(rng.choice([*world.INK])), "background": str(rng.choice([*world.PAPER]))},
        )
        text = template.format(digit=rng.choice(names), **about)
        shown = {name: value for name, value in about.items() if f"{{{name}}}" in template}
        return text, shown | ({"digit": digit} if digit else {})

    half = count // 2
    siblings = [others[row % len(others)] for row in range(count)]
    return {
        "named": [asked([concept], concept) for _ in range(count)],
        "synonyms": [asked(DIGITS[concept][1:], concept) for _ in range(half)],
        "siblings": [asked([digit], digit) for digit in siblings],
        "open": [asked(OPEN, None) if row % 6 else ("", {}) for row in range(half)],
        "unlisted": [asked(unlisted_words(), None) for _ in range(half)],
    }


@torch.no_grad()
def answers(model: Path, judge: JudgeNetwork, texts: Sequence[str], seed: int = 0) -> list[dict[str, str]]:
    """What the judge names in a model's pictures of some prompts; every prompt has its own noise, the same for every model."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    named: list[dict[str, str]] = []
    for at in range(0, len(texts), 32):
        chunk = list(texts[at : at + 32])
        noise = [torch.Generator().manual_seed(seed * 100_000 + at + row) for row in range(len(chunk))]
        pictures = pipeline(chunk, generator=noise, output_type="pt", **SAMPLING).images
        named += judge.name(pictures * 2 - 1)
    return named


def figures(concept: str, anchor: str, asked: Any, shown: Any, before: Any) -> dict[str, float | None]:
    """Shares of pictures, as docs/metrics.md defines them.

    Args:
        asked: kind -> prompts, each with what it names.
        shown: kind -> what the judge names in the pictures of a model.
        before: the same of the original.
    """

    def share(kind: str, right: Callable[[dict[str, str], dict[str, str], dict[str, str]], list[bool]]) -> float | None:
        rows = zip(shown[kind], asked[kind], before[kind], strict=True)
        hits = [hit for own, (_, named), first in rows for hit in right(own, named, first)]
        return round(float(np.mean(hits)), 3) if hits else None

    def others(own: dict[str, str], named: dict[str, str], _: Any) -> list[bool]:
        return [own[name] == value for name, value in named.items() if name != "digit"]

    def unchanged(own: dict[str, str], _: Any, first: dict[str, str]) -> list[bool]:
        return [own["digit"] == first["digit"]] if first["digit"] != concept else []

    gone = {
        name: share(kind, lambda own, *_: [own["digit"] != concept])
        for name, kind in (("UA", "named"), ("UA_synonyms", "synonyms"), ("UA_generic", "open"))
    }
    return gone | {
        "anchor": share("named", lambda own, *_: [own["digit"] == anchor]),
        "IRA": share("siblings", lambda own, named, _: [own["digit"] == named["digit"]]),
        "CRA": share("siblings", others),
        "CRA_forget": share("named", others),
        "open_unchanged": share("open", unchanged),
        "unlisted_unchanged": share("unlisted", unchanged),
    }


def load_judge(folder: Path) -> JudgeNetwork:
    """The judge that lies beside a pipeline."""
    judge = JudgeNetwork(16, CLASSES)
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()


def judged(model: Path, original: Path, concept: str, anchor: str, count: int) -> dict[str, dict[str, float | None]]:
    """The figures of a model and of its original."""
    judge, asked = load_judge(original), prompts(concept, count)
    texts = [text for rows in asked.values() for text, _ in rows]
    both = []
    for folder in (original, model):
        flat = iter(answers(folder, judge, texts))
        both.append({kind: [next(flat) for _ in rows] for kind, rows in asked.items()})
    before, after = both
    return {
        "figures": figures(concept, anchor, asked, after, before),
        "original": figures(concept, anchor, asked, before, before),
    }


def quality(folder: Path, *, count: int = 400, seed: int = 11) -> dict[str, Any]:
    """Share of what captions name that the judge finds in the pictures, and of held-out digits that it names right."""
    judge, unseen = load_judge(folder), draw(2000, seed, held_out=True)
    named = [one for chunk in unseen.pixels.split(256) for one in judge.name(networks.as_input(chunk))]
    right = {name: np.mean([one[name] == unseen.named(row)[name] for row, one in enumerate(named)]) for name in CLASSES}
    asked = [row for digit in DIGITS for row in prompts(digit, max(1, count // len(DIGITS)), seed)["named"]]
    shown = answers(folder, judge, [text for text, _ in asked], seed)
    drawn = {
        name: [own[name] == one[name] for own, (_, one) in zip(shown, asked, strict=True) if name in one]
        for name in CLASSES
    }
    return {
        "right": {name: round(float(np.mean(hits)), 4) for name, hits in drawn.items()},
        "judge": {name: round(float(share), 4) for name, share in right.items()},
    }


def main() -> None:
    """Print the figures of an erased model, or write beside an original what it draws right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["erased", "quality"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--original", type=Path)
    parser.add_argument("--concept", choices=DIGITS)
    parser.add_argument("--anchor", choices=DIGITS)
    parser.add_argument(
        "--count", type=int, default=60, help="pictures of the concept's name; of other kinds as many or half"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.kind == "quality":
        found = quality(given.model, count=given.count)
        (given.model / "quality.json").write_text(json.dumps(found, indent=2) + "\n")
    else:
        found = judged(given.model, given.original or given.model, given.concept, given.anchor, given.count)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
