"""Scores, repair steps and whole runs at Stable Diffusion 1.4's size, on the CPU: `python benchmarks/steps.py [TABLE ...]`.

Each table goes to docs/benchmarks.md and its rows to docs/benchmarks.json. The published configuration with random weights.
At full size `scores` needs about 19 GiB of memory, `published` 18 and the others at most 14; a round of a repair step takes three
minutes on two cores, and `--rounds 1 --add` takes one more, for machines that are lent for minutes; `--divisor 4` and a
`--document` of one's own are for trying.
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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import rows
import torch
from reference import PARTS, Batch, Clock, Reference
from rows import MIB, Row, Turn, interleave
from scale import plain_selection
from sd14 import TOKENS, build, build_encoders, erasure, save_pipeline
from torch import Tensor

from sd_scissorhands.erasure import parts_of
from sd_scissorhands.methods import repair as repair_room
from sd_scissorhands.methods.method import Options, score
from sd_scissorhands.methods.project import RULES, Memories
from sd_scissorhands.methods.repair import Repair
from sd_scissorhands.methods.selection import select_top
from sd_scissorhands.recipes import ON_CPU

ROUNDS, SLOW = 3, 40.0  # rounds, and seconds of a turn from which two are enough
WIDTHS = (8, 4, 2, 1)  # growth: divisors of the width
MODES = ("low", "balanced", "fast")
SHORT = dict(  # of the forecast's runs: every stage, few pictures and steps
    recipe="scissorhands-anchored", device="cpu", forget_count=2, retain_count=2, sampling_steps=2,
    score_draws=1, steps=2, batch_size=2,
)  # fmt: skip


# ---------------------------------------------------------------- ours


class Ours:
    """The package's repair, a step at a time."""

    def __init__(self, repair: Repair):
        self.repair, self.clock, self.conflict = repair, Clock(), True
        count = repair.memories if repair.rule else 0  # random, which takes no pass
        self.memories = Memories([[torch.randn_like(p) for p in repair.parameters.values()] for _ in range(count)])

    def step(self) -> None:
        """What `Repair.run` does in a step without fresh memories, its parts timed; always the same draw."""
        timed, repair = self.clock.timed, self.repair
        wrapped = [
            (repair.task, "repair", "forward"),
            (repair, "_back", "backward"),
            (repair_room, "project", "projection"),
            (repair.optimizer, "step", "optimizer"),
        ]
        with ExitStack() as stack:
            for owner, name, part in wrapped:
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
            repair._descend(self.memories, None)
        self.conflict = repair._unsettled[-1][1].conflict

    @property
    def held(self) -> int:
        """Bytes kept from step to step beyond the model: moments, memories, the teacher's copies."""
        memories = [tensor for memory in self.memories.gradients for tensor in memory]
        return size(memories) + size(self.repair.task.teacher.values()) + moments(self.repair.optimizer)


def of_settings(task, parameters, settings, steps: int = 1 << 20) -> Repair:
    """A repair as `stages.unlearn` makes it."""
    return Repair(
        task, parameters, steps, settings.lr, settings.forget_weight, RULES[settings.projection], settings.memories,
        settings.memory_every, settings.relearn_every, parts=parts_of(settings, 1),
    )  # fmt: skip


