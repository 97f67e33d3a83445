"""What half precision changes in an evaluation: `python benchmarks/precision.py` writes its table to docs/benchmarks.md.

The embedded model and two erasures of it, one that leaves some of the concept, draw an evaluation's prompts from the same noise in float32
and under autocast to bf16 and fp16, and the embedded world's judge names what the pictures show. On a CPU: what is compared is
rounding, not speed.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
from rows import DOCUMENT, machine, markdown, publish

from sd_scissorhands import EraseSettings, erase
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.evaluation.chance import wilson
from sd_scissorhands.evaluation.concept import OTHER_SEEDS, evaluation_rows
from sd_scissorhands.evaluation.judges.base import Judge, JudgeRequest
from sd_scissorhands.evaluation.judges.canvas import CanvasJudge
from sd_scissorhands.evaluation.prompts import Row
from sd_scissorhands.evaluation.sample import Sampling, draw, open_for_sampling
from sd_scissorhands.quiet import quietly

CONCEPT, RECIPES = "ring", ("scissorhands-open", "salun")
COUNT, SEED = 60, 3000  # prompts that name the concept, and the seed of prompts and noise, which no choice saw
HEADER = (
    "model; drawn in; pictures; concept seen; the same in float32; another answer (95 % interval); "
    "another name in any category; a pixel's mean difference, of 255"
)


def pictures(model: str, rows: list[Row], precision: str = "no") -> np.ndarray:
    """What a model draws: (N, h, w, 3) uint8."""
    opened, _ = open_for_sampling(model, "cpu")
    denoiser = Denoiser(opened.pipeline, mixed_precision=precision)
    return np.concatenate([drawn for _, drawn in draw(denoiser, rows, Sampling.of(opened), batch_size=None)])


def lines(name: str, model: str, rows: list[Row], judge: Judge) -> list[list[str]]:
    """A line for every half precision, and one for other noise: how far pictures of the same prompts are apart anyway."""
    elsewhere = [dataclasses.replace(row, seed=row.seed + OTHER_SEEDS) for row in rows]
    full = pictures(model, rows)
    drawn = {precision: pictures(model, rows, precision) for precision in ("bf16", "fp16")}
    drawn["float32, another seed"] = pictures(model, elsewhere)
    whole, found = judge.look(full, []), []
    for precision, others in drawn.items():
        named = judge.look(others, [])
        pairs = list(zip(whole, named, strict=True))
        changed = sum(judge.sees(one) != judge.sees(other) for one, other in pairs)
        low, high = (100 * end for end in wilson(changed, len(rows)))
        apart = np.abs(full.astype(float) - others).mean()
        found.append([
            name, precision, str(len(rows)), str(sum(map(judge.sees, named))), str(sum(map(judge.sees, whole))),
            f"{100 * changed / len(rows):.1f} % ({low:.1f} to {high:.1f})",
            f"{100 * sum(one != other for one, other in pairs) / len(rows):.1f} %", f"{apart:.2f}",
        ])  # fmt: skip
    return found


def main() -> None:
    """Erase, draw, compare and write the table."""
    domain = DOMAINS["canvas"]
    concept = domain.resolve(CONCEPT, None)
    rows = [row for own in evaluation_rows(concept, domain, seed=SEED, count=COUNT).values() for row in own]
    judge = CanvasJudge.open(JudgeRequest(concept, domain, threshold=0.5))
    with quietly(), tempfile.TemporaryDirectory() as folder:
        found = lines("original", "tiny", rows, judge)
        for recipe in RECIPES:
            settings = EraseSettings(concepts=(CONCEPT,), model="tiny", recipe=recipe, device="cpu", verify=False)
            found += lines(recipe, erase(settings, Path(folder) / recipe).model_dir, rows, judge)
    table = markdown(HEADER, found)
    note = f"Erased: {CONCEPT}; prompts of all kinds of `sdscissor eval`, {COUNT} of which name it. {machine()}"
    publish("precision", f"{table}\n\n{note}", DOCUMENT)
    print(table)


if __name__ == "__main__":
    main()
