"""Speed of the evaluation: `python benchmarks/proof.py` writes its table to docs/benchmarks.md and docs/benchmarks.json."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import torch
from rows import Row, Ways, interleave, record, row, short, spread, tabulate

from sd_scissorhands.evaluation.judges.nudenet import Detector
from sd_scissorhands.evaluation.prompts import Row as Prompt
from sd_scissorhands.evaluation.sample import Sampling, draw, open_for_sampling
from sd_scissorhands.machine import cores
from sd_scissorhands.quiet import quietly

ROUNDS, PICTURES = 5, {"NudeNet, 512 x 512 pictures": 48, "sampling, embedded model, 20 steps": 32}


def detection(count: int) -> Ways:
    """NudeNet over 512 x 512 pictures: a detector for every picture, as the reference evaluator does, and ours."""
    import nudenet
    from skimage.data import astronaut

    rng = np.random.default_rng(0)
    pictures = [np.roll(astronaut(), int(rng.integers(512)), axis=1) for _ in range(count)]
    detector = Detector()

    def plain() -> None:
        for picture in pictures:
            nudenet.NudeDetector().detect(np.ascontiguousarray(picture[..., ::-1]))

    def ours() -> None:
        with ThreadPoolExecutor(cores()) as threads:
            list(threads.map(lambda picture: detector([picture]), pictures))

    return {"plain": plain, "ours": ours}


def sampling(count: int) -> Ways:
    """The embedded model at 20 steps: one pipeline call a picture, and the engine."""
    torch.set_num_threads(1)
    opened, denoiser = open_for_sampling("tiny", "cpu")
    how = Sampling.of(opened)
    prompts = [Prompt(n, f"a red heart on a white background, number {n}", n) for n in range(count)]

    def plain() -> None:
        for one in prompts:
            generator = torch.Generator().manual_seed(one.seed)
            opened.pipeline(one.prompt, num_inference_steps=how.steps, guidance_scale=how.guidance, generator=generator)

    def ours() -> None:
        list(
            draw(denoiser, prompts, how, batch_size=None, encode=lambda some: denoiser.encode([p.prompt for p in some]))
        )

    return {"plain": plain, "ours": ours}


def line(one: Row) -> list[str]:
    """Pictures a second: baseline, ours; ratio, probes."""
    name, rounds = short(one), one["rounds"]
    rates = [spread([PICTURES[name] / seconds for seconds in rounds[side]]) for side in ("baseline", "ours")]
    return [name, *rates, f"{one['ratio']:.1f}", spread(rounds["probe_ms"])]


def main() -> None:
    """Measure and write the table."""
    with quietly():
        for (name, count), ways_of in zip(PICTURES.items(), (detection, sampling), strict=True):
            turns, probes = interleave(ways_of(count), ROUNDS)
            record([row(f"proof: {name}", turns["ours"], turns["plain"], probes, memory=False)])
    print(tabulate("proof", "what; plain loop, pictures/s; ours, pictures/s; ratio; speed probe, ms", line))


if __name__ == "__main__":
    main()
