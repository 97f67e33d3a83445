"""Models that no setting was chosen for, and the table of docs/experiments.md on them.

`python experiments/models.py half` (or sd2, sdxl, sd3, wide, digits) builds one below --root unless it is there: a diffusers directory for
`sdscissor erase --model`, with what it draws right in quality.json. `judge MODEL --concept three --anchor eight` counts what is left
in a model of the digits' world, which `sdscissor eval` has no judge for. `table` erases from all of them by defaults, and measures.
`solvers` erases from some on pictures by the model's own sampler and by the few-step one: that table is in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runner import DOCUMENT, SMOKE_ERASURE, Options, command
from tables import machine, markdown, publish

WORLDS = Path(__file__).parent.parent / "tests"
TITLES = {
    "half": "half the width", "wide": "twice the width", "sd2": "SD 2", "sdxl": "SDXL", "sd3": "SD 3 (flow matching)",
    "digits": "handwritten digits",
}  # fmt: skip
CONCEPTS: Mapping[str, str | None] = {"heart": None, "yellow": None}  # and their anchors; None: the world's own
DIGITS: Mapping[str, str | None] = {"three": "eight", "seven": "four"}
SEEDS, PICTURES, ATTACKED = 2, 100, 48
SOLVED = "sd2"
SOLVERS: Mapping[str, Mapping[str, Any]] = {
    "own, 30 steps": {"solver": "own", "sampling_steps": 30},
    "few-step, 10 steps": {"solver": "few-step", "sampling_steps": 10},
}
LIKE_LARGE = {"guidance": 7.5, "retain_sampling_steps": 0}  # as Stable Diffusion's defaults draw
BENCHMARKS = DOCUMENT.with_name("benchmarks.md")
BESIDE = ("UA", "UA_generic", "IRA", "CRA", "CRA_forget")  # figures with the original's behind the stroke
ALONE = ("open_unchanged", "unlisted_unchanged")
ROOT = "runs/models"


# ---------------------------------------------------------------- models


def script(name: str, *words: object) -> str:
    """What a script of the worlds prints last."""
    line = [sys.executable, str(WORLDS / name), *map(str, words)]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().rpartition("\n")[2]


def built(name: str, options: Options) -> Path:
    """The directory of a model, made unless it is complete."""
    folder = options.root / name
    if (folder / "quality.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if name == "digits":
        script("digits_world.py", folder, *(["--smoke"] if options.smoke else []))
        script("digits_judge.py", "quality", folder, *(["--count", 10] if options.smoke else ["--count", 400]))
    else:
        script("world_families.py", name, folder, *(["--steps", 2] if options.smoke else []))
    return folder


def original_of(model: Path) -> Path:
    """What a model of a run was erased from; any other is its own original."""
    manifest = model.parent / "run.json"
    return Path(json.loads(manifest.read_text())["settings"]["model"]) if manifest.exists() else model


def judged(model: Path, concept: str, anchor: str, count: int) -> dict[str, dict[str, float | None]]:
    """The figures of a model of the digits' world and of its original."""
    named = ("--concept", concept, "--anchor", anchor, "--count", count)
    return json.loads(script("digits_judge.py", "erased", model, "--original", original_of(model), *named))


# ---------------------------------------------------------------- table


