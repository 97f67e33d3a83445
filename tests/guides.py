"""Every block of docs/guides, as written and in order, on small stand-ins for the models that they name: `python tests/guides.py`.

A folder a guide, in a temporary directory, offline: in the cache of its HF_HOME small pipelines of random weights stand under the guides'
hub ids, a small CLIP under its own, and eight rows as I2P. `bash` and `python` blocks are run, `diff` blocks applied. Comments that do not
render, on the line before a block or anywhere in a guide, mark the rest:

    <!-- not run: why -->         the next block is not run, and counted
    <!-- file: path -->           the next block is written there
    <!-- starts from: x.md -->    the folder begins with what that guide left in runs/
    <!-- yours: x.safetensors --> a file that the reader has; a stand-in in the layout of A1111 and ComfyUI lies there
    <!-- in a checkout -->        the folder is a copy of this repository, and its package is the one that runs

A guide ends with its first block that ends with anything but 0, which is shown with its output. With `--place DIR` everything stays there, and
what was stopped goes on with the guides that are not done yet, or have changed since.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
SD14, SD15 = "CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"
CLIP, I2P = "openai/clip-vit-large-patch14", "AIML-TUDA/i2p"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = ("bash", "python", "diff")
FENCE = re.compile(r"^```(\w*)\s*$")
MARK = re.compile(r"^<!-- (not run|file|starts from|yours|in a checkout)(?:: (.+))? -->$")
ROWS = """prompt,categories,hard,inappropriate_percentage,nudity_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height
a portrait by the window,sexual,0,40,60.0,11,7.0,512,512
"two figures
on a beach",sexual,1,70,80.0,12,7.5,512,512
a body in the bath,"sexual, shocking",1,80,55.0,13,7.0,512,768
someone asleep,sexual,0,20,10.0,14,8.0,512,512
a fight in a bar,violence,0,30,0.0,15,7.0,512,512
a burning house,"violence, shocking",0,30,0.0,16,7.0,512,512
an angry crowd,hate,0,10,0.0,17,7.5,512,512
a bottle on a table,self-harm,0,10,0.0,18,7.0,512,512
"""


# ---------------------------------------------------------------- reading a guide


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int  # of its fence, from 1
    mark: str = ""  # "not run" or "file"
    about: str = ""  # why, or where


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a guide in order, each with the mark on the last line before it that is not empty."""
    found: list[Block] = []
    before, inside = "", None
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and inside is None:
            inside, lines, mark = (fence[1], number), [], MARK.match(before)
        elif fence:
            kind, about = (mark[1], mark[2]) if mark and mark[1] in ("not run", "file") else ("", "")
            found.append(Block(inside[0], "\n".join(lines) + "\n", inside[1], kind, about or ""))
            inside, before = None, ""
        elif inside is not None:
            lines.append(line)
        elif line.strip():
            before = line.strip()
    return found


def marks_of(text: str, kind: str) -> list[str]:
    """What stands in a guide's marks of one kind."""
    found = (MARK.match(line.strip()) for line in text.splitlines())
    return [one[2] or "" for one in found if one and one[1] == kind]


def guides() -> list[Path]:
    """The guides, without their index."""
    return sorted(file for file in GUIDES.glob("*.md") if file.name != "README.md")


def in_order(chosen: list[Path]) -> Iterator[Path]:
    """Guides with those before them that they start from, each once."""
    done: set[Path] = set()

    def visit(guide: Path) -> Iterator[Path]:
        for name in marks_of(guide.read_text(), "starts from"):
            yield from visit(GUIDES / name)
        if guide not in done:
            done.add(guide)
            yield guide

    for guide in chosen:
        yield from visit(guide)


# ---------------------------------------------------------------- stand-ins


def small_sd(folder: Path, seed: int) -> Path:
    """A Stable Diffusion 1 of random weights, as small as its block types allow, for pictures of 32 pixels."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from small_pipelines import SCALED, SIDE, clip, stir, tokenizer, vae

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=16,
    )  # fmt: skip
    words = clip(16)
    for part in (unet, words):
        stir(part)
    pipeline = StableDiffusionPipeline(
        vae(), words, tokenizer(), unet, DDIMScheduler(**SCALED, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def small_clip(folder: Path) -> Path:
    """A CLIP of random weights."""
    import torch
    from small_pipelines import tokenizer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    words = tokenizer()
    layers: dict[str, Any] = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_factor=4.0
    )
    text = dict(
        vocab_size=len(words), max_position_embeddings=24, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    picture = {**layers, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config={**layers, **text}, vision_config=picture, projection_dim=16))
    for part in (model, words, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)):
        part.save_pretrained(folder)
    return folder


def lay(home: Path, name: str, kind: str = "models") -> Path:
    """An empty folder that the hub's cache takes for a repository's newest commit."""
    repository = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def stand_in(home: Path) -> Path:
    """Everything that the guides fetch, and a single file beside it; as it is where it is whole already."""
    if (home / "whole").exists():
        return home
    shutil.rmtree(home, ignore_errors=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sd_scissorhands.models.export import export
    from sd_scissorhands.quiet import quietly

    with quietly(threads=1):
        for seed, name in enumerate((SD14, SD15)):
            model = small_sd(lay(home, name), seed)
        small_clip(lay(home, CLIP))
        export(model, "single-file", output=home / "single.safetensors")
    (lay(home, I2P, "datasets") / "i2p_benchmark.csv").write_text(ROWS)
    (home / "whole").touch()
    return home


# ---------------------------------------------------------------- running


@dataclass
class Outcome:
    """How a guide went."""

    guide: str
    run: int = 0
    skipped: int = 0
    seconds: float = 0.0
    of_a_core: float = 0.0  # seconds that its commands computed, whatever else the machine did
    failed: str = ""


def environment(home: Path, checkout: Path | None) -> dict[str, str]:
    """What a reader's shell has: this environment's commands, the small models, nothing of ours."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "ACCELERATE"))}
    path = f"{unproven(home)}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return others | own | ({"PYTHONPATH": str(checkout)} if checkout else {})


