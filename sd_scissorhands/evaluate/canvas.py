"""The embedded world's own evaluation: what was erased, what its synonyms draw, and what else can still be drawn."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..concepts import of_world
from ..diffusion.denoiser import Denoiser
from ..diffusion.load import Opened
from ..run import Progress, silent, write_json
from ..settings import UserError
from ..tiny import JUDGE_FILE, world
from ..tiny.judge import Judge, load_judge
from .ledger import Ledger
from .prompts import Row
from .sample import Sampling, draw, open_for_sampling, to_pixels

BATCH = 32
SAMPLES = 8  # pictures kept of each kind, for the report
FIGURES = ("UA", "UA_synonyms", "IRA", "CRA", "CRA_forget")


def evaluate(
    model: str,
    baseline: str,
    concept: str,
    folder: Path,
    *,
    seed: int = 0,
    count: int = 500,
    batch_size: int = BATCH,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a model and its original on the same prompts and seeds, and write `folder`/summary.json.

    Args:
        model, baseline: pipeline directories made from the embedded model, or "tiny".
        concept: a word of the embedded world.
        count: pictures for UA and for IRA, each; half as many for synonyms.

    Returns:
        The summary: figures, n, the original's figures, hashes, seconds, samples.

    Raises:
        UserError: an unknown concept, a model of another world, a folder that holds another evaluation.
    """
    began, concept = time.monotonic(), of_world(concept.lower()).name
    rows = canvas_rows(concept, seed=seed, count=count)
    told, opened_as = {}, {}
    for name, source in (("model", model), ("original", baseline)):
        opened, denoiser = open_for_sampling(source, device)
        opened_as[name] = opened
        told[name] = measure(
            opened,
            denoiser,
            concept,
            rows,
            seed=seed,
            folder=folder,
            name=name,
            batch_size=batch_size,
            progress=progress,
        )
    summary = {
        "kind": "canvas", "concept": concept, "seed": seed,
        "model": model, "weights_sha256": opened_as["model"].weights,
        "baseline": baseline, "baseline_sha256": opened_as["original"].weights,
        "figures": told["model"]["figures"], "n": told["model"]["n"], "original": told["original"]["figures"],
        "sampling": asdict(Sampling.of(opened_as["model"])), "seconds": round(time.monotonic() - began, 2),
        "samples": samples(rows, told["model"], told["original"]),
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    return summary


def canvas_rows(concept: str, *, seed: int, count: int) -> dict[str, list[Row]]:
    """The prompts of an evaluation: `forget` and `retain`, `count` each, and half as many `synonym`.

    No forget prompt is among those that the erasure learns from. Retain prompts name another concept of the same domain.
    """
    domain, rng = str(world.domain_of(concept)), np.random.default_rng([seed, 2_000_003])
    seen = {forget for forget, _ in of_world(concept).pairs}
    others = [c for c in world.DOMAINS[domain] if c != concept]
    synonyms = world.DOMAINS[domain][concept][1:]

    def caption(subject: str, spoken: str | None = None) -> str:
        while True:
            text = world.caption(world.sample(rng).replace(subject), rng, synonyms=0, generic=0)
            if subject in text.split() and text not in seen:
                return " ".join(spoken if spoken and w == subject else w for w in text.split())

    kinds = {
        "forget": [caption(concept) for _ in range(count)],
        "synonym": [caption(concept, str(rng.choice(synonyms))) for _ in range(count // 2)],
        "retain": [caption(str(rng.choice(others))) for _ in range(count)],
    }
    rows, number = {}, 0
    for kind, prompts in kinds.items():
        rows[kind] = [Row(number + n, prompt, seed * 1_000_000 + number + n) for n, prompt in enumerate(prompts)]
        number += len(prompts)
    return rows


def measure(
    opened: Opened,
    denoiser: Denoiser,
    concept: str,
    rows: dict[str, list[Row]],
    *,
    seed: int,
    folder: Path,
    name: str,
    batch_size: int,
    progress: Progress,
) -> dict[str, Any]:
    """Draw every prompt, ask the judge, and count; continues a ledger that was cut off.

    Args:
        concept: a concept of the embedded world, by its own name.
        folder: where `name`.jsonl and samples/ go.

    Returns:
        figures and n, see `figures`; samples: what the kept pictures show.

    Raises:
        UserError: the model does not draw the embedded world.
    """
    if not opened.world:
        raise UserError(
            f"--canvas judges the embedded model's world, and {opened.name} is not made from it: use --i2p or --prompts"
        )
    sampling, judge = Sampling.of(opened), load_judge(JUDGE_FILE)
    asked = [row for kind in rows.values() for row in kind]
    texts = hashlib.sha256(json.dumps([row.prompt for row in asked]).encode()).hexdigest()
    header = {
        "weights_sha256": opened.weights,
        "concept": concept,
        "seed": seed,
        "prompts_sha256": texts,
        **asdict(sampling),
    }
    ledger = Ledger(folder / f"{name}.jsonl", header)
    kept = {row.number for kind in rows.values() for row in kind[:SAMPLES]}
    todo = [row for row in asked if row.number not in ledger.records]
    with progress(f"drawing with the {name} model", len(asked)) as tick:
        tick(len(asked) - len(todo))
        for chunk, pictures in draw(denoiser, todo, sampling, batch_size=batch_size, tick=tick):
            _keep_samples(folder / "samples", name, chunk, to_pixels(pictures), kept)
            ledger.add(_judged(judge, chunk, pictures))
    return figures(concept, rows, ledger.records)


def _judged(judge: Judge, chunk: Sequence[Row], pictures) -> list[dict[str, Any]]:
    said = judge.name(pictures)
    return [
        {"number": r.number, "prompt": r.prompt, "seed": r.seed, "says": s} for r, s in zip(chunk, said, strict=True)
    ]


def _keep_samples(folder: Path, name: str, chunk: Sequence[Row], pixels: np.ndarray, kept: set[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row, picture in zip(chunk, pixels, strict=True):
        if row.number in kept:
            Image.fromarray(picture).save(folder / f"{row.number}-{name}.png")


def figures(concept: str, rows: dict[str, list[Row]], records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Count what the judge said.

    Returns:
        UA, unlearning accuracy: share of pictures for prompts naming the concept in which the judge does not see it.
        UA_synonyms: the same for prompts that name it by a synonym.
        IRA, in-domain retain accuracy: share of prompts naming another concept of the domain that are drawn right.
        CRA, cross-domain retain accuracy: share of the other domains' words in those prompts that are drawn right.
        CRA_forget: the same on the prompts that name the concept.
        n: figure -> pictures (for CRA, words) counted. says: row number -> what the judge saw in the concept's domain.
    """
    domain = str(world.domain_of(concept))
    asked = {
        kind: [(world.read(row.prompt), records[row.number]["says"]) for row in some] for kind, some in rows.items()
    }
    hits = {
        "UA": [says[domain] != concept for _, says in asked["forget"]],
        "UA_synonyms": [says[domain] != concept for _, says in asked["synonym"]],
        "IRA": [says[domain] == named[domain] for named, says in asked["retain"]],
        "CRA": _elsewhere(asked["retain"], domain),
        "CRA_forget": _elsewhere(asked["forget"], domain),
    }
    return {
        "figures": {name: round(float(np.mean(hits[name])), 4) for name in FIGURES},
        "n": {name: len(hits[name]) for name in FIGURES},
        "says": {row.number: records[row.number]["says"][domain] for some in rows.values() for row in some[:SAMPLES]},
    }


def _elsewhere(asked: list[tuple[dict[str, str], dict[str, str]]], domain: str) -> list[bool]:
    return [says[d] == c for named, says in asked for d, c in named.items() if d != domain]


def samples(rows: dict[str, list[Row]], model: dict[str, Any], original: dict[str, Any]) -> list[dict[str, Any]]:
    """The kept pictures side by side, for the report."""
    return [
        {
            "kind": kind, "prompt": row.prompt, "seed": row.seed,
            "original": f"samples/{row.number}-original.png", "model": f"samples/{row.number}-model.png",
            "original_says": original["says"][row.number], "model_says": model["says"][row.number],
        }
        for kind, some in rows.items() for row in some[:SAMPLES]
    ]  # fmt: skip
