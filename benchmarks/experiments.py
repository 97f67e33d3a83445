"""Every table of docs/experiments.md: `python benchmarks/experiments.py [defaults|controls|full-size|attacks ...]`.

Erasures and evaluations go to runs/experiments and are kept, so that a run that was cut off continues. Two workers of
one thread each; seconds are those of an erasure on one of the two busy cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path("runs/experiments")
DOCUMENT = Path(__file__).parent.parent / "docs" / "experiments.md"
TUNED_ON = ("heart", "star", "blue")  # and circle and red, at earlier settings
UNSEEN = ("ring", "triangle", "yellow")
EVALUATION_SEED = 1000
FIGURES = ("UA", "UA_synonyms", "IRA", "CRA", "CRA_forget")

RECIPE = "scissorhands-anchored"  # which these tables take apart; benchmarks/robust.py has the default's
CONTROLS = {
    "default": {},
    "trim only": {"steps": 0},
    "no trim": {"edit": "none"},
    "no projection": {"projection": "none"},
    "no trim, no projection": {"edit": "none", "projection": "none"},
    "retain only": {"forget_weight": 0.0},
    "scope full, trim only": {"scope": "full", "steps": 0},
    "scope full, trim only, plain score": {"scope": "full", "steps": 0, "scorer": "plain"},
}
CONTROLLED = ("heart", "star", "blue")
ATTACKED = ("default", "no trim", "no projection", "retain only")
ATTACKED_CONCEPTS = ("heart", "star", "blue", "ring")
ATTACKS = {  # column -> the attack, pictures behind its rate, and what is not the command's own default
    "embedding": ("embedding", {"count": 48, "restarts": 1}),
    "8 embeddings": ("embedding", {"count": 48, "restarts": 1, "tokens": 8}),
    "token": ("token", {"count": 48}),
    "relearn": ("relearn", {"count": 24}),
}
RATES = ("embedding", "8 embeddings", "token")
ONCE = ("8 embeddings", "relearn")  # on the erasures of seed 0 alone, for time


@dataclasses.dataclass(frozen=True)
class Job:
    """One erasure and its evaluation."""

    variant: str
    concept: str
    seed: int
    count: int  # pictures for UA and for IRA, each

    @property
    def folder(self) -> Path:
        return ROOT / re.sub(r"\W+", "-", self.variant) / f"{self.concept}-{self.seed}"


def work(job: Job) -> dict:
    """Erase, judge, and hand back the row; the original's pictures are drawn once per concept and count."""
    from sd_scissorhands.comparison.exam import share_original
    from sd_scissorhands.concepts import of_world
    from sd_scissorhands.evaluation import concept as room
    from sd_scissorhands.evaluation.panel import open_judges

    alone()
    folder, concept = job.folder / f"eval-{job.count}", of_world(job.concept)
    result = erased(job)
    share_original(original_folder(job.concept, job.count), folder)
    looks = room.Looks(seed=EVALUATION_SEED, count=job.count, device="cpu")
    told = room.evaluate(
        result["model_dir"], "tiny", concept, folder, panel=open_judges(concept, in_world=True), looks=looks
    )
    facts = {name: result[name] for name in ("trimmed", "conflict_rate", "mean_correction", "seconds")}
    return dataclasses.asdict(job) | facts | told["figures"] | {"original": told["original"], "n": told["n"]}


def alone() -> None:
    """One quiet thread."""
    import torch

    from sd_scissorhands.show import still_libraries

    still_libraries()
    torch.set_num_threads(1)


def erased(job: Job) -> dict:
    """The erasure of a job, made or found."""
    from sd_scissorhands.erasure import erase
    from sd_scissorhands.settings import EraseSettings

    settings = EraseSettings(concepts=(job.concept,), model="tiny", recipe=RECIPE, seed=job.seed, device="cpu")
    return erase(dataclasses.replace(settings, **CONTROLS[job.variant]), job.folder, resume=True)


def draw_original(concept_and_count: tuple[str, int]) -> None:
    """The original's pictures for a concept."""
    from sd_scissorhands.concepts import of_world
    from sd_scissorhands.evaluation import concept as room
    from sd_scissorhands.evaluation.panel import open_judges

    alone()
    concept, count = of_world(concept_and_count[0]), concept_and_count[1]
    looks = room.Looks(seed=EVALUATION_SEED, count=count, device="cpu")
    folder = original_folder(concept.name, count)
    room.draw_side("original", "tiny", concept, folder, panel=open_judges(concept, in_world=True), looks=looks)


def original_folder(concept: str, count: int) -> Path:
    """Where the original's pictures for a concept are counted."""
    return ROOT / "original" / f"{concept}-{count}"


