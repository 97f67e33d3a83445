"""The tables of docs/defaults.md: `python experiments/calibration.py [rates|failures|cost]`.

How far the starting rate may be wrong, whether a run that cannot succeed ever says "erased", and what the looks and the proof
take. Everything is a command of `sdscissor` on the embedded model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from columns import Cell, Rows, beside, mean, seconds, share
from runner import Options, Run, Table, main
from tables import machine, markdown

import sd_scissorhands

EMBEDDED = Path(sd_scissorhands.__file__).parent / "tiny" / "weights"
DOCUMENT = Path(__file__).parent.parent / "docs" / "defaults.md"
JUDGED = {"canvas": {"limit": 120}}
RATES = (1e-5, 1e-4, None, 2e-3, 1e-2)  # None: by the weights' own size
EXIT = {0: "says erased", 1: "refused, or no model", 4: "saved, not converged"}
FEW = ("forget_count = 16", "retain_count = 64", "guidance = 3.0")


def result_of(row: dict[str, Any]) -> dict[str, Any]:
    """What the run of a row came to."""
    return json.loads((Path(row["model"]).parent / "run.json").read_text())["result"]


def proved(rows: Rows) -> str:
    """In how many of the runs the proof stands."""
    return f"{sum(bool(result_of(row)['converged']) for row in rows)} of {len(rows)}"


def steps(rows: Rows) -> str:
    """Mean steps of the repair after the last return to the first weights."""
    return mean((result_of(row)["steps"] for row in rows), 0)


def interventions(rows: Rows) -> str:
    """What the calibration did, in order."""
    looks = [json.loads((Path(row["model"]).parent / "repair" / "looks.json").read_text()) for row in rows]
    return "; ".join(", ".join(one["did"] for one in own if one["did"]) or "nothing" for own in looks)


QUALITY: dict[str, Cell] = {
    "UA": share("canvas", "UA"),
    "UA synonyms": share("canvas", "UA_synonyms"),
    "IRA / original": beside("canvas", "IRA"),
    "CRA / original": beside("canvas", "CRA"),
    "open unchanged": share("canvas", "open_unchanged"),
    "unlisted unchanged": share("canvas", "unlisted_unchanged"),
}


def rate_named(rate: float | None) -> str:
    """A starting rate in words."""
    return "by the weights" if rate is None else f"{rate:g}"


def started(concept: str) -> list[Run]:
    """A run from every starting rate."""
    return [
        Run(f"rate {rate_named(rate)}", {"calibrate": True, **({"lr": rate} if rate else {})}, (concept,), 0, JUDGED)
        for rate in RATES
    ]  # fmt: skip


# ---------------------------------------------------------------- runs that cannot succeed


def failing(base: Path, random: Path) -> list[tuple[str, Sequence[str]]]:
    """What cannot succeed, and the flags of it; `base`: the embedded model without its mark, `random`: its classes with random weights."""
    tiny = ("--model", "tiny")
    return [
        *((f"5 steps, {concept}", (*tiny, "--concept", concept, "--steps", "5")) for concept in ("heart", "yellow")),
        *((f"one layer, {concept}", (*tiny, "--concept", concept, "--scope", r"mid_block\.attentions.*to_k")) for concept in ("heart", "yellow")),
        ("a rate of 1e-7, fixed", (*tiny, "--concept", "heart", "--lr", "1e-7")),
        ("no repair", (*tiny, "--concept", "heart", "--steps", "0")),
        *((f"the anchor is the concept: {anchor}", ("--model", str(base), "--concept", "a heart", "--anchor", anchor)) for anchor in ("a heart", "a red heart")),
        *((f"random weights, {concept}", ("--model", str(random), "--concept", concept, "--anchor", "a triangle")) for concept in ("a heart", "a ring")),
        *((f"a word the model does not know: {word}", ("--model", str(base), "--concept", word, "--anchor", "a thing")) for word in ("qqfz", "xwv")),
    ]  # fmt: skip


def made_random(base: Path, folder: Path) -> None:
    """A copy of a pipeline with random weights of the same spread in its UNet."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    file = next((folder / "unet").glob("*.safetensors"))
    torch.manual_seed(0)
    drawn = {
        name: torch.randn(t.shape) * (t.float().std() if t.numel() > 1 else 1) for name, t in load_file(file).items()
    }
    save_file({name: t.contiguous() for name, t in drawn.items()}, file)


def failures(options: Options) -> str:
    """What is printed by runs that cannot succeed."""
    root = options.root / "failures"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    base, config = root / "base", root / "few.toml"
    shutil.copytree(EMBEDDED, base)
    for mark in ("world.json", "judge.safetensors"):
        (base / mark).unlink()
    made_random(base, root / "random")
    config.write_text("\n".join(FEW) + "\n")
    lines = []
    for at, (name, flags) in enumerate(failing(base, root / "random")):
        words = ["erase", *flags, "--config", str(config), "--output-dir", str(root / f"run-{at}"), "--quiet"]
        done = subprocess.run([sys.executable, "-m", "sd_scissorhands", *words], capture_output=True, text=True)
        said = " ".join(done.stderr.split()).partition("error: ")[2]
        lines.append(
            (name, str(done.returncode), EXIT.get(done.returncode, "?"), said.rpartition("not converged: ")[2][:160])
        )
        print(lines[-1], flush=True)
    return f"{markdown('run; exit code; what that means; message', lines)}\n\n{machine()}"


# ---------------------------------------------------------------- what it takes


def cost(options: Options) -> str:
    """Seconds and memory of an erasure with looks and proof, and without, in turns."""
    lines = []
    for name, flags in (("with looks and proof", ()), ("without", ("--no-calibrate", "--no-verify"))) * 2:
        folder = options.root / "cost"
        shutil.rmtree(folder, ignore_errors=True)
        words = [
            "erase",
            "--model",
            "tiny",
            "--concept",
            "heart",
            "--output-dir",
            str(folder),
            *flags,
            "--json",
            "--quiet",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "sd_scissorhands", *words], stdout=subprocess.PIPE, text=True, check=True
        )
        manifest = json.loads((folder / "run.json").read_text())
        peak = max(stage.get("peak_bytes") or 0 for stage in manifest["stages"].values()) / 2**20
        lines.append((name, f"{json.loads(done.stdout)['seconds']:.0f}", f"{peak:.0f}"))
    return f"{markdown('erasure of heart; seconds; MiB', lines)}\n\n{machine()}"


TABLES = {
    "rates": Table(
        started("heart"),
        ("variant",),
        {"proof stands": proved, "what was done": interventions, "steps": steps, **QUALITY, "seconds": seconds},
    ),
    "failures": failures,
    "cost": cost,
}

if __name__ == "__main__":
    main(__doc__, TABLES, "runs/calibration", DOCUMENT)
