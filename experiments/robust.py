"""The tables of docs/experiments.md on the default recipe: `python experiments/robust.py [robust|afresh|open|relearning|parts|stages|frontier|several|alone ...]`.

Erasures, evaluations and attacks are those of `sdscissor erase`, `eval` and `attack`, with the settings named here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import (
    DOCUMENT,
    SMOKE_ERASURE,
    Cell,
    Options,
    Rows,
    Run,
    Settings,
    Table,
    beside,
    command,
    joined,
    main,
    mean,
    only,
    seconds,
    share,
    steps_back,
    success,
)
from tables import machine, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = "runs/experiments"
PLOT = DOCUMENT.with_name("quality-against-attack.svg")
FRONTIER_PLOT = DOCUMENT.with_name("open-against-relearning.svg")
UNSEEN = ("green",)  # had no part in any choice
CONCEPTS = ("heart", "blue", "ring", "triangle", "cross", "yellow", "diamond", *UNSEEN)
COMPARED = ("heart", "ring")
SEEDS = (0, 1, 2)
PICTURES = 48  # behind the rate of an attack

ROBUST: Settings = {"recipe": "scissorhands-robust"}
OPEN: Settings = {"recipe": "scissorhands-open"}
SUBSTITUTION = {"recipe": "substitution"}
WHOLE = {**SUBSTITUTION, "scope": "full", "steps": 300, "lr": 4e-4}  # scope and rate as the default recipe has them
PAPER = {  # the paper's own settings, from which the recipe departs on the embedded model
    "recipe": "scissorhands", "scope": r"up_blocks\.[12]\.attentions\.1\..*attn1", "top_k": 0.005, "threshold_scope": "global",
    "options": {"init": "kaiming"}, "projection": "paper", "forget_weight": 0.1, "retain_loss": "denoise",
}  # fmt: skip
PARTS: dict[str, Settings] = {
    "scissorhands-robust": ROBUST,
    "substitution": SUBSTITUTION,
    "scissorhands-anchored": {"recipe": "scissorhands-anchored"},
    "scissorhands": PAPER,
    "without an adversary": {"relearn_every": 0},
    "under the name alone": {"conditions": "name"},
    "anchor's prediction": {"repair": "anchor"},
    "with projection": {"projection": "scale-free"},
    "with trimming, .5 %, contrast": {"edit": "reinitialise", "top_k": 0.005},
    "with trimming, 1 % in channels, activation": {
        "edit": "reinitialise", "top_k": 0.01, "granularity": "channel", "scorer": "activation",
    },
}  # fmt: skip

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
ONE = {"embedding": {"attack": "embedding", "count": PICTURES}}
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
RELEARNED_SLOWLY = {"relearn-slowly": {**FINE_TUNED, "lr": 1e-4}}


def once(attack: dict[str, Settings]) -> dict[str, Settings]:
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


def judged(measure: str) -> dict[str, Cell]:
    """Columns on the concept and on everything else, the original behind the stroke."""
    return {
        "UA": share(measure, "UA"),
        "UA synonyms": share(measure, "UA_synonyms"),
        "open prompts without it / original": beside(measure, "UA_generic"),
        "IRA / original": beside(measure, "IRA"),
        "CRA / original": beside(measure, "CRA"),
        "CRA forget / original": beside(measure, "CRA_forget"),
    }


def another_seed(measure: str, figure: str) -> Cell:
    """A figure with that of another seed, drawn by the original, behind the stroke."""
    return joined(share(measure, figure), lambda rows: mean(row[measure]["another_seed"][figure] for row in rows))


def whole(measure: str) -> dict[str, Cell]:
    """Columns on what names nothing: how much of it is as it was, another seed behind the stroke."""
    return {
        "open unchanged / another seed": another_seed(measure, "open_unchanged"),
        "unlisted unchanged / another seed": another_seed(measure, "unlisted_unchanged"),
        "open variation / another seed": another_seed(measure, "open_variation"),
        "unlisted variation / another seed": another_seed(measure, "unlisted_variation"),
        "anchor in open prompts / original": beside(measure, "open_anchor"),
    }


def distance(rows: Rows) -> str:
    """Mean of the relative L2 distance of the weights from the original's."""
    return mean((command("diff", "tiny", row["model"])["relative_l2"] for row in rows), 3)


def memory(rows: Rows) -> str:
    """Mean of the largest stage's peak, in MiB."""
    manifests = [json.loads((Path(row["model"]).parent / "run.json").read_text()) for row in rows]
    peaks = (max(stage.get("peak_bytes") or 0 for stage in one["stages"].values()) for one in manifests)
    return mean((peak / 2**20 for peak in peaks), 0)


def share_under(measure: str) -> Cell:
    """Mean success of an attack without restarts."""
    return lambda rows: mean(row[measure]["asr_after"] for row in rows if measure in row)


def across(cell: Cell, *variants: str) -> Cell:
    """A cell of several variants, parted by strokes."""
    return joined(*(only(cell, variant=variant) for variant in variants))


