"""The yardstick of relearning in docs/experiments.md: `python benchmarks/unseen.py [ring+yellow ...]`, half an hour on one core.

No erasure can be expected to be slower to relearn than a model that never knew the concept. Here such models are trained:
the embedded model's UNet from nothing, by its own recipe, on its own drawings less those that show a concept. Autoencoder
and text encoder are the shipped ones, as after an erasure. Two concepts, of two domains, are left out of a training.

Trainings and figures are kept in runs/robust, so that what was cut off continues. One process of one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments import alone, machine, markdown, publish
from robust import Job, mean, measured, steps

LEFT_OUT = ("ring+yellow",)
DRAWINGS, STEPS, SEED = 24_000, 4_000, 0  # as tiny/train.py has it, but for the steps: 7,000 there
FIGURES = ("relearn", "relearn slowly", "kept briefly", "embedding once", "three once")


def train(concepts: tuple[str, ...], folder: Path) -> None:
    """A pipeline in `folder`/model whose UNet never saw the concepts; what is there already is kept."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from sd_scissorhands.tiny import JUDGE_FILE, MODEL_DIR
    from sd_scissorhands.tiny import train as tiny
    from sd_scissorhands.tiny.judge import load_judge

    if (folder / "model").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", torch_dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder", torch_dtype=torch.float32).eval()
    pictures, drawings = tiny.make_drawings(DRAWINGS, SEED)
    rows = [n for n, drawing in enumerate(drawings) if not set(concepts) & set(vars(drawing).values())]
    pictures, drawings = pictures[rows], [drawings[row] for row in rows]
    text, unet = tiny.train_denoiser(
        vae, pictures, drawings, folder, steps=STEPS, seed=SEED + 3, log=tiny.Log(), text=text
    )
    tiny.save_pipeline(vae, text, unet, load_judge(JUDGE_FILE), folder / "new")
    (folder / "new").rename(folder / "model")


def main() -> None:
    """Train, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("left_out", nargs="*", help="trainings, each the concepts that it leaves out: ring+yellow")
    alone()
    rows: list[dict[str, Any]] = []
    for names in parser.parse_args().left_out or LEFT_OUT:
        concepts = tuple(names.split("+"))
        jobs = [Job("unseen", concept, 0, FIGURES, together=concepts) for concept in concepts]
        train(concepts, jobs[0].folder)
        for job in jobs:
            rows.append(measured(job))
            print(json.dumps(rows[-1]), flush=True)
    publish("unseen", markdown(HEADER, [line(row) for row in rows]) + "\n\n" + machine())


HEADER = "never seen; relearn steps at 3e-4; at 1e-4; UA; UA synonyms; UA generic; IRA; CRA; embedding ASR; three embeddings ASR"


def line(row: dict[str, Any]) -> list[str]:
    """A concept on the model that never saw it."""
    back = [steps([row], lr) for lr in ("relearn", "relearn slowly")]
    kept = [mean([row], "kept briefly", name) for name in ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA")]
    return [row["concept"], *back, *kept, *(f"{row[name][0]:.2f}" for name in ("embedding once", "three once"))]


if __name__ == "__main__":
    main()
