"""Speed of the evaluation: `python benchmarks/proof.py` writes its table to docs/benchmarks.md and docs/benchmarks.json.

Each row interleaves ours with a plainly written baseline in one process, see rows.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import torch
from rows import Row, interleave, record, row, spread, tabulate

from experiments import machine

ROUNDS, PICTURES, DRAWN = 5, 48, 32
NUDENET, SAMPLING = "NudeNet, 512 x 512 pictures", "sampling, embedded model, 20 steps"
COUNTS = {NUDENET: PICTURES, SAMPLING: DRAWN}  # pictures in a turn


def detection() -> dict[str, Callable[[], int]]:
    """NudeNet over 512 x 512 pictures: a detector for every picture, as the reference evaluator does, and ours."""
    import nudenet
    from skimage.data import astronaut

    from sd_scissorhands.evaluation.nude import Detector
    from sd_scissorhands.evaluation.nudity import cores

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
    from sd_scissorhands.evaluation.prompts import Row
    from sd_scissorhands.evaluation.sample import Sampling, draw, open_for_sampling

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


def measured(name: str, ways: dict[str, Callable[[], int]]) -> Row:
    """The row of one of the two."""
    turns, probes = interleave(ways, ROUNDS)
    return row(name, turns["ours"], turns["plain"], probes, table="proof", machine=machine(), memory=False)


def line(one: Row) -> list[str]:
    """Pictures a second: baseline, ours; ratio, probes."""

    def rate(side: str) -> str:
        return spread([COUNTS[one["name"]] / seconds for seconds in one["rounds"][side]])

    return [one["name"], rate("baseline"), rate("ours"), f"{one['ratio']:.1f}", spread(one["rounds"]["probe_ms"])]


def main() -> None:
    """Measure and write the table."""
    from sd_scissorhands.show import still_libraries

    still_libraries()
    record([measured(NUDENET, detection()), measured(SAMPLING, sampling())])
    header = "what; plain loop, pictures/s; ours, pictures/s; ratio; speed probe, ms"
    print(tabulate("proof", header, line))


if __name__ == "__main__":
    main()