def settle(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Let an optimiser make its moments, by a step that changes nothing."""
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters.values():
        parameter.grad = None


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def moments(optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of an optimiser's state."""
    states = optimizer.state.values() if optimizer else ()
    return size(t for state in states for t in state.values() if isinstance(t, Tensor))


def numel(tensors: Iterable[Tensor]) -> int:
    """Weights in tensors."""
    return sum(t.numel() for t in tensors)


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class How:
    """The size of a measurement, and where it goes."""

    divisor: int
    latents: int
    document: Path
    rounds: int = 0  # 0: ROUNDS, or two where a turn is `SLOW`
    add: bool = False  # to the rounds that are recorded already
    modes: tuple[str, ...] = MODES

    def by_turns(self, ways: dict[str, Callable[[], object]], **how: Any) -> tuple[dict[str, list[Turn]], list[float]]:
        """The turns of every way, each told as it ends, and the probes, see `interleave`."""
        ways = {name: aloud(name, way) for name, way in ways.items()}
        turns, probes = interleave(ways, 1, **how)
        slow = max(one.seconds for some in turns.values() for one in some) > SLOW
        more, others = interleave(ways, (self.rounds or (2 if slow else ROUNDS)) - 1, **how)
        return {name: turns[name] + more[name] for name in ways}, probes + others

    def keep(self, name: str, turns, probes, weights: int, plain="reference", parts=(), **more: Any) -> None:
        """Record a row of the table that its name begins with; `turns` by way, `plain` the baseline's, if it is there."""
        ours, baseline, parts = turns["ours"], turns.get(plain, []), list(parts)
        known = next((one["rounds"] for one in rows.record([], self.document) if one["name"] == name), None)
        if self.add and known:
            ours, baseline = again(known, "ours") + ours, again(known, "baseline") + baseline
            probes, parts = known["probe_ms"] + probes, known.get("parts", []) + parts
        row = rows.row(
            name, ours, baseline, probes, table=name.partition(":")[0], machine=rows.machine(), weights=weights
        ) | more  # fmt: skip
        if parts:
            row["rounds"]["parts"] = parts
        rows.record([row], self.document)

    def tabulate(self, table: str, header: str, line: Callable[[Row], list[str]], told: str = "") -> str:
        """A table out of its rows."""
        return rows.tabulate(table, header, line, told=told, document=self.document)


def aloud(name: str, way: Callable[[], object]) -> Callable[[], object]:
    """A way that says how long it took."""

    def call() -> object:
        began = time.perf_counter()
        result = way()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        return result

    return call


def again(rounds: dict[str, list], side: str) -> list[Turn]:
    """The recorded turns of a side."""
    return [Turn(*both) for both in zip(rounds[side], rounds[f"{side}_bytes"], strict=True)]


def beyond(turns: Sequence[Turn], held: int) -> list[Turn]:
    """Turns with what is held between them."""
    return [Turn(turn.seconds, turn.extra_bytes + held) for turn in turns]


def repair(how: How, everything: bool = False) -> str:
    """A repair step of the paper's recipe on all attention, projected, against the reference's, and both in parts.

    Args:
        everything: the reference's step as published, which takes the gradients of all weights.
    """
    denoiser, encoders = build(how.divisor, how.latents), build_encoders(how.divisor)
    task, parameters, settings = erasure(denoiser, recipe="scissorhands", batch_size=1, **ON_CPU["balanced"])
    ours = Ours(of_settings(task, parameters, settings))
    rule, weight = RULES[settings.projection], settings.forget_weight
    plain = Reference(denoiser, *encoders, parameters, everything=everything)
    plain.prepare(settings.lr, [[f.clone() for f in m] for m in ours.memories.gradients], rule, weight)
    for way in (ours.repair, plain):
        settle(way.optimizer, parameters)
    forget, retain = Batch.random(denoiser), Batch.random(denoiser)
    anchor = torch.randint(1000, (1, TOKENS))
    told: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}

    def step(name: str, way, call: Callable[[], None]) -> Callable[[], None]:
        def one() -> None:
            way.clock.seconds = dict.fromkeys(PARTS, 0.0)
            call()
            told[name].append(way.clock.seconds)

        return one

    ways = {
        "reference": step("reference", plain, lambda: plain.step(forget, anchor, retain)),
        "ours": step("ours", ours, ours.step),
    }

    def prepare() -> None:
        plain.clear()
        for way, memories in ((ours, ours.memories.gradients), (plain, plain.memories)):
            if not way.conflict:  # with random weights a matter of chance
                torch._foreach_neg_([f for memory in memories for f in memory])

    turns, probes = how.by_turns(ways, prepare=prepare)
    held = {"reference": size(f for m in plain.memories for f in m) + moments(plain.optimizer), "ours": ours.held}
    turns = {name: beyond(some, held[name]) for name, some in turns.items()}
    weights, whole = numel(parameters.values()), size(denoiser.module.parameters())
    how.keep(
        "steps: repair, attn", turns, probes, weights, model_bytes=whole + sum(size(e.parameters()) for e in encoders)
    )
    for side, some in turns.items():
        how.keep(f"parts: {side}{', all gradients' * everything}", {"ours": some}, probes, weights, parts=told[side])
    shares(how)
    return stages(how)


def shares(how: How) -> str:
    """The table of a step's parts."""

    def line(one: Row) -> list[str]:
        parts = [statistics.median(own[part] for own in one["rounds"]["parts"]) for part in PARTS]
        every = [*parts, one["ours"] - sum(parts)]
        cells = [f"{seconds:.2f} ({seconds / one['ours']:.0%})" if seconds else "" for seconds in every]
        return [one["name"].removeprefix("parts: "), *cells, rows.spread(one["rounds"]["ours"], 2)]

    header = f"repair step of; {'; '.join(f'{part}, s' for part in PARTS)}; rest, s; all, s"
    return how.tabulate("parts", header, line)


