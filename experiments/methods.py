"""The tables of docs/experiments.md on recipes side by side: `python experiments/methods.py [digits-class|digits-random|denoisers|edits ...]`.

Every row is of a run of `sdscissor compare`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool

from runner import SMOKE_ERASURE, WORKERS, Options, Row, Rows, command, main, mean
from tables import machine, markdown

from sd_scissorhands import ForgetSettings, forget

CONCEPTS = ("heart", "ring", "blue", "yellow")
CLASS, SHARE = "3", 0.1
EDITED = ("scissorhands", "lra-npp", "l-codec", "random-k")  # recipes with an edit
ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia", "mia_svc", "probe", "gap")
FIGURES = ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA", "CRA_forget")


def compared(options: Options, folder: str, *words: object, seeds: int) -> Rows:
    """The rows of a comparison, by the command."""
    count = 1 if options.smoke else options.seeds or seeds
    return command("compare", *words, "--seeds", count, "--output-dir", options.root / folder, "--quiet")["rows"]


def named(concepts: Iterable[str]) -> list[str]:
    """The flags that name concepts."""
    return [word for concept in concepts for word in ("--concept", concept)]


def table(rows: Rows, figures: Iterable[str], counts: dict[str, int], *, first: str = "recipe") -> str:
    """A line for every recipe: means with their range; `counts`: more figures, with their digits."""
    recipes: dict[str, list[Row]] = {}
    for row in rows:
        recipes.setdefault(row["recipe"], []).append(row)
    digits = {**dict.fromkeys(figures, 3), **counts}
    lines = [
        [
            recipe,
            str(len(own)),
            *(mean((row.get(name) for row in own), places, spread=True) for name, places in digits.items()),
        ]
        for recipe, own in recipes.items()
    ]
    header = "; ".join([first, "runs", *(name.replace("_", " ") for name in digits)])
    return f"{markdown(header, lines)}\n\nMeans, and their range. {machine()}"


# ---------------------------------------------------------------- classifiers


def digits_class(options: Options) -> str:
    """A class of the digits, with a control of L-CODEC's choice: as many weights in rows drawn at random."""
    rows = list(compared(options, "digits-class", "--forget-class", CLASS, *few_digits(options), seeds=5))
    for row in [row for row in rows if row["recipe"] == "l-codec"]:
        result = json.loads((options.root / "digits-class" / row["run"] / "run.json").read_text())["result"]
        rows.append(random_rows(options, row["seed"], result["trimmed"] / result["scope_size"]))
    return digits_table(rows)


def random_rows(options: Options, seed: int, top_k: float) -> Row:
    """A Newton step on rows drawn at random."""
    folder = options.root / "random-rows" / f"seed{seed}"
    settings = ForgetSettings(recipe="l-codec", forget_class=CLASS, scorer="random", top_k=top_k, seed=seed)
    forget(settings, folder, resume=True)
    result = json.loads((folder / "run.json").read_text())["result"]
    return {"recipe": "l-codec, random rows", "seconds": result["seconds"], **result["figures"]}


def digits_random(options: Options) -> str:
    """A random share of the digits."""
    return digits_table(compared(options, "digits-random", "--forget-random", SHARE, *few_digits(options), seeds=5))


def few_digits(options: Options) -> tuple[str, ...]:
    """What makes a comparison on the digits short."""
    return ("--recipes", "scissorhands,l-codec", *options.overlay(steps=3)) if options.smoke else ()


def digits_table(rows: Rows) -> str:
    """The columns of both tables on digits."""
    rows = [{**row, "MiB": row["peak_bytes"] / 2**20 if row.get("peak_bytes") else None} for row in rows]
    return table(rows, ACCURACIES, {"relearn": 0, "seconds": 1, "MiB": 0})


# ---------------------------------------------------------------- the embedded model


def denoisers(options: Options) -> str:
    """Every recipe on four concepts, a part of them in each of two processes."""
    concepts = options.concepts or CONCEPTS
    measures = ["--limit", 8, "--attack-steps", 3] if options.smoke else ["--limit", 60]
    few = [*options.overlay(**SMOKE_ERASURE), "--recipes", "scissorhands-robust,substitution"] if options.smoke else []

    def one(own: tuple[str, ...]) -> Rows:
        return compared(options, "-".join(own), *named(own), *measures, "--restarts", 1, *few, seeds=3)

    with ThreadPool(WORKERS) as pool:
        parts = pool.map(one, [own for own in (concepts[::WORKERS], concepts[1::WORKERS]) if own])
    return table([row for rows in parts for row in rows], (*FIGURES, "asr"), {"trimmed": 0, "seconds": 0})


def edits(options: Options) -> str:
    """What the edits do by themselves."""
    few = (
        ["--limit", 8, *options.overlay(**{**SMOKE_ERASURE, "steps": 0})]
        if options.smoke
        else ["--limit", 60, *options.overlay(steps=0)]
    )
    concepts = named(options.concepts or CONCEPTS)
    rows = compared(options, "edits", *concepts, "--recipes", ",".join(EDITED), "--attack", "none", *few, seeds=1)
    return table(
        rows, ("UA", "UA_synonyms", "IRA", "CRA"), {"trimmed": 0, "seconds": 0}, first="recipe, without its repair"
    )


TABLES = {"digits-class": digits_class, "digits-random": digits_random, "denoisers": denoisers, "edits": edits}

if __name__ == "__main__":
    main(__doc__, TABLES, "runs/methods")
