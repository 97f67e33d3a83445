"""What a newcomer meets: every figure in README.md is that of the file it was printed into, and make finds a Python."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

from sd_scissorhands.attacks import ATTACKS
from sd_scissorhands.attacks.relearn import RelearnOptions
from sd_scissorhands.tiny.world import CATEGORIES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import methods  # noqa: E402

WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
NUMBER = re.compile(rf"(?<![A-Za-z\d])\d+(?:\.\d+)*|\b(?:{'|'.join(WORDS[2:])})\b", re.IGNORECASE)
CAPTION = re.compile(r"^Seeds ([\d, ]+)\..*embedding-three-once: (\d+);", re.MULTILINE)
MEASURES_NOTHING = (  # numbers of names, versions and settings; what torch takes is its own matter
    "An installation takes 2 GB",
    "was not measured: its weights", "erases a concept from Stable Diffusion", "95 % interval", "answers four questions",
    "with exit code", "with the embedded model", "the three papers", "Apache-2.0.", "AGPL-3.0",
)  # fmt: skip


def units() -> list[str]:
    """README.md without its blocks of code and the targets of links, by sentences, headings and rows of tables."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    blocks = re.split(r"\n\s*\n|\n(?=[-|#])", text)
    return [one for text in blocks for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split()))]


def numbers(text: str) -> list[str]:
    """The numbers of a text in their order, words among them as digits."""
    return [str(WORDS.index(one.lower())) if one.lower() in WORDS else one for one in NUMBER.findall(text)]


def table(document: str, name: str) -> list[dict[str, str]]:
    """The rows of the table between the marks of `name`, each by the heads of its columns."""
    return rows_of(between(document, name))


def between(document: str, name: str) -> str:
    """What was printed between the marks of `name`."""
    return (ROOT / "docs" / document).read_text().split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def rows_of(text: str) -> list[dict[str, str]]:
    head, _, *rows = (
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("|")
    )
    return [dict(zip(head, row, strict=False)) for row in rows]


def column(rows: list[dict[str, str]], begins: str) -> dict[str, list[float]]:
    """First cell of a row -> the numbers in the cell of the column whose head begins so."""
    name = next(name for name in rows[0] if name.startswith(begins))
    return {
        next(iter(row.values())): [float(one) for one in re.findall(r"\d*\.?\d+", row.get(name, ""))] for row in rows
    }


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def ends(values: Iterable[float]) -> list[str]:
    """The least and the greatest, as whole numbers."""
    found = sorted(values)
    return [f"{found[0]:.0f}", f"{found[-1]:.0f}"]


def results() -> dict[str, list[str]]:
    """What a unit says -> the numbers that have to stand in it: of the table `open` of docs/experiments.md."""
    rows = table("experiments.md", "open")
    named, siblings, rest, opened = (column(rows, head) for head in ("UA", "IRA", "CRA /", "open unchanged"))
    attacked, steps = column(rows, "three embeddings"), column(rows, "steps until")
    concepts = [name for name in named if name != "mean"]
    yellow, blue = min(concepts, key=named.__getitem__), min(concepts, key=siblings.__getitem__)
    back = [
        ends(steps[name][0] for name in concepts if (name in CATEGORIES["colour"]) is colour)
        for colour in (False, True)
    ]
    assert all(one == [0, 0] for one in attacked.values())
    seeds, pictures = CAPTION.findall(between("experiments.md", "open"))[0]
    assert abs(1 - opened["mean"][0] - 1 / 3) < 0.05, "a third of the open prompts"
    archive = (ROOT / "docs/archive.md").read_text().split("\n\n")
    older = next(rows_of(part) for part in archive if "three embeddings ASR (worst) / original" in part)
    original = column(older, "three embeddings")["mean"][-1]
    return {
        "eight concepts, three training seeds": [str(len(concepts)), str(len(seeds.split(",")))],
        f"worst, {yellow}": [percent(1 - named[name][0]) for name in ("mean", yellow)],
        f"worst, {blue}": [*map(percent, (*siblings["mean"][::-1], siblings[blue][0]))],
        "everything else right": [*map(percent, rest["mean"][::-1])],
        "open prompts as before": [f"{100 * one:.0f}" for one in opened["mean"][::-1]],
        "three learned embeddings bring it back": ["3", f"{100 * original:.0f}", "0", pictures],
        "fine-tuning steps until it is back": [*back[0], *back[1]],
    }  # fmt: skip


