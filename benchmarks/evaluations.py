"""Network evaluations of an erasure by stage, today's against the former ones: `python benchmarks/evaluations.py`.

Counted from the settings of the default recipe for a model of Stable Diffusion 1.4's size, and of the embedded model; nothing is run.
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

FORMER = dict(solver="own", sampling_steps=30)  # of large models, until the few-step solver
STAGES = ("data", "held out", "scores", "repair", "proof")
RECIPES = ("scissorhands-open", "scissorhands", "esd")


def lines_of(recipe: str) -> list[list[str]]:
    """Former, today's, and what is left where the cache has the pictures."""
    today = EraseSettings(recipe=recipe, concepts=("nudity",), guidance=7.5).resolved("large")
    now, before = evaluations_of(today), evaluations_of(replace(today, **FORMER))
    again = {name: count for name, count in now.items() if name != "data"}
    drawn = evaluations_of(replace(today, open_share=0.0))["data"]
    again["data"] = now["data"] - drawn
    whole = sum(before.values())
    return [
        [recipe, name, *(f"{found.get(stage, 0):,}" for stage in STAGES), f"{sum(found.values()):,}", f"{sum(found.values()) / whole:.2f}"]
        for name, found in (("former", before), ("today", now), ("today, data cached", again))
    ]  # fmt: skip


def main() -> None:
    """Print the table and put it into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    given = parser.parse_args()
    header = f"recipe; settings; {'; '.join(STAGES)}; all; of the former"
    text = markdown(header, [line for recipe in RECIPES for line in lines_of(recipe)])
    note = "Forward passes of one sample; Stable Diffusion's defaults, one concept, guidance 7.5; counted from the settings."
    print(text)
    publish("evaluations", f"{text}\n\n{note}", given.document)


if __name__ == "__main__":
    main()
