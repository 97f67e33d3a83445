"""Whole erasures, repair steps and sampling on a GPU: `python benchmarks/gpu.py`.

Stable Diffusion 1.4's published configuration with random weights, saved to a temporary directory: no network. Writes its
table to docs/benchmarks.md and docs/benchmarks.json. Without CUDA it prints so and ends well; the table names what does not fit
into `--minutes` by the forecast and was left out. `--device cpu --quick` tries the script at an eighth of the width and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import rows
import torch
from reference import Batch, Reference
from rows import Row, Turn, Ways, markdown, numel
from sd14 import TOKENS, build, build_encoders, erasure, save_pipeline
from steps import Steps

from sd_scissorhands import EraseSettings, erase
from sd_scissorhands.evaluation.prompts import Row as Prompt
from sd_scissorhands.evaluation.sample import Sampling, draw, open_for_sampling
from sd_scissorhands.forecast import forecast
from sd_scissorhands.machine import PeakMemory
from sd_scissorhands.methods.project import RULES
from sd_scissorhands.quiet import quietly
from sd_scissorhands.run import Run

GIB = 1 << 30
MODES = ("balanced", "low", "fast")  # the default of CUDA first
ROUNDS, STEPS, PICTURES = 3, 3, 8  # rounds; repair steps and pictures in a turn
QUICK: dict[str, Any] = dict(
    forget_count=2, retain_count=2, sampling_steps=2, steps=2, batch_size=2, mixed_precision="no"
)
PROMPTS = (
    "a portrait of a woman in the rain",
    "a crowd on a beach",
    "an oil painting of two wrestlers",
    "a street at night",
)
HEADER = "what; plain, s; ours, s; plain, a second; ours, a second; ratio; plain, peak GiB; ours, peak GiB"


@dataclass
class Bench:
    """Where and how large, and what came of it."""

    device: str
    quick: bool
    ends: float  # of the time allowed, time.monotonic()
    model: Path  # a saved pipeline
    modes: Sequence[str] = MODES
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """The divisor of the widths, and the latents' side."""
        return (8, 16) if self.quick else (1, 64)

    def turn(self, way: Callable[[], object]) -> Turn:
        """Call once: the time, and the device's memory at most, all that is there counted."""
        peak, began = PeakMemory(self.device), time.perf_counter()
        way()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return Turn(time.perf_counter() - began, peak.total() or 0)

    def add(self, name: str, ours: list[Turn], plain: list[Turn], weights: int, count: int = 0) -> Row:
        """Add a row; `count` things in a turn."""
        row = rows.row(f"gpu: {name}", ours, plain, [], weights=weights, where=machine(self.device)) | {"count": count}
        self.rows.append(row)
        return row

    def interleaved(self, ways: Ways) -> dict[str, list[Turn]]:
        """The turns of every way, one after the other's; a first round, which sets libraries up, does not count."""
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            for name, way in ways.items():
                one = self.turn(way)
                turns[name] += [one] if number else []
        return turns


