"""Scores, repair steps and whole runs at Stable Diffusion 1.4's size, on the CPU: `python benchmarks/steps.py [TABLE ...]`.

Each table goes to docs/benchmarks.md and its rows to docs/benchmarks.json. The published configuration with random weights.
At full size `scores` needs about 19 GiB of memory and the others at most 14; a round of a repair step takes three minutes on two
cores. `--divisor 4` and a `--document` of one's own are for trying.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any
from unittest import mock

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import rows
import torch
from reference import PARTS, Batch, Clock, Reference
from rows import MIB, Row, Turn, beyond, interleave, numel, size
from scale import plain_selection
from sd14 import TOKENS, build, build_encoders, erasure, save_pipeline
from torch import Tensor

from sd_scissorhands.erasure import slices_of
from sd_scissorhands.methods import repair as repair_module
from sd_scissorhands.methods.method import Options, score
from sd_scissorhands.methods.project import RULES
from sd_scissorhands.methods.repair import Repair, RepairSettings
from sd_scissorhands.methods.selection import select_top
from sd_scissorhands.recipes import ON_CPU

WIDTHS = (8, 4, 2, 1)  # growth: divisors of the width
MODES = ("low", "balanced", "fast")
ENDLESS = 1 << 20  # steps
SHORT = dict(  # of the forecast's runs: every stage, few pictures and steps
    recipe="scissorhands-anchored", device="cpu", forget_count=2, retain_count=2, sampling_steps=2,
    score_draws=1, steps=2, batch_size=2,
)  # fmt: skip


# ---------------------------------------------------------------- ours


class Steps:
    """The package's repair, in a thread of its own that waits after every step, so that others take turns with it.

    The first step also makes the optimiser's moments and the memory gradient, which all others share.
    """

    def __init__(self, task: Any, parameters: dict[str, Tensor], settings: Any):
        self.task, self.module, self.clock = task, task.denoiser.module, Clock()
        how = RepairSettings(
            ENDLESS, settings.lr, settings.forget_weight, RULES[settings.projection], ENDLESS, settings.relearn_every,
            slices=slices_of(settings, 1),
        )  # fmt: skip
        self.repair = Repair(task, parameters, how)
        self.memory: list[Tensor] = []
        self._error: BaseException | None = None
        self._go, self._done = Semaphore(0), Semaphore(0)
        Thread(target=self._run, args=(torch.get_num_threads(),), daemon=True).start()

    def step(self) -> None:
        """One step, its parts timed."""
        timed = self.clock.timed
        with ExitStack() as stack:
            for owner, name, part in (
                (self.module, "forward", "forward"),
                (torch.autograd, "backward", "backward"),
                (type(self.repair.optimizer), "step", "optimizer"),
            ):
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
            stack.enter_context(mock.patch.object(repair_module, "project", self._noted(repair_module.project)))
            self._go.release()
            self._done.acquire()
        if self._error:
            raise self._error

    def end(self) -> None:
        """Let the thread end."""
        self.repair.plan = replace(self.repair.plan, steps=self.repair.step)
        self._go.release()

    @property
    def held(self) -> int:
        """Bytes between two steps, beyond the model: moments, the memory, the teacher's copies."""
        return size(self.memory) + size(self.task.teacher.values()) + moments(self.repair.optimizer)

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._go.acquire()
        try:
            self.repair.run(self._wait)
        except BaseException as error:
            self._error = error
        self._done.release()

    def _wait(self, repair: Repair) -> None:
        self._done.release()
        self._go.acquire()

    def _noted(self, project: Callable) -> Callable:
        def call(gradients, memory, rule):
            oppose(memory.gradient, gradients)
            with self.clock.part("projection"):
                done = project(gradients, memory, rule)
            self.memory = memory.gradient
            assert done.conflict
            return done

        return call


def oppose(memory: list[Tensor], gradient: list[Tensor]) -> None:
    """Turn a memory against the gradient, so that it is projected: with random weights a matter of chance."""
    if sum(float(g.flatten() @ f.flatten()) for g, f in zip(gradient, memory, strict=True)) >= 0:
        torch._foreach_neg_(memory)


