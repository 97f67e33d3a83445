"""Erasures with their evaluations and attacks, and tables of them, through the package's public interface alone.

A table declares its runs and its columns. Everything is written below --root and read from there once it is complete, so that
what was stopped continues. Two worker processes of one thread each: seconds are those of an erasure on one of two busy cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SDSCISSOR_CACHE"] = "off"  # each erasure draws: its seconds are whole

from columns import Cell, Row, Rows
from tables import machine, markdown, publish

from sd_scissorhands import (
    AttackSettings,
    EraseSettings,
    EvaluateSettings,
    Suite,
    attack,
    attack_suite,
    erase,
    evaluate,
)

DOCUMENT = Path(__file__).parent.parent / "docs" / "experiments.md"
WORKERS = 2
SMOKE_ERASURE = {"steps": 3, "forget_count": 4, "retain_count": 16, "sampling_steps": 2, "score_draws": 1}
SMOKE_EVALUATION = {"limit": 8}
SMOKE_ATTACK = {"count": 8}
SMOKE_LEARNING = {"embedding": 3, "token": 3, "relearn": 3}  # steps, of attacks that learn

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One erasure, and what is measured of each of its concepts.

    Args:
        settings: fields of EraseSettings.
        measures: fields of AttackSettings where one of them is `attack`, {"suite": name} for the attacks of a suite but those
            that are named in its "without", else fields of EvaluateSettings, by the name of their folder: the attack, the
            suite or the judge, with more behind a hyphen. Their `seed` is added to the run's.
        chain: each concept is erased from the result of the one before, instead of all in one erasure.
        originals_cached: whether what a measurement draws and learns with the original is taken from the package's cache: the
            same figures, in seconds of the erased half alone.
    """

    variant: str
    settings: Settings
    concepts: tuple[str, ...]
    seed: int
    measures: Mapping[str, Settings]
    chain: bool = False
    originals_cached: bool = False

    def folder(self, root: Path, count: int | None = None) -> Path:
        """The run directory of its first `count` concepts."""
        names = ("-then-" if self.chain else "-").join(self.concepts[:count])
        return root / re.sub(r"\W+", "-", self.variant) / f"{names}-seed{self.seed}"

    def reduced(self) -> Run:
        """The same with few steps and pictures: to see that a table comes out."""
        few: dict[str, Settings] = {}
        for name, settings in self.measures.items():
            steps = SMOKE_LEARNING.get(settings.get("attack", ""))
            fewer = SMOKE_ATTACK if {"attack", "suite"} & set(settings) else SMOKE_EVALUATION
            few[name] = {**settings, **fewer, **({"steps": steps} if steps else {})}
        return dataclasses.replace(self, settings={**self.settings, **SMOKE_ERASURE}, measures=few)


# ---------------------------------------------------------------- running


def erased(run: Run, root: Path) -> Path:
    """The run directory of a run's erasure, made unless it is complete."""
    ends = range(1, len(run.concepts) + 1) if run.chain else [len(run.concepts)]
    model, folder = "tiny", root
    for end in ends:
        folder, concepts = run.folder(root, end), run.concepts[end - 1 : end] if run.chain else run.concepts
        manifest = folder / "run.json"
        if not manifest.exists() or "result" not in json.loads(manifest.read_text()):
            settings = EraseSettings(concepts=concepts, model=model, seed=run.seed, device="cpu", **run.settings)
            erase(settings, folder, resume=True)
        model = str(folder / "model")
    return folder


def measured(model: str, concept: str, seed: int, folder: Path, measures: Mapping[str, Settings]) -> Row:
    """The summaries of some evaluations and attacks by name, made unless they are complete."""
    row: Row = {}
    for name, settings in measures.items():
        place = folder / ("attack" if {"attack", "suite"} & set(settings) else "eval") / name
        values: dict[str, Any] = {"model": model, "concept": concept, "device": "cpu", **settings}
        values["seed"] = seed + settings.get("seed", 0)
        if not (place / "summary.json").exists():
            if "suite" in settings:
                attack_suite(suite_of(values), place)
            elif "attack" in settings:
                attack(AttackSettings(**values), place)
            else:
                evaluate(EvaluateSettings(**values), place)
        row[name] = json.loads((place / "summary.json").read_text())
        for part in row[name]["attacks"] if "suite" in settings else ():
            row[part["name"]] = json.loads((place / part["name"] / "summary.json").read_text())
    return row


def suite_of(settings: Settings) -> Suite:
    """A suite less the attacks that its settings leave out."""
    shared = {name: value for name, value in settings.items() if name not in ("suite", "without")}
    suite, without = Suite.of(settings["suite"], **shared), settings.get("without", ())
    return dataclasses.replace(suite, attacks={name: one for name, one in suite.attacks.items() if name not in without})


def rows_of(run: Run, root: Path) -> list[Row]:
    """A row for every concept of a run."""
    folder = erased(run, root)
    about = {"variant": run.variant, "seed": run.seed, "model": str(folder / "model")}
    about["run"] = (" then " if run.chain else " + ").join(run.concepts)
    about["seconds"] = json.loads((folder / "run.json").read_text())["result"]["seconds"]
    rows = []
    for concept in run.concepts:
        place = folder if concept == run.concepts[0] and not run.chain else folder / "concepts" / concept
        with cache(on=run.originals_cached):
            rows.append(
                {**about, "concept": concept, **measured(about["model"], concept, run.seed, place, run.measures)}
            )
    return rows


