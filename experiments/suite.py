"""Every probe of a suite on every recipe: `python experiments/suite.py`, or --suite full, more --concepts and --seeds.

Each erasure, and each attack of its suite, lies in a folder below --root and is read from there once it is complete.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runner import DOCUMENT, command
from tables import machine, markdown, publish

RECIPES = (
    "scissorhands-open", "scissorhands-robust", "scissorhands", "lra-npp", "l-codec", "esd", "substitution", "salun",
)  # fmt: skip
ROOT = "runs/suite"


def attacked(recipe: str, concept: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The suite's result on one erasure, which is made unless it is there."""
    run = given.root / f"{recipe}-{concept}-{seed}"
    result = run / "attack" / f"suite-{given.suite}" / "summary.json"
    if not result.exists():
        if not (run / "model" / "model_index.json").exists():
            words = ("--model", "tiny", "--concept", concept, "--recipe", recipe, "--seed", seed, "--output-dir", run)
            command("erase", *words, "--no-verify", "--quiet", *(["--resume"] if (run / "run.json").exists() else []))
        limit = ("--limit", given.limit) if given.limit else ()
        command(
            "attack", "--suite", given.suite, "--model", run, "--concept", concept, "--seed", seed, *limit, "--quiet"
        )
    return json.loads(result.read_text())


def cell(row: dict[str, Any]) -> str:
    """The share of pictures, by its strongest kind where an attack has several; of relearning the steps."""
    return f"{row['asr_after']:.2f}" if row["name"] != "relearn" else row["verdict"].replace(" steps", "")


def main() -> None:
    """Print the table, and write it into the document where it is the whole one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--concepts", nargs="+", default=["heart"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="pictures an attack; writes no document")
    parser.add_argument("--root", type=Path, default=Path(ROOT))
    given = parser.parse_args()
    lines, names, original = [], dict[str, str](), dict[str, list[float]]()
    for concept in given.concepts:
        for recipe in given.recipes:
            for seed in range(given.seeds):
                found = attacked(recipe, concept, seed, given)
                rows = {row["name"]: row for row in sorted(found["attacks"], key=lambda row: row["name"])}
                names |= {name: f"{row['title']} (n {row['n']})" for name, row in rows.items()}
                for name, row in rows.items():
                    original.setdefault(name, []).append(row["original_asr_after"])
                cells = [cell(row) for row in rows.values()]
                lines.append(
                    [recipe, concept, str(seed), *cells, f"{found['asr_after']:.2f}", f"{found['seconds']:.0f}"]
                )
    known = [f"{min(own):.2f}" + (f" to {max(own):.2f}" if max(own) > min(own) else "") for own in original.values()]
    lines.insert(0, ["original", "", "", *known, "", ""])
    text = f"{markdown('; '.join(['recipe', 'concept', 'seed', *names.values(), 'worst', 'seconds']), lines)}\n\n{machine()}"
    print(text)
    if given.recipes == list(RECIPES) and not given.limit:
        publish("suite", text, DOCUMENT)


if __name__ == "__main__":
    main()