def once(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, made unless it is there."""
    if not file.exists():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def erased(
    base: Path,
    place: Path,
    words: tuple[object, ...],
    options: Options,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What `sdscissor erase` prints with few settings but model, concept and anchor; without a model where it saved none."""
    more = options.overlay(**{**settings, **(SMOKE_ERASURE if options.smoke else {})})
    if (place / "run" / "run.json").exists():
        more += ("--resume",)
    try:
        return command("erase", "--model", base, *words, "--output-dir", place / "run", *more, "--quiet")
    except subprocess.CalledProcessError as error:
        if error.returncode != 1 or not (place / "run" / "repair" / "looks.json").exists():
            raise
        return {"model_dir": None}


def measured(base: Path, place: Path, concept: str, anchor: str | None, options: Options) -> dict[str, Any]:
    """Figures of what was erased, and of an embedding attack where the model has a judge of the package's."""
    model = place / "run" / "model"
    pictures, attacked = (8, 8) if options.smoke else (PICTURES, ATTACKED)
    if anchor is not None:
        return once(place / "eval.json", lambda: judged(model, concept, anchor, pictures))
    few = ("--steps", 3) if options.smoke else ()
    both = ("--model", model, "--baseline", base, "--concept", concept, "--quiet")
    attack = ("attack", *both, "--attack", "embedding", "--restarts", 1, "--limit", attacked, *few)
    figures = once(place / "eval.json", lambda: command("eval", *both, "--limit", pictures))
    return figures | {"attack": once(place / "attack.json", lambda: command(*attack))}


def line_of(name: str, concept: str, anchor: str | None, seed: int, options: Options) -> list[str]:
    """A line of the table: one erasure."""
    base, place = built(name, options), options.root / "erased" / f"{name}-{concept}-{seed}"
    words = ("--concept", concept, *(("--anchor", anchor) if anchor else ()), "--seed", seed)
    run = once(place / "erase.json", lambda: erased(base, place, words, options))
    first = [TITLES[name], concept, str(seed)]
    if not run["model_dir"]:
        return [*first, "no model", *[""] * (len(BESIDE) + len(ALONE) + 3)]
    found = measured(base, place, concept, anchor, options)
    figures, before = found["figures"], found["original"]
    both = [f"{number(figures, figure)} / {number(before, figure)}" for figure in BESIDE]
    rest = [number(figures, figure) for figure in ("UA_synonyms", *ALONE)]
    attack = found.get("attack")
    asr = f"{attack['asr_after']:.2f} / {attack['original']['asr_after']:.2f}" if attack else ""
    return [*first, str(run.get("converged", "")).lower(), *both, *rest, asr, f"{run['seconds']:.0f}"]


def number(figures: Mapping[str, float | None], name: str) -> str:
    """A figure with three digits, or nothing."""
    value = figures.get(name)
    return "" if value is None else f"{value:.3f}"


def drawn_right(name: str, options: Options) -> str:
    """A model and the share of what captions name that it draws right, by domain."""
    right = json.loads((options.root / name / "quality.json").read_text())["right"]
    return f"{TITLES[name]} {', '.join(f'{domain} {share:.3f}' for domain, share in right.items())}"


def table(models: tuple[str, ...], options: Options) -> str:
    """Every model, concept and seed."""
    header = (
        "model; concept; seed; converged; UA / original; UA generic / original; IRA / original; CRA / original; "
        "CRA forget / original; UA synonyms; open unchanged; unlisted unchanged; embedding ASR / original; seconds"
    )
    lines = []
    for name in models:
        for concept, anchor in (DIGITS if name == "digits" else CONCEPTS).items():
            if concept in (options.concepts or (concept,)):
                lines += [line_of(name, concept, anchor, seed, options) for seed in range(options.seeds or SEEDS)]
    drawn = "; ".join(drawn_right(name, options) for name in models)
    return f"{markdown(header, lines)}\n\nDrawn right: {drawn}. {PICTURES} pictures for UA and IRA, half for the others. {machine()}"


def solvers(options: Options) -> str:
    """Erasures on pictures that the model's own sampler drew, and on those of the few-step one in a third of the steps."""
    header = (
        "concept; seed; pictures by; " + "; ".join((*BESIDE, "UA_synonyms", *ALONE)).replace("_", " ") + "; seconds"
    )
    lines = [
        solved(concept, seed, solver, options)
        for concept in options.concepts or CONCEPTS
        for seed in range(options.seeds or SEEDS)
        for solver in SOLVERS
    ]
    note = f"{TITLES[SOLVED]}'s small model, guidance 7.5; {PICTURES} pictures for UA and IRA, half for the others, prompts and noise of the tables' evaluations."
    return f"{markdown(header, lines)}\n\n{note} {machine()}"


def solved(concept: str, seed: int, solver: str, options: Options) -> list[str]:
    """A line of the table on solvers: one erasure."""
    base = built(SOLVED, options)
    place = options.root / "solvers" / f"{SOLVED}-{concept}-{seed}-{SOLVERS[solver]['solver']}"
    words, settings = ("--concept", concept, "--seed", seed), {**LIKE_LARGE, **SOLVERS[solver]}
    run = once(place / "erase.json", lambda: erased(base, place, words, options, settings))
    if not run["model_dir"]:
        return [concept, str(seed), solver, "no model", *[""] * (len(BESIDE) + len(ALONE) + 1)]
    both = ("--model", place / "run" / "model", "--baseline", base, "--concept", concept, "--quiet")
    pictures = 8 if options.smoke else PICTURES
    figures = once(place / "eval.json", lambda: command("eval", *both, "--limit", pictures))["figures"]
    shown = [number(figures, figure) for figure in (*BESIDE, "UA_synonyms", *ALONE)]
    return [concept, str(seed), solver, *shown, f"{run['seconds']:.0f}"]


# ---------------------------------------------------------------- commands


def main() -> None:
    """Build a model, count what is left in one, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=[*TITLES, "judge", "table", "solvers"])
    parser.add_argument("model", nargs="?", type=Path, help="of judge: a pipeline's directory")
    parser.add_argument("--root", type=Path, default=Path(ROOT), help="where models and runs lie")
    parser.add_argument("--concept", help="of judge: a digit in words")
    parser.add_argument("--anchor", help="of judge: what takes its place")
    parser.add_argument(
        "--models", nargs="+", choices=TITLES, default=list(TITLES), help="of table; fewer write no document"
    )
    parser.add_argument("--concepts", nargs="+", help="of table; fewer write no document")
    parser.add_argument("--seeds", type=int, help="of table: 0, 1, ... up to so many; writes no document")
    parser.add_argument("--smoke", action="store_true", help="few steps and pictures; writes no document")
    given = parser.parse_args()
    place = given.root / "smoke" if given.smoke else given.root
    options = Options(place, given.seeds, given.concepts and tuple(given.concepts), given.smoke)
    if given.command == "table":
        text = table(tuple(given.models), options)
        print(text)
        if options.whole and given.models == list(TITLES):
            publish("models", text, DOCUMENT)
    elif given.command == "solvers":
        print(text := solvers(options))
        if options.whole:
            publish("solvers", text, BENCHMARKS)
    elif given.command != "judge":
        print(built(given.command, options))
    elif not (given.model and given.concept and given.anchor):
        parser.error("judge needs a model's directory, --concept and --anchor")
    elif not (original_of(given.model) / "judge.safetensors").exists():
        parser.error(
            f"{given.model} is no model of the digits' world, nor erased from one: no judge lies beside the original"
        )
    else:
        found = judged(given.model, given.concept, given.anchor, 8 if given.smoke else PICTURES)
        line = [
            str(given.model),
            given.concept,
            *[f"{number(found['figures'], name)} / {number(found['original'], name)}" for name in found["figures"]],
        ]
        print(markdown("; ".join(["model", "concept", *found["figures"]]), [line]))


if __name__ == "__main__":
    main()