def scores(how: How) -> str:
    """Scores and selection, over all attention and over the whole UNet, against the reference's."""
    denoiser, encoders = build(how.divisor, how.latents), build_encoders(how.divisor)
    model = sum(size(part.parameters()) for part in (denoiser.module, *encoders))
    for scope in ("attn", "full"):
        task, parameters, settings = erasure(denoiser, recipe="scissorhands", scope=scope, batch_size=1)
        task.teacher = None
        plain, batch = Reference(denoiser, *encoders, parameters), Batch.random(denoiser)
        ways = {
            "reference": lambda plain=plain, batch=batch: plain.scores([batch]),
            "ours": lambda task=task, own=parameters: score(task, own, "plain", Options(draws=1)),
        }
        turns, probes = how.by_turns(ways, prepare=plain.clear)
        weights = numel(parameters.values())
        how.keep(f"steps: scores, {scope}", turns, probes, weights, model_bytes=model)
        if scope == "attn":  # over the whole UNet: the table of selections
            turns, probes = select(how, ways["ours"](), settings.top_k)
            how.keep("steps: selection, attn", turns, probes, weights, model_bytes=model)
        plain.clear()
    return stages(how)


def select(how: How, found: dict[str, Tensor], k: float) -> tuple[dict[str, list[Turn]], list[float]]:
    """Turns of the selection, the scores counted too, and probes."""
    choose = {"reference": lambda: plain_selection(found, k), "ours": lambda: select_top(found, k)}
    turns, probes = how.by_turns(choose)
    return {name: beyond(some, size(found.values())) for name, some in turns.items()}, probes


def stages(how: How) -> str:
    """The table of scores, selection and repair."""

    def line(one: Row) -> list[str]:
        bytes_ = [max(one["rounds"][f"{side}_bytes"], default=0) for side in ("baseline", "ours")]
        cells = rows.compared(one | {"ratio": one["ratio"] or 0})
        less = [
            f"{1 - bytes_[1] / bytes_[0]:.0%}",
            f"{1 - (bytes_[1] + one['model_bytes']) / (bytes_[0] + one['model_bytes']):.0%}",
        ]
        return [*cells[:4], f"{one['ratio']:.2f}", *(f"{b / MIB:,.0f}" for b in bytes_), *less, cells[-1]]

    header = (
        "what, scope; weights in scope; reference, s; ours, s; ratio; reference, MiB; ours, MiB; less; "
        "less, with the models; speed probe, ms"
    )
    model = next(one["model_bytes"] for one in rows.record([], how.document) if one["table"] == "steps")
    told = f"MiB: most in use beyond the weights of UNet, VAE and text encoder, which are {model / MIB:,.0f} MiB."
    return how.tabulate("steps", header, line, told)


def robust(how: How) -> str:
    """Two steps of the default recipe, one of which looks ahead, at two samples a side."""
    denoiser = build(how.divisor, how.latents)
    task, parameters, settings = erasure(denoiser, batch_size=2, conditions="name", **ON_CPU["balanced"])
    way = {"ours": lambda: of_settings(task, parameters, settings, steps=2).run()}
    turns, probes = how.by_turns(way)
    held = size(task.teacher.values())
    how.keep("robust: two steps, attn", {"ours": beyond(turns["ours"], held)}, probes, numel(parameters.values()))
    header = "what, scope; weights in scope; s; MiB; speed probe, ms"

    def line(one: Row) -> list[str]:
        cells = rows.compared(one | {"ratio": 0.0})
        return [*cells[:2], cells[3], cells[6], cells[7]]

    return how.tabulate("robust", header, line, "MiB: beyond the UNet's weights.")


def checkpointing(how: How) -> str:
    """A repair step with and without gradient checkpointing."""
    denoiser = build(how.divisor, how.latents)
    task, parameters, settings = erasure(denoiser, recipe="scissorhands", batch_size=1)
    way = Ours(of_settings(task, parameters, settings))
    settle(way.repair.optimizer, parameters)

    def step(enable: bool) -> None:
        module = denoiser.module
        (module.enable_gradient_checkpointing if enable else module.disable_gradient_checkpointing)()
        way.step()

    def gradients() -> None:
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)

    ways = {"without": lambda: step(False), "ours": lambda: step(True)}
    turns, probes = how.by_turns(ways, prepare=gradients)
    how.keep("checkpointing: repair, attn", turns, probes, numel(parameters.values()), "without")

    def line(one: Row) -> list[str]:
        cells = rows.compared(one)
        most = [max(one["rounds"][f"{side}_bytes"]) for side in ("baseline", "ours")]
        return [*cells[:4], f"{1 / one['ratio']:.2f}", *cells[5:7], f"{most[1] / most[0]:.2f}", cells[7]]

    header = (
        "what, scope; weights in scope; without, s; with, s; times as long; without, MiB; with, MiB; "
        "times the activations; speed probe, ms"
    )
    return how.tabulate("checkpointing", header, line, "MiB: beyond weights, gradients and what the optimizer holds.")


