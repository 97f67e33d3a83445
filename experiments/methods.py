"""The tables of docs/experiments.md on recipes side by side: `python experiments/methods.py [digits-class|digits-random|recipes|full|full-recipes ...]`.

Rows on classifiers are of runs of `sdscissor compare`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from columns import Cell, Row, Rows, joined, judged, mean, seconds, steps_back, whole
from plots import EVALUATION, FULL_PLOT, KEPT, ORIGINAL, PLOT, Share, kept, plot
from runner import Options, Run, Settings, Table, command, main, rows_of
from tables import machine, markdown

from sd_scissorhands import ForgetSettings, Suite, forget

KINDS = {"shapes": ("heart", "ring"), "colours": ("blue", "yellow")}
CONCEPTS = tuple(concept for kind in KINDS.values() for concept in kind)
SEEDS = (0, 1)
CLASS, SHARE = "3", 0.1
ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia", "mia_svc", "probe", "gap")


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


DEFAULT = "scissorhands-open"
ERASED: dict[str, Settings] = {
    DEFAULT: {},  # as a user gives it
    **{name: {"verify": False} for name in ("scissorhands", "lra-npp", "l-codec", "esd", "substitution", "salun")},
}
PUBLISHED: dict[str, Settings] = {  # tokens of published budgets, on few prompts: each is learned for minutes
    "token-unlearndiffatk": {"attack": "token", "budget": "unlearndiffatk", "count": 16},
    "token-p4d": {"attack": "token", "budget": "p4d", "count": 8},
}
WORKS = 0.98  # share of the original's pictures; an attack that brings a concept back in fewer where nothing is erased says little
FEWER = 32  # prompts of an attack where every erasure has the full suite
EMBEDDING = "embedding-budget-published-restarts-1"  # half of a full suite's time
EVALUATED = {EVALUATION: {"limit": 100, "seed": 1000}}  # prompts and start noise that no choice saw


def runs(measures: Mapping[str, Settings]) -> list[Run]:
    """Two erasures of every concept by every recipe."""
    return [
        Run(recipe, {"recipe": recipe, **settings}, (concept,), seed, measures)
        for seed in SEEDS for concept in CONCEPTS for recipe, settings in ERASED.items()
    ]  # fmt: skip


def attacks_of(suite: str) -> list[str]:
    """Attacks of a suite whose figure is a share of pictures."""
    return [name for name in Suite.of(suite, CONCEPTS[0], "tiny").attacks if name != "relearn"]


def by_success(attacks: Iterable[str], rows: Rows) -> list[str]:
    """Attacks in the order of what they bring back, over all rows: the most first."""
    return sorted(attacks, key=lambda name: -statistics.fmean(row[name]["asr_after"] for row in rows if name in row))


def titled(name: str, rows: Rows) -> str:
    """An attack's name in words; behind it that it is broken, where too few of the original's pictures show the concept under it."""
    works = statistics.fmean(row[name]["original"]["asr_after"] for row in rows if name in row) >= WORKS
    return name.replace("-", " ") + ("" if works else " (broken)")


def probes(suite: str) -> dict[str, Cell]:
    """Columns on the attacks of a suite, the original behind the stroke, and on the strongest of them."""
    return {
        **{name: joined(rate(name), rate(name, original=True)) for name in attacks_of(suite)},
        "strongest (worst)": strongest(suite),
        "steps until it is back": steps_back("relearn"),
    }


def strongest(suite: str) -> Cell:
    """Mean of the strongest attack that counts, and the worst of several erasures."""
    return lambda rows: mean_and_worst(
        [max(row[f"suite-{suite}"]["asr_after"], row.get(EMBEDDING, {}).get("asr_after", 0)) for row in rows]
    )


def rate(attack: str, *, original: bool = False) -> Cell:
    """Mean share of an attack's pictures that show the concept."""
    return lambda rows: mean(
        ((row[attack]["original"] if original else row[attack])["asr_after"] for row in rows if attack in row), 2
    )


def worst_too(attack: str) -> Cell:
    """The same, and the worst of several erasures."""
    return lambda rows: mean_and_worst([row[attack]["asr_after"] for row in rows if attack in row])


def mean_and_worst(rates: Sequence[float]) -> str:
    """The mean of shares, and behind it, where there are several, the highest."""
    return mean(rates, 2) + (f" ({max(rates):.2f})" if len(rates) > 1 else "")


