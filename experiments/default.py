"""The tables of docs/experiments.md on the default recipe: `python experiments/default.py [open|stages|frontier|several ...]`.

Erasures, evaluations and attacks are those of `sdscissor erase`, `eval` and `attack`, with the settings named here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from columns import Cell, Rows, judged, mean, seconds, share_under, steps_back, success, whole
from plots import saved
from runner import DOCUMENT, Run, Settings, Table, command, main

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = "runs/experiments"
FRONTIER_PLOT = DOCUMENT.with_name("open-against-relearning.svg")
UNSEEN = ("green",)  # had no part in any choice
CONCEPTS = ("heart", "blue", "ring", "triangle", "cross", "yellow", "diamond", *UNSEEN)
SEEDS = (0, 1, 2)
PICTURES = 48  # behind the rate of an attack

ROBUST: Settings = {"recipe": "scissorhands-robust"}
OPEN: Settings = {"recipe": "scissorhands-open"}
SUBSTITUTION = {"recipe": "substitution"}
BY_LOT = {"scorer": "random"}
STAGES: dict[str, Settings] = {  # over scissorhands-open
    "scissorhands-open": {},
    "10 % of the weights, by contrast": {"train": "selection", "top_k": 0.1},
    "10 %, by lot": {"train": "selection", "top_k": 0.1, **BY_LOT},
    "25 %, by contrast": {"train": "selection", "top_k": 0.25},
    "25 %, by lot": {"train": "selection", "top_k": 0.25, **BY_LOT},
    "attention alone": {"scope": "attn"},
    "reinitialised, .1 % by contrast": {"edit": "reinitialise", "top_k": 0.001},
    "reinitialised, .1 % by lot": {"edit": "reinitialise", "top_k": 0.001, **BY_LOT},
    "projection of the repair": {"projection": "scale-free"},
    "projection of the forgetting": {"projection": "retain"},
    "projection both ways": {"projection": "both"},
}
FRONTIER: dict[str, Settings] = {
    "scissorhands-robust": ROBUST,
    "scissorhands-open": OPEN,
    "substitution": SUBSTITUTION,
    "esd": {"recipe": "esd"},
}

JUDGED = {"canvas": {"limit": 170}}
JUDGED_AFRESH = {"canvas-afresh": {"limit": 170, "seed": 1000}}  # prompts and start noise that no choice saw
THREE = {"embedding-three": {"attack": "embedding", "count": PICTURES, "tokens": 3}}
TOKEN = {"token": {"attack": "token", "count": PICTURES}}
STOPS = (
    1,
    2,
    3,
    4,
    5,
    7,
    10,
    15,
    20,
    30,
    40,
    60,
    80,
    120,
    160,
)  # steps of fine-tuning after which the pictures are judged
COMPLETED = {"completion": {"attack": "completion", "count": 20}}
FINE_TUNED = {"attack": "relearn", "count": 24, "steps": STOPS[-1], "stops": STOPS}
RELEARNED = {"relearn": {**FINE_TUNED, "lr": 3e-4}}
RELEARNED_BRIEFLY = {"relearn-briefly": {**FINE_TUNED, "count": 16, "lr": 3e-4, "stops": (5, 10, 20, 40, 80, 120, 160)}}


def one_restart(attack: dict[str, Settings]) -> dict[str, Settings]:
    """The same attack with one restart, under a name of its own."""
    return {f"{name}-once": {**settings, "restarts": 1} for name, settings in attack.items()}


def grid(
    variants: dict[str, Settings],
    concepts: tuple[str, ...],
    every: dict[str, Settings],
    first: dict[str, Settings] | None = None,
    seeds: tuple[int, ...] = SEEDS,
) -> list[Run]:
    """Runs of every variant, seed and concept; `first` is measured at the first seed alone."""
    return [
        Run(name, settings, (concept,), seed, every if seed else {**every, **(first or {})})
        for seed in seeds
        for name, settings in variants.items()
        for concept in concepts
    ]


def distance(rows: Rows) -> str:
    """Mean of the relative L2 distance of the weights from the original's."""
    return mean((command("diff", "tiny", row["model"])["relative_l2"] for row in rows), 3)


