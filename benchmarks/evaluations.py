"""Network evaluations of an erasure by stage, by the model's own sampler and by the few-step one: `python benchmarks/evaluations.py`.

Counted from the settings for a model of Stable Diffusion 1.4's size; nothing is run.
The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rows import DOCUMENT
from tables import markdown, publish

from sd_scissorhands.evaluations import evaluations_of
from sd_scissorhands.settings import EraseSettings

LARGE_OWN = dict(solver="own", sampling_steps=30)  # the model's own sampler
LARGE_FEW = dict(solver="few-step", sampling_steps=10)  # DPM-Solver++ 2M
STAGES = ("data", "held out", "scores", "repair", "proof")
RECIPES = ("scissorhands-open", "scissorhands", "esd")


def lines_of(recipe: str) -> list[list[str]]:
    """By the model's own sampler, by the few-step one, and where the cache has the pictures of the data."""
    asked = EraseSettings(recipe=recipe, concepts=("nudity",), guidance=7.5).resolved("large")
    own, few = (evaluations_of(replace(asked, **steps)) for steps in (LARGE_OWN, LARGE_FEW))
    drawn = evaluations_of(replace(asked, **LARGE_FEW, open_share=0.0))["data"]
    cached = few | {"data": few["data"] - drawn}  # what stays looks for the concept in pictures
    whole = sum(own.values())
    return [
        [recipe, name, *(f"{found.get(stage, 0):,}" for stage in STAGES), f"{sum(found.values()):,}", f"{sum(found.values()) / whole:.2f}"]
        for name, found in (("own sampler, 30 steps", own), ("few-step, 10 steps", few), ("few-step, data cached", cached))
    ]  # fmt: skip


def main() -> None:
    """Print the table and put it into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    given = parser.parse_args()
    header = f"recipe; pictures by; {'; '.join(STAGES)}; all; of own"
    text = markdown(header, [line for recipe in RECIPES for line in lines_of(recipe)])
    note = "Forward passes of one sample; Stable Diffusion's defaults, one concept, guidance 7.5; counted from the settings, a repair's teacher for every sample."
    print(text)
    publish("evaluations", f"{text}\n\n{note}", given.document)


if __name__ == "__main__":
    main()