def growth(how: How) -> str:
    """Time and memory of scores over the whole UNet, from a sixty-fourth of its weights to all of them."""
    for divisor in WIDTHS:
        denoiser = build(divisor * how.divisor, how.latents)
        task, parameters, _ = erasure(denoiser, recipe="scissorhands", scope="full", batch_size=1)
        task.teacher = None
        way = {"ours": lambda task=task, own=parameters: score(task, own, "plain", Options(draws=1))}
        turns, probes = how.by_turns(way)
        share = f"1/{divisor**2}" if divisor > 1 else "all"
        how.keep(f"growth-of-scores: {share}", turns, probes, numel(parameters.values()))
        del denoiser, task, parameters, way

    def line(one: Row) -> list[str]:
        cells = rows.compared(one | {"ratio": 0.0})
        per = one["extra_bytes"] / one["weights"]
        return [*cells[:2], cells[3], f"{1e9 * one['ours'] / one['weights']:.0f}", cells[6], f"{per:.0f}", cells[7]]

    header = "share of the UNet's weights; weights; s; ns a weight; extra MiB; extra bytes a weight; speed probe, ms"
    return how.tabulate("growth-of-scores", header, line)


# ---------------------------------------------------------------- the forecast


def forecast(how: How) -> str:
    """`erase --dry-run` against what the same command, carried out, enters in its manifest: peak memory by stage."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "sd"
        save_pipeline(model, how.divisor, how.latents // 2)
        for mode in how.modes:
            config, run = Path(folder) / f"{mode}.toml", Path(folder) / mode
            asked = SHORT | {"model": str(model), "memory": mode, "concepts": ["nudity"]}
            config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in asked.items()))
            told = command("erase", "--config", config, "--dry-run", "--json")
            command("erase", "--config", config, "--json", "--quiet", "--output-dir", run)
            found = json.loads((run / "run.json").read_text())["stages"]
            peaks = {stage: (bytes_, found[stage]["peak_bytes"]) for stage, bytes_ in told["peak_bytes"].items()}
            rows.record(
                [foretold(mode, stage, *both, told["scope_size"]) for stage, both in peaks.items()], how.document
            )
            shutil.rmtree(run)
    told = (
        f"Forecast and peak of the process. Recipe {SHORT['recipe']}, {8 * how.latents // 2} x {8 * how.latents // 2} pixels, float32 in every mode, "
        f"as by default on a CPU, {SHORT['forget_count']} pictures a kind, {SHORT['steps']} steps of "
        f"{SHORT['batch_size']} samples a side."
    )  # fmt: skip
    return how.tabulate(
        "forecast", "memory, stage; weights in scope; forecast, MiB; run, MiB; forecast over run", against, told
    )


def foretold(mode: str, stage: str, forecast: int, peak: int, weights: int) -> Row:
    """A row: `ours` is the forecast and `baseline` the run, in bytes."""
    return {
        "name": f"forecast: {mode}, {stage}", "table": "forecast", "ours": forecast, "baseline": peak,
        "ratio": forecast / peak, "extra_bytes": peak, "weights": weights, "machine": rows.machine(),
        "rounds": {"ours": [forecast], "baseline": [peak]},
    }  # fmt: skip


def against(one: Row) -> list[str]:
    """The cells of a forecast's row."""
    name = one["name"].removeprefix("forecast: ")
    return [
        name,
        f"{one['weights']:,}",
        *(f"{one[side] / MIB:,.0f}" for side in ("ours", "baseline")),
        f"{one['ratio']:.2f}",
    ]


def command(*words: object) -> dict[str, Any]:
    """What a command of `sdscissor` prints as JSON, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "sd_scissorhands", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(told.stdout)


TABLES = {
    "repair": repair, "published": partial(repair, everything=True), "robust": robust, "scores": scores, "checkpointing": checkpointing, "growth": growth,
    "forecast": forecast,
}  # fmt: skip


def main() -> None:
    """Measure and write the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(TABLES))
    parser.add_argument("--divisor", type=int, default=1, help="divide all widths: 4 leaves a sixteenth of the weights")
    parser.add_argument("--latents", type=int, default=64, help="side of the latents; the forecast's runs take half")
    parser.add_argument("--rounds", type=int, default=0, help=f"{ROUNDS}, or 2 of turns beyond {SLOW:.0f} s")
    parser.add_argument("--add", action="store_true", help="add the rounds to those recorded before")
    parser.add_argument("--modes", nargs="*", default=MODES, help="memory modes of the forecast")
    parser.add_argument(
        "--document", type=Path, default=rows.DOCUMENT, help="with the tables' marks; JSON goes beside it"
    )
    asked = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    for name in asked.tables or TABLES:
        how = How(asked.divisor, asked.latents, asked.document, asked.rounds, asked.add, tuple(asked.modes))
        print(TABLES[name](how), flush=True)


if __name__ == "__main__":
    main()
