"""Whole erasures, repair steps and sampling on a GPU: `python benchmarks/gpu.py`.

Stable Diffusion 1.4's published configuration with random weights, saved to a temporary directory: no network. Writes its
table to docs/benchmarks.md and docs/benchmarks.json. Without CUDA it says so and ends well; what does not fit into `--minutes`
by the forecast is left out, and said. `--device cpu --quick` tries the script at an eighth of the width and writes nothing.
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
from rows import Row, Turn
from sd14 import TOKENS, build, build_encoders, erasure, save_pipeline
from steps import Ours, numel, of_settings, settle

from experiments import markdown
from sd_scissorhands.erasure import erase
from sd_scissorhands.evaluation.prompts import Row as Prompt
from sd_scissorhands.evaluation.sample import Sampling, draw, open_for_sampling
from sd_scissorhands.forecast import forecast
from sd_scissorhands.machine import PeakMemory
from sd_scissorhands.methods.project import RULES
from sd_scissorhands.run import Run
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.show import still_libraries

GIB = 1 << 30
MODES = ("balanced", "low", "fast")  # the default of CUDA first
ROUNDS, STEPS, DRAWN = 3, 3, 8  # rounds; repair steps and pictures in a turn
QUICK: dict[str, Any] = dict(
    forget_count=2, retain_count=2, sampling_steps=2, steps=2, batch_size=2, mixed_precision="no"
)
WORDS = (
    "a portrait of a woman in the rain",
    "a crowd on a beach",
    "an oil painting of two wrestlers",
    "a street at night",
)


@dataclass
class Bench:
    """Where and how large, and what came of it."""

    device: str
    quick: bool
    ends: float  # of the time allowed, time.monotonic()
    model: Path  # a saved pipeline
    modes: Sequence[str] = MODES
    kept: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def divisor(self) -> int:
        """Of the widths."""
        return 8 if self.quick else 1

    @property
    def latents(self) -> int:
        """The latents' side."""
        return 16 if self.quick else 64

    def turn(self, way: Callable[[], object]) -> Turn:
        """Call once: the time, and the device's memory at most, all that is there counted."""
        peak, began = PeakMemory(self.device), time.perf_counter()
        way()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return Turn(time.perf_counter() - began, peak.total() or 0)

    def keep(self, name: str, ours: list[Turn], plain: list[Turn] | None, weights: int, count: int = 0) -> None:
        """Add a row; `count` things in a turn."""
        row = rows.row(f"gpu: {name}", ours, plain, [], table="gpu", machine=machine(self.device), weights=weights)
        self.kept.append(row | {"count": count})

    def interleaved(self, ways: dict[str, Callable[[], object]]) -> dict[str, list[Turn]]:
        """The turns of every way, one after the other's; a first round, which sets libraries up, does not count."""
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            for name, way in ways.items():
                one = self.turn(way)
                turns[name] += [one] if number else []
        return turns


def repairs(bench: Bench) -> None:
    """Steps of the paper's recipe against the reference's, both in float32."""
    denoiser = build(bench.divisor, bench.latents, bench.device)
    encoders = [part.to(bench.device) for part in build_encoders(bench.divisor)]
    task, parameters, settings = erasure(denoiser, recipe="scissorhands", batch_size=1 if bench.quick else 4)
    ours, plain = Ours(of_settings(task, parameters, settings)), Reference(denoiser, *encoders, parameters)
    memories = [[f.cpu() for f in memory] for memory in ours.memories.gradients]
    plain.prepare(settings.lr, memories, RULES[settings.projection], settings.forget_weight)
    for way in (ours.repair, plain):
        settle(way.optimizer, parameters)
    forget, retain = (Batch.random(denoiser, settings.batch_size) for _ in range(2))
    anchor = torch.randint(1000, (settings.batch_size, TOKENS)).to(bench.device)

    def steps(step: Callable[[], None]) -> Callable[[], None]:
        def several() -> None:
            plain.clear()
            for _ in range(STEPS):
                step()

        return several

    turns = bench.interleaved(
        {"reference": steps(lambda: plain.step(forget, anchor, retain)), "ours": steps(ours.step)}
    )
    bench.keep(f"{STEPS} repair steps", turns["ours"], turns["reference"], numel(parameters.values()), STEPS)


def sampling(bench: Bench) -> None:
    """Pictures as an evaluation draws them against a loop of pipeline calls in float32."""
    opened, denoiser = open_for_sampling(str(bench.model), bench.device)
    how = Sampling.of(opened, steps=2 if bench.quick else None)
    asked = [Prompt(n, WORDS[n % len(WORDS)], n) for n in range(2 if bench.quick else DRAWN)]

    def plain() -> None:
        for one in asked:
            generator = torch.Generator().manual_seed(one.seed)
            opened.pipeline(one.prompt, num_inference_steps=how.steps, guidance_scale=how.guidance, generator=generator)

    def ours() -> None:
        for _ in draw(
            denoiser, asked, how, batch_size=None, encode=lambda some: denoiser.encode([r.prompt for r in some])
        ):
            pass

    turns = bench.interleaved({"loop": plain, "ours": ours})
    weights = numel(opened.pipeline.unet.parameters())
    bench.keep(f"{len(asked)} pictures, {how.steps} steps", turns["ours"], turns["loop"], weights, len(asked))