BESIDE = {"scissorhands-robust": ROBUST, "substitution": SUBSTITUTION, "substitution, all weights": WHOLE}
MAIN = {"scissorhands-robust": ROBUST}


MARKERS = "os^DvPX*<>dp"


@contextlib.contextmanager
def plotted(file: Path, **labels: Any) -> Iterator[Axes]:
    """Axes to draw named points into, saved with a legend at the end: the same rows give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "experiments", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.subplots()
        yield axes
        axes.set(**labels)
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def plot(rows: Rows) -> None:
    """Mean of IRA and CRA against the success of three embeddings, a point for every variant and one for the original."""
    points = {
        "original": [(row["embedding-three-once"]["original"]["asr_after"], row["canvas"]["original"]) for row in rows]
    }
    for row in rows:
        point = (row["embedding-three-once"]["asr_after"], row["canvas"]["figures"])
        points.setdefault(row["variant"], []).append(point)
    x, y = "attacked pictures with the concept, % (less is better)", "mean of IRA and CRA, %"
    with plotted(PLOT, xlabel=x, ylabel=y, xlim=(-4, 104)) as axes:
        for place, (name, own) in enumerate(points.items()):
            attacked = 100 * statistics.fmean(asr for asr, _ in own)
            quality = 50 * statistics.fmean(figures["IRA"] + figures["CRA"] for _, figures in own)
            axes.plot([attacked], [quality], MARKERS[place], label=name)


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


ATTACKED = {**RELEARNED, **once(THREE)}
BRIEFLY = {**JUDGED, **once(THREE), **RELEARNED_BRIEFLY}
BRIEF_COLUMNS: dict[str, Cell] = {
    **judged("canvas"),
    **whole("canvas"),
    "three embeddings ASR (worst)": success("embedding-three-once", original=False),
    "steps until it is back": steps_back("relearn-briefly"),
}


def alone(options: Options) -> str:
    """What one erasure takes where nothing else runs, as a user gives the command: seconds and memory."""
    lines = []
    for concept in options.concepts or CONCEPTS:
        folder = options.root / "alone" / concept
        shutil.rmtree(folder, ignore_errors=True)
        few = options.overlay(**SMOKE_ERASURE) if options.smoke else ()
        began = time.monotonic()
        result = command("erase", "--model", "tiny", "--concept", concept, "--output-dir", folder, *few)
        whole = time.monotonic() - began
        stages = json.loads((folder / "run.json").read_text())["stages"].values()
        lines.append((concept, result["seconds"], whole, max(stage.get("peak_bytes") or 0 for stage in stages) / 2**20))
    lines.append(("mean", *(statistics.fmean(column) for column in list(zip(*lines, strict=True))[1:])))
    header = "concept; seconds of the erasure; of the whole command; MiB"
    return (
        markdown(header, [[name, *(f"{value:.0f}" for value in values)] for name, *values in lines])
        + f"\n\n{machine()}"
    )


TABLES = {
    "robust": Table(
        grid(MAIN, CONCEPTS, JUDGED | ONE, THREE | TOKEN),
        ("concept",),
        judged("canvas")
        | whole("canvas")
        | {
            "embedding ASR (worst) / original": success("embedding"),
            "three embeddings ASR (worst) / original": success("embedding-three"),
            "token ASR (worst) / original": success("token"),
        },
        mean=True,
        bold=UNSEEN,
    ),
    "afresh": Table(
        grid(MAIN, CONCEPTS, JUDGED_AFRESH),
        ("concept",),
        judged("canvas-afresh") | whole("canvas-afresh"),
        mean=True,
        bold=UNSEEN,
    ),
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
    "relearning": Table(
        grid(BESIDE, CONCEPTS, JUDGED | RELEARNED, RELEARNED_SLOWLY | once(THREE)),
        ("concept",),
        {
            "relearn steps at 3e-4, robust / substitution / of all weights": across(steps_back("relearn"), *BESIDE),
            "at 1e-4": across(steps_back("relearn-slowly"), *BESIDE),
            "on other pictures, robust": across(steps_back("relearn", "benign"), *MAIN),
            "three embeddings ASR": across(success("embedding-three-once", original=False), *BESIDE),
            "UA": across(share("canvas", "UA"), *BESIDE),
            "IRA": across(share("canvas", "IRA"), *BESIDE),
        },
        mean=True,
        bold=UNSEEN,
    ),
    "parts": Table(
        grid(PARTS, COMPARED, JUDGED | once(THREE) | RELEARNED, seeds=(0,)),
        ("variant",),
        {
            **{name.replace("_", " "): share("canvas", name) for name in ("UA", "UA_synonyms", "IRA", "CRA")},
            "three embeddings ASR (worst)": success("embedding-three-once", original=False),
            **{f"relearn steps, {concept}": only(steps_back("relearn"), concept=concept) for concept in COMPARED},
            "relative L2 from the original": distance,
            "seconds": seconds,
        },
        finish=plot,
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
            Run("scissorhands-open", OPEN, concepts, 0, JUDGED | once(THREE), chain)
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
    "alone": alone,
}

if __name__ == "__main__":
    main(__doc__, TABLES, ROOT)
