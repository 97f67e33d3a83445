"""The table of docs/experiments.md on other families: `python experiments/families.py`.

Small pipelines of each family's real classes are trained on the embedded world by tests/world_families.py until the judge finds
what captions name; then `sdscissor compare` erases, judges and attacks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runner import SMOKE_ERASURE, Options, Row, command, main
from tables import machine, markdown

TRAIN = Path(__file__).parent.parent / "tests" / "world_families.py"
FAMILIES = {"sd2": "SD 2", "sdxl": "SDXL"}
CONCEPTS = ("heart", "yellow")
RECIPE = "scissorhands-robust"
BESIDE = ("UA", "UA_generic", "IRA", "CRA", "CRA_forget", "asr")  # figures with the original's behind the stroke


def trained(family: str, options: Options) -> Path:
    """The directory of a family's pipeline, with the share that is drawn right in quality.json."""
    folder = options.root / family / "base"
    if not (folder / "quality.json").exists():
        subprocess.run(
            [sys.executable, TRAIN, family, folder, *(["--steps", "2"] if options.smoke else [])], check=True
        )
    return folder


def rows_of(family: str, options: Options) -> list[Row]:
    """The rows of the original and of what was erased from it."""
    few = ["--limit", 8, "--attack-steps", 3, *options.overlay(**SMOKE_ERASURE)] if options.smoke else ["--limit", 60]
    named = [word for concept in options.concepts or CONCEPTS for word in ("--concept", concept)]
    place = ["--model", trained(family, options), "--output-dir", options.root / family / "erased"]
    return command("compare", *named, *place, "--recipes", RECIPE, "--seeds", 1, "--restarts", 1, *few, "--quiet")[
        "rows"
    ]


def lines_of(family: str, options: Options) -> list[list[str]]:
    """A line for every concept."""
    rows = rows_of(family, options)
    right = json.loads((options.root / family / "base" / "quality.json").read_text())["right"]
    original = {row["concept"]: row for row in rows if row["recipe"] == "original"}
    lines = []
    for ours in (row for row in rows if row["recipe"] == RECIPE):
        both = {name: f"{ours[name]:.3f} / {original[ours['concept']][name]:.3f}" for name in BESIDE}
        first = [
            FAMILIES[family],
            ", ".join(f"{share:.3f}" for share in right.values()),
            ours["concept"],
            both.pop("UA"),
        ]
        lines.append([*first, f"{ours['UA_synonyms']:.3f}", *both.values(), f"{ours['seconds']:.0f}"])
    return lines


def families(options: Options) -> str:
    """What was erased from every family, beside the original."""
    header = (
        "family; drawn right: shape, colour, pattern, background; concept; UA / original; UA synonyms; UA generic / original; "
        "IRA / original; CRA / original; CRA forget / original; embedding ASR / original; seconds"
    )
    lines = [line for family in FAMILIES for line in lines_of(family, options)]
    return f"{markdown(header, lines)}\n\nSeed 0; 400 pictures behind what is drawn right. {machine()}"


if __name__ == "__main__":
    main(__doc__, {"families": families}, "runs/families")