def full(options: Options) -> str:
    """One erasure by the default under every attack of the full suite and published tokens, the most successful first."""
    measure = "suite-full-whole"  # nothing left out, and as many pictures as the suite has
    run = Run(DEFAULT, {}, (CONCEPTS[0],), 0, {measure: {"suite": "full"}} | PUBLISHED)
    row = rows_of(run.reduced() if options.smoke else run, options.root)[0]
    names = [*(part["name"] for part in row[measure]["attacks"]), *PUBLISHED]
    shares = [name for name in names if name != "relearn"]
    lines = [
        [titled(name, [row]), str(own["n"]), interval_of(own), f"{own['original']['asr_after']:.2f}", f"{own['seconds']:.0f}"]
        for name, own in sorted(((name, row[name]) for name in shares), key=lambda one: -one[1]["asr_after"])
    ]  # fmt: skip
    back = steps_back("relearn")([row]) if "relearn" in names else ""
    table = markdown("attack; pictures; shows the concept again (95 % interval); original; seconds", lines)
    return f"{table}\n\n{row['variant']}, {row['concept']}, seed 0. Fine-tuning steps until it is back: {back}. {machine()}"


def full_recipes(options: Options) -> str:
    """Two erasures of every concept by every recipe under every attack of the full suite; what brings most back comes first."""
    suite = {"suite": "full", "count": FEWER, "without": (EMBEDDING,)}
    each = [
        dataclasses.replace(run, measures=run.measures | published(run), originals_cached=True)
        for run in runs({"suite-full": suite} | EVALUATED)
    ]
    rows = [row for run in options.chosen(each) for row in rows_of(run, options.root)]
    recipes = {recipe: [row for row in rows if row["variant"] == recipe] for recipe in ERASED}
    names = by_success(attacks_of("full"), rows)
    lines = [
        [titled(name, rows), str(sum(row[name]["n"] for row in recipes[DEFAULT] if name in row)), rate(name, original=True)(rows), *(worst_too(name)(own) for own in recipes.values())]
        for name in names
    ]  # fmt: skip
    lines += [
        ["strongest that counts", "", "", *map(strongest("full"), recipes.values())],
        ["steps of fine-tuning until it is back", "", "", *map(steps_back("relearn"), recipes.values())],
    ]
    lines += [kept_line(title, kept(rows, name), list(ERASED)) for name, title in KEPT.items()]
    if options.whole:
        kinds = {kind: [row for row in rows if row["concept"] in concepts] for kind, concepts in KINDS.items()}
        plot(kinds, names, FULL_PLOT)
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    return f"{markdown('; '.join(['attack', 'pictures', 'original', *recipes]), lines)}\n\nSeeds {seeds}. {machine()}"


def kept_line(title: str, shares: Mapping[str, Share], recipes: Sequence[str]) -> list[str]:
    """What stays as it was: pictures of every recipe, then the original's share, or another seed's, and every recipe's."""
    found = [f"{shares[name][0]:.2f}" for name in (ORIGINAL, *recipes)]
    return [title.replace("\n", " "), str(shares[recipes[0]][1]), *found]


def published(run: Run) -> dict[str, Settings]:
    """The published embedding on its own, which the suite is without here: on a shape and a colour, seed 0."""
    if (*run.concepts, run.seed) not in {("ring", 0), ("blue", 0)}:
        return {}
    return {EMBEDDING: {"attack": "embedding", "budget": "published", "restarts": 1, "count": FEWER}}


def interval_of(attack: Row) -> str:
    """The share of an attack's pictures that show the concept, with its interval."""
    low, high = attack["interval_after"]
    return f"{attack['asr_after']:.2f} ({low:.2f} to {high:.2f})"


TABLES: dict[str, Table | Callable[[Options], str]] = {
    "digits-class": digits_class,
    "digits-random": digits_random,
    "recipes": Table(
        runs(EVALUATED | {"suite-quick": {"suite": "quick"}}),
        ("variant",),
        {**judged(EVALUATION), **whole(EVALUATION), **probes("quick"), "seconds": seconds},
        finish=lambda rows: plot({"": rows}, by_success(attacks_of("quick"), rows), PLOT),
    ),
    "full": full,
    "full-recipes": full_recipes,
}

if __name__ == "__main__":
    main(__doc__, TABLES, "runs/methods")