def moments(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's state."""
    return size(t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Bench:
    """The size of a measurement, and where it goes."""

    divisor: int = 1
    latents: int = 64
    document: Path = rows.DOCUMENT
    rounds: int = 2
    modes: tuple[str, ...] = MODES

    def record(
        self,
        name: str,
        turns: dict[str, list[Turn]],
        probes: list[float],
        weights: int,
        plain: str = "reference",
        **more: Any,
    ) -> None:
        """Record a row; its name begins with its table's."""
        row = rows.row(name, turns["ours"], turns.get(plain, []), probes, weights=weights)
        rows.record([row | more], self.document)

    def tabulate(self, table: str, header: str, line: Callable[[Row], list[str]], note: str = "") -> str:
        """A table of its rows."""
        return rows.tabulate(table, header, line, note=note, document=self.document)


def repair(bench: Bench) -> str:
    """A repair step of the paper's recipe on all attention, projected, against the reference's, and both in parts."""
    denoiser, encoders = build(bench.divisor, bench.latents), build_encoders(bench.divisor)
    task, parameters, settings = erasure(denoiser, recipe="scissorhands", batch_size=1, **ON_CPU["balanced"])
    ours, plain = Steps(task, parameters, settings), Reference(denoiser, *encoders, parameters)
    ours.step()
    memory = [f.clone() for f in ours.memory]
    plain.prepare(settings.lr, memory, RULES[settings.projection], settings.forget_weight)
    forget, retain, anchor = Batch.random(denoiser), Batch.random(denoiser), torch.randint(1000, (1, TOKENS))
    plain.settle(forget, anchor, retain)
    parts: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}

    def timed(name: str, clock: Clock, step: Callable[[], None]) -> Callable[[], None]:
        def one() -> None:
            clock.seconds = dict.fromkeys(PARTS, 0.0)
            step()
            parts[name].append(clock.seconds)

        return one

    ways = {
        "reference": timed("reference", plain.clock, lambda: plain.step(forget, anchor, retain)),
        "ours": timed("ours", ours.clock, ours.step),
    }
    turns, probes = interleave(ways, bench.rounds, prepare=plain.clear)
    held = {"reference": size(memory) + moments(plain.optimizer), "ours": ours.held}
    ours.end()
    turns = {name: beyond(some, held[name]) for name, some in turns.items()}
    weights, model = numel(parameters.values()), size(denoiser.module.parameters())
    model += sum(size(encoder.parameters()) for encoder in encoders)
    bench.record("steps: repair, attn", turns, probes, weights, model_bytes=model)
    for side, some in turns.items():
        row = rows.row(f"parts: {side}", some, [], probes, weights=weights)
        row["rounds"]["parts"] = parts[side]
        rows.record([row], bench.document)
    shares(bench)
    return stages(bench)


def shares(bench: Bench) -> str:
    """The table of a step's parts."""

    def line(one: Row) -> list[str]:
        parts = [statistics.median(own[part] for own in one["rounds"]["parts"]) for part in PARTS]
        every = [*parts, one["ours"] - sum(parts)]
        cells = [f"{seconds:.2f} ({seconds / one['ours']:.0%})" if seconds else "" for seconds in every]
        return [rows.short(one), *cells, rows.spread(one["rounds"]["ours"], 2)]

    header = f"repair step of; {'; '.join(f'{part}, s' for part in PARTS)}; rest, s; all, s"
    return bench.tabulate("parts", header, line)


def scores(bench: Bench) -> str:
    """Scores and selection, over all attention and over the whole UNet, against the reference's."""
    denoiser, encoders = build(bench.divisor, bench.latents), build_encoders(bench.divisor)
    model = sum(size(part.parameters()) for part in (denoiser.module, *encoders))
    for scope in ("attn", "full"):
        task, parameters, settings = erasure(denoiser, recipe="scissorhands", scope=scope, batch_size=1)
        task.teacher = None
        plain, batch = Reference(denoiser, *encoders, parameters), Batch.random(denoiser)
        ways = {
            "reference": lambda plain=plain, batch=batch: plain.scores([batch]),
            "ours": lambda task=task, own=parameters: score(task, own, "plain", Options(draws=1)),
        }
        turns, probes = interleave(ways, bench.rounds, prepare=plain.clear)
        weights = numel(parameters.values())
        bench.record(f"steps: scores, {scope}", turns, probes, weights, model_bytes=model)
        if scope == "attn":  # over the whole UNet: the table of selections
            turns, probes = selection(bench, ways["ours"](), settings.top_k)
            bench.record("steps: selection, attn", turns, probes, weights, model_bytes=model)
        plain.clear()
    return stages(bench)


def selection(bench: Bench, found: dict[str, Tensor], k: float) -> tuple[dict[str, list[Turn]], list[float]]:
    """Turns of the selection, the scores counted too, and probes."""
    ways = {"reference": lambda: plain_selection(found, k), "ours": lambda: select_top(found, k)}
    turns, probes = interleave(ways, bench.rounds)
    return {name: beyond(some, size(found.values())) for name, some in turns.items()}, probes


def stages(bench: Bench) -> str:
    """The table of scores, selection and repair."""

    def line(one: Row) -> list[str]:
        cells, model = rows.compared(one), one["model_bytes"]
        plain, ours = (max(one["rounds"][f"{side}_bytes"], default=0) for side in ("baseline", "ours"))
        less = [f"{1 - ours / plain:.0%}", f"{1 - (ours + model) / (plain + model):.0%}"]
        return [*cells[:4], f"{one['ratio']:.2f}", *cells[5:7], *less, cells[7]]

    header = (
        "what, scope; weights in scope; reference, s; ours, s; ratio; reference, MiB; ours, MiB; less; "
        "less, with the models; speed probe, ms"
    )
    model = next(one["model_bytes"] for one in rows.record([], bench.document) if one["table"] == "steps")
    note = f"MiB: most in use beyond the weights of UNet, VAE and text encoder, which are {model / MIB:,.0f} MiB."
    return bench.tabulate("steps", header, line, note)


def checkpointing(bench: Bench) -> str:
    """A repair step with and without gradient checkpointing."""
    denoiser = build(bench.divisor, bench.latents)
    task, parameters, settings = erasure(denoiser, recipe="scissorhands", batch_size=1)
    ours, module = Steps(task, parameters, settings), denoiser.module
    ours.step()

    def step(enable: bool) -> None:
        (module.enable_gradient_checkpointing if enable else module.disable_gradient_checkpointing)()
        ours.step()

    turns, probes = interleave({"without": lambda: step(False), "ours": lambda: step(True)}, bench.rounds)
    ours.end()
    turns = {name: beyond(some, -size(parameters.values())) for name, some in turns.items()}
    bench.record("checkpointing: repair, attn", turns, probes, numel(parameters.values()), "without")

    def line(one: Row) -> list[str]:
        cells = rows.compared(one)
        plain, ours = (max(one["rounds"][f"{side}_bytes"]) for side in ("baseline", "ours"))
        return [*cells[:4], f"{1 / one['ratio']:.2f}", *cells[5:7], f"{ours / plain:.2f}", cells[7]]

    header = (
        "what, scope; weights in scope; without, s; with, s; times as long; without, MiB; with, MiB; "
        "times the activations; speed probe, ms"
    )
    return bench.tabulate("checkpointing", header, line, "MiB: beyond weights, gradients and what the optimizer holds.")


def robust(bench: Bench) -> str:
    """A step of the default recipe with its adversary, which it has in every second step, by turns with one without."""
    denoiser = build(bench.divisor, bench.latents)
    task, parameters, settings = erasure(denoiser, batch_size=2, lr=1e-5, **ON_CPU["balanced"])
    assert settings.relearn_every == 2
    ours = Steps(task, parameters, settings)
    ours.step()  # the first, with the adversary
    turns, probes = interleave({"without": ours.step, "ours": ours.step}, bench.rounds)
    own = size(parameters.values())
    held = {"without": ours.held, "ours": ours.held + 3 * own}  # the adversary's displacement and its moments
    ours.end()
    turns = {name: beyond(some, held[name]) for name, some in turns.items()}
    bench.record("robust: repair, attn", turns, probes, numel(parameters.values()), "without")

    def line(one: Row) -> list[str]:
        cells = rows.compared(one)
        return [*cells[:4], f"{one['ours'] / one['baseline']:.2f}", *cells[5:]]

    header = (
        "what, scope; weights in scope; without, s; with its adversary, s; times as long; without, MiB; with, MiB; "
        "speed probe, ms"
    )
    note = (
        f"Recipe {settings.recipe}, {8 * bench.latents} x {8 * bench.latents} pixels, two forget and two retain samples one by one, "
        "float32, the teacher's passes included; under the prompts' own words, not the mixture's. MiB: beyond the UNet's weights."
    )
    return bench.tabulate("robust", header, line, note)


def growth(bench: Bench) -> str:
    """Time and memory of scores over the whole UNet, from a sixty-fourth of its weights to all of them."""
    for divisor in WIDTHS:
        denoiser = build(divisor * bench.divisor, bench.latents)
        task, parameters, _ = erasure(denoiser, recipe="scissorhands", scope="full", batch_size=1)
        task.teacher = None
        way = {"ours": lambda task=task, own=parameters: score(task, own, "plain", Options(draws=1))}
        turns, probes = interleave(way, bench.rounds)
        share = f"1/{divisor**2}" if divisor > 1 else "all"
        bench.record(f"growth-of-scores: {share}", turns, probes, numel(parameters.values()))
        del denoiser, task, parameters, way

    def line(one: Row) -> list[str]:
        cells, per = rows.compared(one), one["extra_bytes"] / one["weights"]
        return [*cells[:2], cells[3], f"{1e9 * one['ours'] / one['weights']:.0f}", cells[6], f"{per:.0f}", cells[7]]

    header = "share of the UNet's weights; weights; s; ns a weight; extra MiB; extra bytes a weight; speed probe, ms"
    return bench.tabulate("growth-of-scores", header, line)


# ---------------------------------------------------------------- the forecast


def forecast(bench: Bench) -> str:
    """`erase --dry-run` against what the same command, carried out, enters in its manifest: peak memory by stage."""
    side = bench.latents // 2
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "sd"
        save_pipeline(model, bench.divisor, side)
        for mode in bench.modes:
            config, run = Path(folder) / f"{mode}.toml", Path(folder) / mode
            settings = SHORT | {"model": str(model), "memory": mode, "concepts": ["nudity"]}
            config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()))
            expected = command("erase", "--config", config, "--dry-run")
            command("erase", "--config", config, "--quiet", "--output-dir", run)
            found = json.loads((run / "run.json").read_text())["stages"]
            for stage, bytes_ in expected["peak_bytes"].items():
                row = foreseen(mode, stage, bytes_, found[stage]["peak_bytes"], expected["scope_size"])
                rows.record([row], bench.document)
            shutil.rmtree(run)
    note = (
        f"Forecast and peak of the process. Recipe {SHORT['recipe']}, {8 * side} x {8 * side} pixels, float32 in every mode, "
        f"as by default on a CPU, {SHORT['forget_count']} pictures a kind, {SHORT['steps']} steps of "
        f"{SHORT['batch_size']} samples a side."
    )  # fmt: skip
    header = "memory, stage; weights in scope; forecast, MiB; run, MiB; forecast over run"
    return bench.tabulate("forecast", header, against, note)