def erasures(bench: Bench) -> None:
    """`erase --concept nudity` in every memory mode, the drawing of its data included."""
    for mode in bench.modes:
        settings = EraseSettings(
            concepts=("nudity",), model=str(bench.model), memory=mode, device=bench.device, **(QUICK if bench.quick else {})
        )  # fmt: skip
        told = forecast(settings)
        expected = sum(told["seconds"].values())
        if time.monotonic() + expected > bench.ends:
            bench.left_out.append(f"{mode} (about {expected:.0f} s)")
            continue
        run = bench.model.parent / mode
        began = time.perf_counter()
        erase(settings, run)
        seconds = time.perf_counter() - began
        stages = Run.read(run).manifest["stages"]
        peak = max(stage.get("peak_bytes") or 0 for stage in stages.values())
        bench.keep(f"erase --concept nudity --memory {mode}", [Turn(seconds, peak)], None, told["scope_size"])
        bench.kept[-1]["forecast"] = {"seconds": round(expected), "bytes": told["memory_bytes"]}


PARTS: dict[str, Callable[[Bench], None]] = {"repairs": repairs, "sampling": sampling, "erasures": erasures}


def line(one: Row) -> list[str]:
    """The cells of a row."""
    rounds = one["rounds"]
    plain = rows.spread(rounds["baseline"], 2) if rounds["baseline"] else ""
    ratio = f"{one['ratio']:.1f}" if one["ratio"] else ""
    rates = [f"{one['count'] / one[side]:.2f}" if one["count"] else "" for side in ("baseline", "ours")]
    peaks = [f"{max(rounds[side]) / GIB:.1f}" if rounds[side] else "" for side in ("baseline_bytes", "ours_bytes")]
    return [one["name"].removeprefix("gpu: "), plain, rows.spread(rounds["ours"], 2), *rates, ratio, *peaks]


HEADER = "what; plain, s; ours, s; plain, a second; ours, a second; ratio; plain, peak GiB; ours, peak GiB"


def machine(device: str) -> str:
    """The card and the versions."""
    if device == "cpu":
        return rows.machine()
    import diffusers

    card = torch.cuda.get_device_properties(device)
    cuda, memory = torch.version.cuda, card.total_memory / GIB
    return f"{card.name}, {memory:.0f} GiB; torch {torch.__version__}, CUDA {cuda}, diffusers {diffusers.__version__}."


def told(bench: Bench, kept: list[Row]) -> str:
    """What the table must be read with; `kept` are its rows."""
    said = [
        "Repair steps in float32, 4 samples a side; an evaluation's pictures under float16 autocast, the loop's in float32."
    ]
    if not find_spec("bitsandbytes"):
        said.append("Without bitsandbytes: Adam's moments in float32, in the mode `low` too.")
    said.append("An erasure's peak is that of its stages; plain is the reference's step, and a loop of pipeline calls.")
    for one in kept:
        if foreseen := one.get("forecast"):
            mode, seconds = one["name"].split()[-1], foreseen["seconds"]
            said.append(f"Forecast of {mode}: {seconds:,} s, {foreseen['bytes'] / GIB:.1f} GiB.")
    if bench.left_out:
        said.append(f"Not measured, for lack of time: erase, {', '.join(bench.left_out)}.")
    return " ".join(said)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="an eighth of the width, few pictures; prints, and no more"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="of the table; other rows stay")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="of memory, of the erasures")
    parser.add_argument("--minutes", type=float, default=8.0, help="that all may take")
    parser.add_argument(
        "--document", type=Path, default=rows.DOCUMENT, help="with the table's marks; JSON goes beside it"
    )
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("not measured: no GPU here")
        return
    still_libraries()
    ends = time.monotonic() + 60 * asked.minutes
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(asked.device, asked.quick, ends, Path(folder) / "sd", asked.modes)
        save_pipeline(bench.model, bench.divisor, bench.latents)
        for part in asked.parts:
            PARTS[part](bench)
            if asked.device != "cpu":
                torch.cuda.empty_cache()
    if asked.quick:
        print(markdown(HEADER, [line(one) for one in bench.kept]), told(bench, bench.kept), sep="\n\n")
        return
    known = [one for one in rows.record(bench.kept, asked.document) if one["table"] == "gpu"]
    print(rows.tabulate("gpu", HEADER, line, told=told(bench, known), document=asked.document))


if __name__ == "__main__":
    main()