def memory(rows: Rows) -> str:
    """Mean of the largest stage's peak, in MiB."""
    manifests = [json.loads((Path(row["model"]).parent / "run.json").read_text()) for row in rows]
    peaks = (max(stage.get("peak_bytes") or 0 for stage in one["stages"].values()) for one in manifests)
    return mean((peak / 2**20 for peak in peaks), 0)


MARKERS = "os^DvPX*<>dp"


@contextlib.contextmanager
def plotted(file: Path, **labels: Any) -> Iterator[Axes]:
    """Axes to draw named points into, saved with a legend at the end: the same rows give the same bytes."""
    with saved(file, (6, 4.5)) as figure:
        axes = figure.subplots()
        yield axes
        axes.set(**labels)
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)


def plot_frontier(rows: Rows) -> None:
    """Open prompts unchanged against the steps of fine-tuning that bring the concept back, a point for every variant."""
    x = "steps of fine-tuning until the concept is back (more is better)"
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    y, ticks = "open prompts unchanged, % (more is better)", (10, 20, 40, 80, 160)
    with plotted(FRONTIER_PLOT, xscale="log", xlabel=x, ylabel=y, xlim=(8, 200)) as axes:
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        for row in rows:
            found = row["relearn-briefly"]["steps_back"]
            steps = found["concept"] or 2 * found["most"]  # never within: drawn beyond
            place = variants.index(row["variant"])
            axes.plot(
                [steps], [100 * row["canvas"]["figures"]["open_unchanged"]], MARKERS[place],
                color=f"C{place}", label=row["variant"],
            )  # fmt: skip


ATTACKED = {**RELEARNED, **one_restart(THREE)}
BRIEFLY = {**JUDGED, **one_restart(THREE), **RELEARNED_BRIEFLY}
BRIEF_COLUMNS: dict[str, Cell] = {
    **judged("canvas"),
    **whole("canvas"),
    "three embeddings ASR (worst)": success("embedding-three-once", original=False),
    "steps until it is back": steps_back("relearn-briefly"),
}


TABLES = {
    "open": Table(
        grid({"scissorhands-open": OPEN}, CONCEPTS[:4], JUDGED_AFRESH, ATTACKED | TOKEN | COMPLETED)
        + grid({"scissorhands-open": OPEN}, CONCEPTS[4:], JUDGED_AFRESH, ATTACKED),
        ("concept",),
        judged("canvas-afresh")
        | whole("canvas-afresh")
        | {
            "steps until it is back": steps_back("relearn"),
            "three embeddings ASR": success("embedding-three-once", original=False),
            "token ASR (worst)": success("token", original=False),
            "noised pictures completed to the concept": share_under("completion"),
        },
        mean=True,
    ),
    "stages": Table(
        grid(
            {name: {**OPEN, **own} for name, own in STAGES.items()},
            ("heart",),
            BRIEFLY,
            seeds=(0,),
        ),
        ("variant",),
        BRIEF_COLUMNS
        | {
            "relative L2 from the original": distance,
            "MiB of the run": memory,
            "seconds": seconds,
        },
    ),
    "frontier": Table(
        grid(FRONTIER, ("heart",), BRIEFLY, seeds=(0,)),
        ("variant", "concept"),
        BRIEF_COLUMNS
        | {
            "seconds": seconds,
        },
        finish=plot_frontier,
    ),
    "several": Table(
        [
            Run("scissorhands-open", OPEN, concepts, 0, JUDGED | one_restart(THREE), chain)
            for concepts, chain in ((("heart", "star", "blue", "striped"), False), (("ring", "yellow"), True))
        ],
        ("run", "concept"),
        judged("canvas")
        | whole("canvas")
        | {
            "three embeddings ASR": success("embedding-three-once"),
            "seconds of the run": seconds,
        },
    ),
}

if __name__ == "__main__":
    main(__doc__, TABLES, ROOT)