def others() -> dict[str, list[str]]:
    """The same of other tables and of declarations."""
    rows = table("experiments.md", "models")
    gone = column(rows, "UA /")
    lost = [float(row["UA / original"].split(" /")[0]) for row in rows]
    text = (ROOT / "docs/experiments.md").read_text()
    concepts, seeds = results()["eight concepts, three training seeds"]
    suite = column(table("experiments.md", "full-recipes"), "scissorhands-open")
    learned = max(max(shares) for name, shares in suite.items() if name.startswith("embedding"))
    weaker = [1 - int(part) / int(whole) for part, whole in re.findall(r"at seed \d: [\d.]+ %, (\d+) of (\d+)", text)]
    return {
        "Six other models": [str(len(gone)), *ends(100 * one for one in lost), str(len(rows))],
        "erasures left the concept": [str(len(weaker)), str(int(concepts) * int(seeds)), *ends(100 * one for one in weaker)],
        "Fine-tuning on eight pictures": [str(RelearnOptions.few)],
        "The full suite on": [str(len(methods.ERASED)), str(len(methods.SEEDS)), str(len(methods.CONCEPTS))],
        "Inpainting brings most back": [f"{100 * one:.0f}" for one in (*suite["inpainting"], learned)],
        "fourteen attacks": [str(len(ATTACKS.names()))],
    }  # fmt: skip


def requirements() -> dict[str, list[str]]:
    """The same of what it takes."""
    found = {one["name"]: one for one in json.loads((ROOT / "docs/benchmarks.json").read_text())}
    erased, saved = found["gpu: erase --concept nudity --memory balanced"], found["formats: diffusers, float32"]
    cost = [row for row in table("defaults.md", "cost") if row["erasure of heart"].startswith("with looks")]
    parts = [safe_open(file, "pt") for file in (ROOT / "sd_scissorhands/tiny/weights").glob("*/*.safetensors")]
    low = column([{"family": row["family"], "low": row["low"]} for row in table("families.md", "memory")], "low")
    size = sum(math.prod(part.get_slice(name).get_shape()) for part in parts for name in part.keys())  # noqa: SIM118
    clip = re.findall(r"download of ([\d.]+) GB", (ROOT / "sd_scissorhands/evaluation/judges/clip.py").read_text())
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    return {
        "or newer, `pip` and `make`": [python],
        "is a download of": ["1.4", f"{saved['file_bytes'] / 1e9:.0f}", *clip],
        "| embedded,": [f"{size / 1e6:.1f}", *ends(float(row["seconds"]) for row in cost)],
        "| SDXL,": [f"{low['SDXL'][0]:.0f}"],
        "SD 1.4's size": ["1.4", f"{erased['extra_bytes'] / 2**30:.1f}", f"{erased['ours']:.0f}"],
    }  # fmt: skip


def test_every_figure_is_that_of_the_file_it_was_printed_into():
    found = results() | others() | requirements()
    for unit in units():
        known = [phrase for phrase in found if phrase in unit]
        if known:
            assert numbers(unit) == found.pop(known[0]), unit
        else:
            assert not numbers(unit) or any(phrase in unit for phrase in MEASURES_NOTHING), (
                f"no file is named for: {unit}"
            )
    assert not found, "README.md no longer has these figures"


def test_make_finds_any_python_from_311_on_and_says_which_it_needs(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    make, old, new = shutil.which("make"), tmp_path / "old/python3", tmp_path / "new/python3.14"
    for file, answer in ((old, 1), (new, 0)):
        file.parent.mkdir()
        file.write_text(f"#!/bin/sh\nexit {answer}\n")
        file.chmod(0o755)

    def made(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [make, ".venv/ready", *arguments], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True
        )

    for done in (made(path=""), made(path=f"{old.parent}"), made(f"PYTHON={old}", path="")):
        assert (
            done.returncode == 2 and "needs Python 3.11 or newer" in done.stdout and not (tmp_path / ".venv").exists()
        )
    assert f"{new} -m venv .venv" in made("--dry-run", path=f"{old.parent}:{new.parent}").stdout
