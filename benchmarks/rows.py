"""Rows of docs/benchmarks.md and docs/benchmarks.json: ours and a plainly written baseline by turns in one process.

A script that measures sets OMP_WAIT_POLICY=PASSIVE before its first import of torch or numpy, whose threads must not wait
busily where cores are shared.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "experiments"))

from tables import machine, markdown, publish  # noqa: E402

os.environ["SDSCISSOR_CACHE"] = "off"  # what is timed draws
DOCUMENT = ROOT / "docs" / "benchmarks.md"
MIB = 1 << 20
COMPARED = "what; weights; plain, s; ours, s; ratio; plain, MiB; ours, MiB; speed probe, ms"

Row = dict[str, Any]
Ways = dict[str, Callable[[], object]]


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Turn:
    """One call of one way: its time, and the most memory that the process had beyond what it had before."""

    seconds: float
    extra_bytes: int


def probe() -> float:
    """Milliseconds of a fixed matrix product: how fast the machine is at the moment."""
    a, began = np.ones((600, 600), np.float32), time.perf_counter()
    for _ in range(10):
        a @ a
    return 1000 * (time.perf_counter() - began)


def turn(way: Callable[[], object]) -> Turn:
    """Call once; what the call returns counts as memory of the call and is dropped."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else memory that the allocator did not give back hides what is used
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before, began = _status("VmRSS"), time.perf_counter()
    result = way()
    seconds = time.perf_counter() - began
    extra = _status("VmHWM") - before
    del result
    return Turn(seconds, max(0, extra))


def _status(key: str) -> int:
    """A line of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) * 1024


def interleave(
    ways: Ways, rounds: int, *, prepare: Callable[[], object] = lambda: None
) -> tuple[dict[str, list[Turn]], list[float]]:
    """The turns of every way, A B A B, and a probe per round; `prepare` runs before each turn, untimed."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    probes = []
    for _ in range(rounds):
        probes.append(probe())
        for name, way in ways.items():
            prepare()
            turns[name].append(turn(way))
            print(f"{name}: {turns[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    return turns, probes


def beyond(turns: Sequence[Turn], held: int) -> list[Turn]:
    """Turns with what is held between them added."""
    return [Turn(turn.seconds, turn.extra_bytes + held) for turn in turns]


def numel(tensors: Iterable[Tensor]) -> int:
    """Weights in tensors."""
    return sum(tensor.numel() for tensor in tensors)


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---------------------------------------------------------------- recording


def row(
    name: str,
    ours: Sequence[Turn],
    baseline: Sequence[Turn],
    probes: Sequence[float],
    *,
    weights: int | None = None,
    memory: bool = True,
    where: str = "",
) -> Row:
    """A row: medians, and under `rounds` every round. A name begins with its table's and a colon.

    Args:
        memory: whether the extra bytes mean anything; else they are null.
        where: the machine in words; this one if empty.
    """
    ratios = [b.seconds / o.seconds for o, b in zip(ours, baseline, strict=False)]
    sides = {"ours": ours, "baseline": baseline}
    rounds: Row = {side: [round(turn.seconds, 4) for turn in turns] for side, turns in sides.items()}
    rounds |= {f"{side}_bytes": [turn.extra_bytes for turn in turns if memory] for side, turns in sides.items()}
    return {
        "name": name,
        "table": name.partition(":")[0],
        "ours": statistics.median(rounds["ours"]),
        "baseline": statistics.median(rounds["baseline"]) if baseline else None,
        "ratio": round(statistics.median(ratios), 2) if baseline else None,
        "extra_bytes": max(rounds["ours_bytes"]) if memory else None,
        "weights": weights,
        "machine": where or machine(),
        "rounds": rounds | {"probe_ms": [round(ms, 1) for ms in probes]},
    }


def record(rows: Sequence[Row], document: Path = DOCUMENT) -> list[Row]:
    """Put rows into the JSON list beside the document, each in the place of that of the same name or at the end.

    Returns:
        The whole list.
    """
    file = document.with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else []
    merged = {one["name"]: one for one in known} | {one["name"]: one for one in rows}
    file.write_text("[\n" + ",\n".join(json.dumps(one) for one in merged.values()) + "\n]\n")
    return list(merged.values())


# ---------------------------------------------------------------- tables


def tabulate(
    table: str, header: str, line: Callable[[Row], list[str]], *, note: str = "", document: Path = DOCUMENT
) -> str:
    """Write a table of all its rows in the JSON list into the document, between its marks, and return it.

    Args:
        header: cells parted by semicolons.
        line: the cells of a row.
        note: follows the table, before the rounds and the machine.
    """
    rows = [one for one in record([], document) if one["table"] == table]
    counts = sorted({len(one["rounds"]["ours"]) for one in rows})
    rounds = f"Medians (least to most) of {' or '.join(map(str, counts))} interleaved rounds."
    machines = " ".join(sorted({one["machine"] for one in rows}))
    text = markdown(header, [line(one) for one in rows])
    publish(table, f"{text}\n\n{f'{note} {rounds} {machines}'.strip()}", document)
    return text


def short(one: Row) -> str:
    """A row's name without its table's."""
    return one["name"].removeprefix(f"{one['table']}: ")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median (least to most); empty of nothing."""
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def mib(values: Sequence[int]) -> str:
    """The most of some bytes, in MiB; empty of nothing."""
    return f"{max(values) / MIB:,.0f}" if values else ""


def compared(one: Row) -> list[str]:
    """The cells of `COMPARED`."""
    rounds = one["rounds"]
    return [
        short(one),
        f"{one['weights']:,}",
        spread(rounds["baseline"], 2),
        spread(rounds["ours"], 2),
        f"{one['ratio'] or 0:.1f}",
        mib(rounds["baseline_bytes"]),
        mib(rounds["ours_bytes"]),
        spread(rounds["probe_ms"]),
    ]