def run_all(jobs: list[Job], task: Callable[[Job], dict] = work) -> list[dict]:
    """All rows in order, worked on two at a time, printed as they come."""
    rows = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(draw_original, sorted({(job.concept, job.count) for job in jobs}), chunksize=1)
        for row in pool.imap(task, jobs, chunksize=1):
            rows.append(row)
            said = ", ".join(f"{name} {row[name]:.3f}" for name in FIGURES)
            print(f"{len(rows)}/{len(jobs)} {row['variant']}, {row['concept']}, {row['seed']}: {said}", flush=True)
    return rows


def mean(rows: list[dict], figure: str) -> float:
    """Mean of a figure over rows."""
    return statistics.fmean(row[figure] for row in rows)


def mean_original(rows: list[dict], figure: str) -> float:
    """Mean of the original's figure over the same rows."""
    return statistics.fmean(row["original"][figure] for row in rows)


def markdown(header: str, lines: list[list[str]]) -> str:
    """A Markdown table; the header's cells are parted by semicolons."""
    cells = header.split("; ")
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells, ["---"] * len(cells), *lines])


def footnote(rows: list[dict]) -> str:
    """Seeds, numbers of pictures and the machine."""
    n, seeds = rows[0]["n"], sorted({row["seed"] for row in rows})
    counts = f"{n['UA']} pictures for UA, {n['UA_synonyms']} for UA synonyms, {n['IRA']} for IRA"
    return f"\n\nSeeds {', '.join(map(str, seeds))}; per run {counts}. {machine()}"


def table_defaults() -> str:
    """Table 1: one set of defaults over tuned and unseen concepts."""
    concepts = TUNED_ON + UNSEEN
    rows = run_all([Job("default", concept, seed, 500) for concept in concepts for seed in (0, 1, 2)])

    def line(name: str, own: list[dict]) -> list[str]:
        gone = [f"{mean(own, f):.3f} ({min(r[f] for r in own):.3f})" for f in ("UA", "UA_synonyms")]
        kept = [f"{mean(own, f):.3f} / {mean_original(own, f):.3f}" for f in ("IRA", "CRA", "CRA_forget")]
        seconds = f"{mean(own, 'seconds'):.0f} ({max(r['seconds'] for r in own):.0f})"
        return [name, f"{mean_original(own, 'UA'):.3f}", *gone, *kept, seconds]

    lines = []
    for concept in concepts:
        name = concept if concept in TUNED_ON else f"**{concept}**"
        lines.append(line(name, [row for row in rows if row["concept"] == concept]))
    header = (
        "concept; UA of the original; UA (worst); UA synonyms (worst); IRA / original; CRA / original; "
        "CRA forget / original; seconds (worst)"
    )
    return markdown(header, [*lines, line("mean", rows)]) + footnote(rows)


def table_controls() -> str:
    """Table 2: what each part brings, on the same concepts."""
    rows = run_all([Job(variant, concept, 0, 60) for variant in CONTROLS for concept in CONTROLLED])
    lines = [["original", *[f"{mean_original(rows, name):.3f}" for name in FIGURES], "", "", ""]]
    for variant in CONTROLS:
        own = [row for row in rows if row["variant"] == variant]
        conflicts = [(r["conflict_rate"], r["mean_correction"]) for r in own if r["mean_correction"] is not None]
        worst = min(own, key=lambda r: r["UA"])
        figures = [f"{mean(own, name):.3f}" for name in FIGURES]
        both = " / ".join(f"{statistics.fmean(some):.2f}" for some in zip(*conflicts, strict=True))
        trimmed = f"{mean(own, 'trimmed'):.0f}"
        lines.append([variant, *figures, f"{worst['UA']:.3f} ({worst['concept']})", trimmed, both])
    header = "variant; UA; UA synonyms; IRA; CRA; CRA forget; worst UA; trimmed; conflicts / correction"
    return markdown(header, lines) + f"\n\nMeans over {', '.join(CONTROLLED)}. " + footnote(rows).strip()