def foreseen(mode: str, stage: str, forecast: int, peak: int, weights: int) -> Row:
    """A row: `ours` is the forecast and `baseline` the run, in bytes."""
    return {
        "name": f"forecast: {mode}, {stage}", "table": "forecast", "ours": forecast, "baseline": peak,
        "ratio": forecast / peak, "extra_bytes": peak, "weights": weights, "machine": rows.machine(),
        "rounds": {"ours": [forecast], "baseline": [peak]},
    }  # fmt: skip


def against(one: Row) -> list[str]:
    """The cells of a forecast's row."""
    bytes_ = [f"{one[side] / MIB:,.0f}" for side in ("ours", "baseline")]
    return [rows.short(one), f"{one['weights']:,}", *bytes_, f"{one['ratio']:.2f}"]


def command(*words: object) -> dict[str, Any]:
    """The JSON that a command of `sdscissor` prints, in a process of its own."""
    line = [sys.executable, "-m", "sd_scissorhands", *map(str, words), "--json"]
    return json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)


TABLES = {
    "repair": repair, "scores": scores, "checkpointing": checkpointing, "robust": robust, "growth": growth,
    "forecast": forecast,
}  # fmt: skip


def main() -> None:
    """Measure and write the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(TABLES))
    parser.add_argument("--divisor", type=int, default=1, help="divide all widths: 4 leaves a sixteenth of the weights")
    parser.add_argument("--latents", type=int, default=64, help="side of the latents; the forecast's runs take half")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="*", default=MODES, help="memory modes of the forecast")
    parser.add_argument(
        "--document", type=Path, default=rows.DOCUMENT, help="with the tables' marks; JSON goes beside it"
    )
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    bench = Bench(given.divisor, given.latents, given.document, given.rounds, tuple(given.modes))
    for name in given.tables or TABLES:
        print(TABLES[name](bench), flush=True)


if __name__ == "__main__":
    main()