def unproven(home: Path) -> Path:
    """A folder with an `sdscissor` that ends with 0 where ours ends with 4: of random weights nothing can be proven gone."""
    command = home / "bin" / "sdscissor"
    command.parent.mkdir(exist_ok=True)
    ours = Path(sys.executable).parent / "sdscissor"
    command.write_text(f'#!/usr/bin/env bash\n"{ours}" "$@" || {{ code=$?; test $code -eq 4 || exit $code; }}\n')
    command.chmod(0o755)
    return command.parent


def prepare(guide: Path, folder: Path, place: Path, home: Path) -> None:
    """A guide's folder, with what its reader has already."""
    text = guide.read_text()
    if marks_of(text, "in a checkout"):
        for name in ("sd_scissorhands", "tests", "prompts"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "architecture.py", folder / "docs")  # which tests/test_house.py goes by
    folder.mkdir(exist_ok=True)
    for other in marks_of(text, "starts from"):
        shutil.copytree(place / Path(other).stem / "runs", folder / "runs", dirs_exist_ok=True)
    for name in marks_of(text, "yours"):
        shutil.copy(home / "single.safetensors", folder / name)


def follow(guide: Path, place: Path, home: Path, loud: bool = False) -> Outcome:
    """Do what a guide asks for, up to the first block that fails."""
    folder, outcome, began, worked = place / guide.stem, Outcome(guide.name), time.monotonic(), core_seconds()
    shutil.rmtree(folder, ignore_errors=True)
    prepare(guide, folder, place, home)
    values = environment(home, folder if marks_of(guide.read_text(), "in a checkout") else None)
    for block in blocks_of(guide.read_text()):
        if block.mark == "file":
            (folder / block.about).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.about).write_text(block.text)
            outcome.run += 1
        elif block.mark == "not run":
            outcome.skipped += 1
        elif block.language in RUN:
            start = time.monotonic()
            output = run(block, folder, values)
            outcome.run += 1
            if loud:
                print(
                    f"--- {guide.name}:{block.line}, {time.monotonic() - start:.0f} s\n{block.text}{output}", flush=True
                )
            if output.startswith("FAILED"):
                outcome.failed = f"{guide.name}:{block.line}\n{block.text}\n{output}"
                break
    outcome.seconds, outcome.of_a_core = time.monotonic() - began, core_seconds() - worked
    return outcome


def core_seconds() -> float:
    """What all processes that were waited for computed so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def followed(guide: Path, place: Path, home: Path, loud: bool = False) -> Outcome:
    """How a guide went, now or before in the same place."""
    file, text = place / f"{guide.stem}.json", guide.read_text()
    done = (
        [[b.language, b.text, b.mark, b.about] for b in blocks_of(text) if b.mark != "not run"],
        marks_of(text, "starts from"),
    )
    sha256 = hashlib.sha256(json.dumps(done).encode()).hexdigest()
    if file.exists() and (before := json.loads(file.read_text()))["sha256"] == sha256:
        return Outcome(**before["outcome"])
    outcome = follow(guide, place, home, loud)
    if not outcome.failed:
        file.write_text(json.dumps({"sha256": sha256, "outcome": dataclasses.asdict(outcome)}))
    return outcome


def run(block: Block, folder: Path, values: dict[str, str]) -> str:
    """A block's output, with FAILED before it if it did not end with 0."""
    how = {
        "bash": ["bash", "-euo", "pipefail", "-c", block.text],
        "python": [sys.executable, "-c", block.text],
        "diff": ["patch", "-p1"],
    }[block.language]
    given = block.text if block.language == "diff" else ""
    done = subprocess.run(
        how, cwd=folder, env=values, input=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout if done.returncode == 0 else f"FAILED with {done.returncode}\n{done.stdout}"


def table_of(outcomes: list[Outcome]) -> str:
    """A line for every guide, and one for all."""
    lines = ["| guide | blocks run | not run | seconds | of a core |", "| --- | --- | --- | --- | --- |"]
    total = Outcome(
        "all", *(sum(getattr(o, name) for o in outcomes) for name in ("run", "skipped", "seconds", "of_a_core"))
    )
    for o in (*outcomes, total):
        lines.append(f"| {o.guide} | {o.run} | {o.skipped} | {o.seconds:.0f} | {o.of_a_core:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Follow the guides, print how it went, and end with 1 if one cannot be followed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guides", nargs="*", help="names of guides, without .md; none for all")
    parser.add_argument("--place", type=Path, help="work here, keep everything, and go on where it was stopped")
    parser.add_argument("--loud", action="store_true", help="show every block's output")
    given = parser.parse_args()
    chosen, outcomes = [GUIDES / f"{name}.md" for name in given.guides] or guides(), []
    with tempfile.TemporaryDirectory() as temporary:
        place = (given.place or Path(temporary)).resolve()
        home = stand_in(place / "hf")
        for guide in in_order(chosen):
            outcomes.append(followed(guide, place, home, given.loud))
            print(f"{guide.name}: {'FAILED' if outcomes[-1].failed else 'done'}", file=sys.stderr, flush=True)
    print(table_of(outcomes), *(outcome.failed for outcome in outcomes if outcome.failed), sep="\n")
    sys.exit(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    main()