def strike(job: Job) -> dict:
    """Erase, judge and attack; the original's side of every attack is that of the concept's first job."""
    from sd_scissorhands.attacks.attack import attack
    from sd_scissorhands.attacks.attack_settings import AttackSettings

    row = work(job)
    model = str(job.folder / "model")
    for name, (kind, changes) in ATTACKS.items():
        if name in ONCE and job.seed:
            continue
        folder = job.folder / "attack" / name.replace(" ", "-")
        donor = Job(ATTACKED[0], job.concept, 0, job.count).folder / "attack" / folder.name
        if donor != folder and donor.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for file in [*donor.glob("original-*"), donor / "pictures.safetensors"]:
                shutil.copyfile(file, folder / file.name)
        if (folder / "summary.json").exists():
            told = json.loads((folder / "summary.json").read_text())
        else:
            settings = AttackSettings(kind, job.concept, model, "tiny", device="cpu", **changes)
            told = attack(settings, folder, worth={figure: row[figure] for figure in ("IRA", "CRA")})
        row[name] = {key: told[key] for key in ("n", "asr_before", "asr_after", "original", "steps_back")}
    return row


def table_attacks() -> str:
    """Table 4: what brings an erased concept back."""
    jobs = [Job(v, c, seed, 100) for seed in (0, 1, 2) for v in ATTACKED for c in ATTACKED_CONCEPTS]
    firsts = [job for job in jobs if job.variant == ATTACKED[0] and job.seed == 0]
    rows = run_all(firsts, strike) + run_all([job for job in jobs if job not in firsts], strike)
    first = [row for row in rows if row["variant"] == ATTACKED[0] and row["seed"] == 0]
    original = ["original", "", *[f"{mean_original(first, name):.3f}" for name in FIGURES[:4]]]
    original += [f"{statistics.fmean(r[a]['original']['asr_after'] for r in first):.2f}" for a in RATES]
    lines = [[*original, "knows it", ""]]
    for variant in ATTACKED:
        for concept in (*ATTACKED_CONCEPTS, "mean"):
            own = [r for r in rows if r["variant"] == variant and concept in (r["concept"], "mean")]
            if concept == "mean" or variant == ATTACKED[0]:
                lines.append([variant, concept, *attack_cells(own)])
    header = (
        "variant; concept; UA; UA synonyms; IRA; CRA; embedding ASR (worst); 8 embeddings ASR (worst); token ASR (worst); "
        "relearn steps; benign relearn steps"
    )
    n = ", ".join(f"{changes['count']} for {name}" for name, (_, changes) in ATTACKS.items())
    return markdown(header, lines) + footnote(rows) + f" Attacks, seed 0, per run: {n} pictures."


def attack_cells(rows: list[dict]) -> list[str]:
    """The figures of some attacked runs: means, worst, and the range of steps."""

    def asr(name: str) -> str:
        found = [row[name]["asr_after"] for row in rows if name in row]
        return f"{statistics.fmean(found):.2f} ({max(found):.2f})"

    def steps(what: str) -> str:
        found = [row["relearn"]["steps_back"][what] for row in rows if "relearn" in row]
        most = rows[0]["relearn"]["steps_back"]["most"]
        known = sorted(step for step in found if step is not None)
        never = len(found) - len(known)
        told = [f"{known[0]} to {known[-1]}" if known and known[0] != known[-1] else str(known[0])] if known else []
        return ", ".join(told + [f"never within {most}: {never} of {len(found)}"] * bool(never))

    return [
        *[f"{mean(rows, f):.3f}" for f in FIGURES[:4]],
        *map(asr, RATES),
        steps("concept"),
        steps("benign"),
    ]


def table_full_size() -> str:
    """Table 3: the real SD 1.4 UNet configuration with random weights, in a process of its own for its peak memory."""
    command = [sys.executable, str(Path(__file__).parent / "sd14.py")]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    lines = [[s["stage"], f"{s['seconds']:.1f}", f"{s['peak_gib']:.1f}"] for s in told["stages"]]
    sizes = f"{told['weights']:,} weights, {told['scope_size']:,} in scope, {told['trimmed']:,} trimmed"
    table = markdown("stage; seconds; peak GiB", lines)
    return f"Scope `{told['scope']}`: {sizes}.\n\n{table}\n\n{machine()}"


def machine() -> str:
    """The machine and the versions, for under a table."""
    import torch

    from sd_scissorhands.models.load import open_pipeline
    from sd_scissorhands.show import still_libraries

    still_libraries()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    model = open_pipeline("tiny").weights_sha256[:12]
    return f"Machine: {names[0]}, {os.cpu_count()} cores; torch {torch.__version__}; embedded model {model}."


TABLES = {
    "defaults": table_defaults,
    "controls": table_controls,
    "full-size": table_full_size,
    "attacks": table_attacks,
}


def publish(name: str, table: str, document: Path = DOCUMENT) -> None:
    """Put a table between its marks in the document."""
    text = document.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(begin, 1)
    document.write_text(f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    """Run the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(TABLES))
    for name in parser.parse_args().tables or TABLES:
        publish(name, TABLES[name]())


if __name__ == "__main__":
    main()