@contextlib.contextmanager
def cache(*, on: bool) -> Iterator[None]:
    """Within it the package's cache is used, or not."""
    os.environ["SDSCISSOR_CACHE"] = "on" if on else "off"
    yield
    os.environ["SDSCISSOR_CACHE"] = "off"


def rows_of_all(runs: Sequence[Run], root: Path, workers: int = WORKERS) -> list[Row]:
    """The rows of all runs in order, worked on by some processes, with a line on each as it comes."""
    rows: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, some in enumerate(pool.imap(partial(rows_of, root=root), runs, chunksize=1), 1):
            rows += some
            print(f"{done}/{len(runs)} {runs[done - 1].folder(root)}", flush=True)
        pool.close()
        pool.join()
    return rows


def command(*words: object) -> dict[str, Any]:
    """The JSON that a command of `sdscissor` prints, also where a gate was missed (3) or an erasure did not converge (4)."""
    line = [sys.executable, "-m", "sd_scissorhands", *map(str, words), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3, 4):
        raise subprocess.CalledProcessError(done.returncode, line)
    return json.loads(done.stdout)


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """What a table is made of.

    Args:
        by: names of the rows' fields; every combination of their values is a line.
        columns: header -> cell, of a line's rows.
        mean: whether a last line has all rows.
        bold: values of the first field that had no part in any choice.
        finish: what is done after the table was published.
    """

    runs: Sequence[Run]
    by: tuple[str, ...]
    columns: Mapping[str, Cell]
    mean: bool = False
    bold: tuple[str, ...] = ()
    finish: Callable[[Rows], None] | None = None


def text_of(table: Table, rows: Rows) -> str:
    """The Markdown of a table, with a note on its seeds, pictures and machine."""
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(str(row[name]) for name in table.by), []).append(row)
    if table.mean:
        lines["mean", *[""] * (len(table.by) - 1)] = list(rows)
    cells = [
        [f"**{name}**" if name in table.bold else name for name in names]
        + [cell(own) for cell in table.columns.values()]
        for names, own in lines.items()
    ]
    return f"{markdown('; '.join([*table.by, *table.columns]), cells)}\n\n{note(rows)}"


def note(rows: Rows) -> str:
    """Seeds, pictures behind the figures, the machine and the embedded model."""
    summaries = {name: value for row in rows for name, value in row.items() if isinstance(value, dict) and "n" in value}
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    counts = [
        f"{name}: {', '.join(f'{n} for {figure}' for figure, n in one['n'].items()) if isinstance(one['n'], dict) else one['n']}"
        for name, one in summaries.items()
    ]
    model = next((one["baseline_sha256"][:12] for one in summaries.values()), "")
    return f"Seeds {seeds}. Pictures per run: {'; '.join(counts)}. {machine()} Embedded model {model}."


@dataclass(frozen=True)
class Options:
    """What a script of this folder was called with."""

    root: Path  # where the runs lie
    seeds: int | None  # None: the table's own number
    concepts: tuple[str, ...] | None  # None: the table's own
    smoke: bool

    @property
    def whole(self) -> bool:
        """Whether tables are as their documents have them."""
        return not (self.smoke or self.concepts or self.seeds)

    def overlay(self, **settings: Any) -> tuple[str, ...]:
        """The flag that lays settings over a command's, in a file below the root."""
        if not settings:
            return ()
        file = self.root / f"{'-'.join(settings)}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        return "--config", str(file)

    def chosen(self, runs: Sequence[Run]) -> list[Run]:
        """Those of a table's runs that these options ask for."""
        runs = [
            run
            for run in runs
            if (self.seeds is None or run.seed < self.seeds) and set(run.concepts) <= set(self.concepts or run.concepts)
        ]
        return [run.reduced() for run in runs] if self.smoke else runs


def main(
    description: str, tables: Mapping[str, Table | Callable[[Options], str]], root: str, document: Path = DOCUMENT
) -> None:
    """Print the tables that are named, or all, and put them into their document; a function makes its table's text itself."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("tables", nargs="*", help=", ".join(tables))
    parser.add_argument(
        "--seeds", type=int, help="training seeds 0, 1, ... up to so many; prints, and writes no document"
    )
    parser.add_argument("--concepts", nargs="+", help="these alone; prints, and writes no document")
    parser.add_argument("--smoke", action="store_true", help="few steps and pictures; prints, and writes no document")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes, of one thread each")
    parser.add_argument("--root", type=Path, default=Path(root), help="where the runs lie")
    given = parser.parse_args()
    place, concepts = given.root / "smoke" if given.smoke else given.root, given.concepts and tuple(given.concepts)
    options = Options(place, given.seeds, concepts, given.smoke)
    for name in given.tables or tables:
        table, rows = tables[name], list[Row]()
        if isinstance(table, Table):
            rows = rows_of_all(options.chosen(table.runs), options.root, given.workers)
            text = text_of(table, rows)
        else:
            text = table(options)
        print(f"<!-- {name} -->\n\n{text}\n", flush=True)
        if options.whole:
            publish(name, text, document)
            if isinstance(table, Table) and table.finish:
                table.finish(rows)