def repairs(bench: Bench) -> None:
    """Steps of the paper's recipe against the reference's, both in float32."""
    divisor, side = bench.size
    denoiser = build(divisor, side, bench.device)
    encoders = [part.to(bench.device) for part in build_encoders(divisor)]
    task, parameters, settings = erasure(denoiser, recipe="scissorhands", batch_size=1 if bench.quick else 4)
    ours, plain = Steps(task, parameters, settings), Reference(denoiser, *encoders, parameters)
    ours.step()
    memory = [f.cpu() for f in ours.memory]
    plain.prepare(settings.lr, memory, RULES[settings.projection], settings.forget_weight)
    forget, retain = (Batch.random(denoiser, settings.batch_size) for _ in range(2))
    anchor = torch.randint(1000, (settings.batch_size, TOKENS)).to(bench.device)
    plain.settle(forget, anchor, retain)

    def several(step: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            plain.clear()
            for _ in range(STEPS):
                step()

        return call

    turns = bench.interleaved(
        {"reference": several(lambda: plain.step(forget, anchor, retain)), "ours": several(ours.step)}
    )
    ours.end()
    bench.add(f"{STEPS} repair steps", turns["ours"], turns["reference"], numel(parameters.values()), STEPS)


def sampling(bench: Bench) -> None:
    """Pictures as an evaluation draws them against a loop of pipeline calls in float32."""
    opened, denoiser = open_for_sampling(str(bench.model), bench.device)
    how = Sampling.of(opened, steps=2 if bench.quick else None)
    prompts = [Prompt(n, PROMPTS[n % len(PROMPTS)], n) for n in range(2 if bench.quick else PICTURES)]

    def plain() -> None:
        for one in prompts:
            generator = torch.Generator().manual_seed(one.seed)
            opened.pipeline(one.prompt, num_inference_steps=how.steps, guidance_scale=how.guidance, generator=generator)

    def ours() -> None:
        list(
            draw(denoiser, prompts, how, batch_size=None, encode=lambda some: denoiser.encode([p.prompt for p in some]))
        )

    turns, count = bench.interleaved({"loop": plain, "ours": ours}), len(prompts)
    weights = numel(opened.pipeline.unet.parameters())
    bench.add(f"{count} pictures, {how.steps} steps", turns["ours"], turns["loop"], weights, count)


def erasures(bench: Bench) -> None:
    """`erase --concept nudity` in every memory mode, the drawing of its data included."""
    for mode in bench.modes:
        settings = EraseSettings(
            concepts=("nudity",), model=str(bench.model), memory=mode, device=bench.device, **(QUICK if bench.quick else {})
        )  # fmt: skip
        expected = forecast(settings)
        seconds, run = sum(expected.seconds.values()), bench.model.parent / mode
        if time.monotonic() + seconds > bench.ends:
            bench.left_out.append(f"{mode} (about {seconds:.0f} s)")
            continue
        began = time.perf_counter()
        erase(settings, run)
        turn = Turn(time.perf_counter() - began, peak_of(run))
        row = bench.add(f"erase --concept nudity --memory {mode}", [turn], [], expected.scope_size)
        row["forecast"] = {"seconds": round(seconds), "bytes": expected.memory_bytes}


def peak_of(run: Path) -> int:
    """The largest peak of a run's stages, in bytes."""
    return max(stage.get("peak_bytes") or 0 for stage in Run.read(run).manifest.stages.values())


PARTS: dict[str, Callable[[Bench], None]] = {"repairs": repairs, "sampling": sampling, "erasures": erasures}


def line(one: Row) -> list[str]:
    """The cells of a row."""
    rounds, sides = one["rounds"], ("baseline", "ours")
    rates = [f"{one['count'] / one[side]:.2f}" if one["count"] else "" for side in sides]
    peaks = [f"{max(rounds[f'{side}_bytes']) / GIB:.1f}" if rounds[f"{side}_bytes"] else "" for side in sides]
    times = [rows.spread(rounds[side], 2) for side in sides]
    return [rows.short(one), *times, *rates, f"{one['ratio']:.1f}" if one["ratio"] else "", *peaks]


def machine(device: str) -> str:
    """The card and the versions."""
    if device == "cpu":
        return rows.machine()
    import diffusers

    card = torch.cuda.get_device_properties(device)
    cuda, memory = torch.version.cuda, card.total_memory / GIB
    return f"{card.name}, {memory:.0f} GiB; torch {torch.__version__}, CUDA {cuda}, diffusers {diffusers.__version__}."


def note(bench: Bench, found: list[Row]) -> str:
    """What the table must be read with; `found` are its rows."""
    text = [
        "Repair steps in float32, 4 samples a side; an evaluation's pictures under float16 autocast, the loop's in float32."
    ]
    if not find_spec("bitsandbytes"):
        text.append("Without bitsandbytes: Adam's moments in float32, in the mode `low` too.")
    text.append("An erasure's peak is that of its stages; plain is the reference's step, and a loop of pipeline calls.")
    for one in found:
        if expected := one.get("forecast"):
            mode, seconds = one["name"].split()[-1], expected.seconds
            text.append(f"Forecast of {mode}: {seconds:,} s, {expected['bytes'] / GIB:.1f} GiB.")
    if bench.left_out:
        text.append(f"Not measured, for lack of time: erase, {', '.join(bench.left_out)}.")
    return " ".join(text)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="an eighth of the width, few pictures; prints alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="of the table; other rows stay")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="of memory, of the erasures")
    parser.add_argument("--minutes", type=float, default=8.0, help="that all may take")
    parser.add_argument(
        "--document", type=Path, default=rows.DOCUMENT, help="with the table's marks; JSON goes beside it"
    )
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("not measured: no GPU here")
        return
    ends = time.monotonic() + 60 * given.minutes
    torch.manual_seed(0)
    with quietly(), tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.device, given.quick, ends, Path(folder) / "sd", given.modes)
        save_pipeline(bench.model, *bench.size)
        for part in given.parts:
            PARTS[part](bench)
            if given.device != "cpu":
                torch.cuda.empty_cache()
    if given.quick:
        print(markdown(HEADER, [line(one) for one in bench.rows]), note(bench, bench.rows), sep="\n\n")
        return
    known = [one for one in rows.record(bench.rows, given.document) if one["table"] == "gpu"]
    print(rows.tabulate("gpu", HEADER, line, note=note(bench, known), document=given.document))


if __name__ == "__main__":
    main()
