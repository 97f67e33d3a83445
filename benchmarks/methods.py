"""The tables of docs/experiments.md on recipes side by side: `python benchmarks/methods.py [classifiers|denoisers|edits ...]`.

Every row is a run of `sdscissor compare` in runs/methods, kept there, so that what was cut off continues. `--seeds N` takes
fewer seeds than the tables' own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiments import alone, machine, markdown, publish  # the other tables' helpers, beside this file

ROOT = Path("runs/methods")
CONCEPTS = ("heart", "ring", "blue", "yellow")  # every process takes a shape or a colour of each half
MEASURES: dict[str, Any] = {"count": 60, "attacking": {"restarts": 1, "count": 48}}
CLASS, SHARE = "3", 0.1
EDITED = ("scissorhands", "lra-npp", "l-codec", "random-k")  # recipes with an edit, looked at before the repair
SEEDS = {"classifiers": 5, "denoisers": 3, "edits": 1}

Rows = list[dict[str, Any]]


def compared(
    settings: Any,
    targets: tuple[dict[str, Any], ...],
    root: Path,
    seeds: int,
    recipes: tuple[str, ...] = (),
    **how: Any,
) -> Rows:
    """The rows of one comparison, over every recipe that fits unless some are named."""
    from sd_scissorhands.comparison.compare import compare
    from sd_scissorhands.comparison.jobs import Comparison, Measures

    alone()
    asked = Comparison(settings, targets, recipes, seeds, Measures(**MEASURES | how))
    return compare(asked, root)["rows"]


def erasures(concepts: tuple[str, ...], seeds: int) -> Rows:
    """Every recipe on some concepts of the embedded model, a seed after the other so that what there is is even."""
    from sd_scissorhands.settings import EraseSettings

    rows: Rows = []
    for count in range(1, seeds + 1):
        targets = tuple({"concepts": (concept,)} for concept in concepts)
        rows = compared(EraseSettings(model="tiny"), targets, ROOT / "-".join(concepts), count)
        print(f"{concepts}: {len(rows)} rows", flush=True)
    return rows


def forgettings(target: dict[str, Any], seeds: int) -> Rows:
    """Every recipe on the digits, and for a class the control of L-CODEC's choice: as many rows of weights, drawn by lot."""
    from sd_scissorhands.settings import ForgetSettings

    name = "-".join(str(part) for item in target.items() for part in item)
    rows = compared(ForgetSettings(), (target,), ROOT / name, seeds)
    return rows if "forget_random" in target else rows + [drawn_rows(target, seed) for seed in range(seeds)]


def drawn_rows(target: dict[str, Any], seed: int) -> dict[str, Any]:
    """A Newton step on rows drawn by lot, with as many weights as L-FOCI chose in the same seed."""
    from sd_scissorhands.forgetting import forget
    from sd_scissorhands.settings import ForgetSettings

    chosen = json.loads(next(ROOT.glob(f"*{CLASS}/*/l-codec-seed{seed}/run.json")).read_text())["result"]
    asked = ForgetSettings(
        recipe="l-codec", scorer="random", top_k=chosen["trimmed"] / chosen["scope_size"], seed=seed, **target
    )
    folder = ROOT / "drawn-rows" / f"seed{seed}"
    result = forget(asked, folder, shared=ROOT / "shared", resume=True)
    return {"recipe": "l-codec, rows by lot", "seed": seed, "seconds": result["seconds"], **result["figures"]}


# ---------------------------------------------------------------- tables


def spread(rows: Rows, name: str, digits: int = 3) -> str:
    """Mean over rows and, behind it, the range; "" where there is no figure."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return ""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.fmean(values):.{digits}f}" + (f" ({low} to {high})" if low != high else "")


def by_recipe(rows: Rows) -> dict[str, Rows]:
    """Rows by recipe, in the order in which recipes first come."""
    return {name: [row for row in rows if row["recipe"] == name] for name in dict.fromkeys(r["recipe"] for r in rows)}


def table_classifiers(seeds: int) -> None:
    """Digits: a class, then a random share."""
    names = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia", "mia_svc", "probe", "gap")
    header = f"recipe; {'; '.join(name.replace('_', ' ') for name in names)}; relearn steps; seconds; MiB"
    for mark, target in (("digits-class", {"forget_class": CLASS}), ("digits-random", {"forget_random": SHARE})):
        lines = []
        for recipe, own in by_recipe(forgettings(target, seeds)).items():
            own = [{**row, "mib": row["peak_bytes"] / 2**20 if row.get("peak_bytes") else None} for row in own]
            figures = [spread(own, name) for name in names]
            lines.append(
                [recipe, *figures, spread(own, "relearn", 0), spread(own, "seconds", 1), spread(own, "mib", 0)]
            )
        publish(mark, markdown(header, lines) + f"\n\nSeeds 0 to {seeds - 1}. {machine()}")


def table_denoisers(seeds: int) -> None:
    """The embedded model: every recipe on four concepts, half of them in each of two processes."""
    halves = [(CONCEPTS[:2], seeds), (CONCEPTS[2:], seeds)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        publish_denoisers([row for part in pool.starmap(erasures, halves, chunksize=1) for row in part])


def publish_denoisers(rows: Rows) -> None:
    """The table of whatever rows there are."""
    names = ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA", "CRA_forget", "asr")
    header = f"recipe; runs; {'; '.join(name.replace('_', ' ') for name in names)}; edited weights; seconds"
    lines = [
        [
            recipe,
            str(len(own)),
            *[spread(own, name) for name in names],
            spread(own, "trimmed", 0),
            spread(own, "seconds", 0),
        ]
        for recipe, own in by_recipe(rows).items()
    ]
    note = f"Per run {MEASURES['count']} pictures for UA and for IRA, 48 for the attack. "
    publish("denoisers", markdown(header, lines) + f"\n\n{note}{machine()}")


def table_edits(seeds: int) -> None:
    """The embedded model: what the papers' edits do by themselves."""
    from sd_scissorhands.settings import EraseSettings

    targets = tuple({"concepts": (concept,)} for concept in CONCEPTS)
    rows = compared(EraseSettings(model="tiny", steps=0), targets, ROOT / "edits", seeds, EDITED, attack=None)
    names = ("UA", "UA_synonyms", "IRA", "CRA")
    lines = [
        [recipe, *[spread(own, name) for name in names], spread(own, "trimmed", 0), spread(own, "seconds", 0)]
        for recipe, own in by_recipe(rows).items()
    ]
    header = (
        f"recipe, without its repair; {'; '.join(name.replace('_', ' ') for name in names)}; edited weights; seconds"
    )
    publish("edits", markdown(header, lines) + f"\n\nConcepts {', '.join(CONCEPTS)}; seed 0. {machine()}")


TABLES = {"classifiers": table_classifiers, "denoisers": table_denoisers, "edits": table_edits}


def main() -> None:
    """Print the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(TABLES))
    parser.add_argument("--seeds", type=int)
    given = parser.parse_args()
    for name in given.tables or TABLES:
        TABLES[name](given.seeds or SEEDS[name])


if __name__ == "__main__":
    main()
