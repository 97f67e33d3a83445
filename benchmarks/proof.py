"""Speed of the evaluation: `python benchmarks/proof.py` writes its tables to docs/benchmarks.md.

Each row interleaves ours with a plainly written baseline in one process, A B A B, with a speed probe (a fixed matrix
product) beside every round; medians with the least and the most.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import torch
from experiments import machine, markdown, publish

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
ROUNDS, PICTURES, DRAWN = 5, 48, 32


def probe() -> float:
    """Milliseconds of a fixed piece of work."""
    a, began = np.ones((600, 600), np.float32), time.perf_counter()
    for _ in range(10):
        a @ a
    return 1000 * (time.perf_counter() - began)


def interleave(ways: dict[str, Callable[[], int]]) -> tuple[dict[str, list[float]], list[float]]:
    """Pictures a second of every way in every round, and the probes."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    probes = []
    for _ in range(ROUNDS):
        probes.append(probe())
        for name, way in ways.items():
            began = time.perf_counter()
            count = way()
            rates[name].append(count / (time.perf_counter() - began))
    return rates, probes


def row(what: str, ways: dict[str, Callable[[], int]]) -> list[str]:
    """A line of the table: baseline, ours, ratio, probes."""
    rates, probes = interleave(ways)
    (_, theirs), (_, ours) = rates.items()

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return [what, spread(theirs), spread(ours), f"{ratio:.1f}", spread(probes)]


def detection() -> dict[str, Callable[[], int]]:
    """NudeNet over 512 x 512 pictures: a detector for every picture, as the reference evaluator does, and ours."""
    import nudenet
    from skimage.data import astronaut

    from sd_scissorhands.evaluate.nude import Detector
    from sd_scissorhands.evaluate.nudity import cores

    rng = np.random.default_rng(0)
    pictures = [np.roll(astronaut(), int(rng.integers(512)), axis=1) for _ in range(PICTURES)]
    detector = Detector()

    def plain() -> int:
        for picture in pictures:
            nudenet.NudeDetector().detect(np.ascontiguousarray(picture[..., ::-1]))
        return len(pictures)

    def ours() -> int:
        with ThreadPoolExecutor(cores()) as threads:
            return len(list(threads.map(lambda picture: detector([picture]), pictures)))

    return {"plain": plain, "ours": ours}


def sampling() -> dict[str, Callable[[], int]]:
    """The embedded model at 20 steps: one pipeline call a picture, and the engine."""
    from sd_scissorhands.concepts import of_world
    from sd_scissorhands.evaluate.prompts import Row
    from sd_scissorhands.evaluate.sample import Sampling, draw, open_for_sampling

    torch.set_num_threads(1)
    opened, denoiser = open_for_sampling("tiny", "cpu")
    how = Sampling.of(opened)
    rows = [Row(n, text, n) for n, (text, _) in enumerate(of_world("heart").pairs[:DRAWN])]

    def plain() -> int:
        for one in rows:
            generator = torch.Generator().manual_seed(one.seed)
            opened.pipeline(one.prompt, num_inference_steps=how.steps, guidance_scale=how.guidance, generator=generator)
        return len(rows)

    def ours() -> int:
        batches = draw(
            denoiser, rows, how, batch_size=None, encode=lambda some: denoiser.encode([r.prompt for r in some])
        )
        return sum(len(chunk) for chunk, _ in batches)

    return {"plain": plain, "ours": ours}


def main() -> None:
    """Measure and write the table."""
    from sd_scissorhands.show import still_libraries

    still_libraries()
    lines = [
        row("NudeNet, 512 x 512 pictures", detection()),
        row("sampling, embedded model, 20 steps", sampling()),
    ]
    table = markdown("what; plain loop, pictures/s; ours, pictures/s; ratio; speed probe, ms", lines)
    told = f"{table}\n\nMedians (least to most) of {ROUNDS} interleaved rounds. {machine()}"
    publish("proof", told, DOCUMENT)
    print(table)


if __name__ == "__main__":
    main()
