"""Every table of docs/experiments.md: `python benchmarks/experiments.py [defaults|controls|full-size ...]`.

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
import statistics
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path("runs/experiments")
DOCUMENT = Path(__file__).parent.parent / "docs" / "experiments.md"
TUNED_ON = ("heart", "circle", "red")
UNSEEN = ("star", "ring", "blue")
EVALUATION_SEED = 1000
FIGURES = ("UA", "UA_synonyms", "IRA", "CRA", "CRA_forget")

CONTROLS = {
    "default": {},
    "trim only": {"steps": 0},
    "no trim": {"trim": False},
    "no projection": {"projection": "none"},
    "no trim, no projection": {"trim": False, "projection": "none"},
    "retain only": {"forget_weight": 0.0},
    "trimmed, retain only": {"trim": True, "forget_weight": 0.0},
    "plain score": {"trim": True, "scorer": "plain"},
    "contrast score": {"trim": True, "scorer": "contrast"},
    "random weights": {"trim": True, "scorer": "random"},
    "paper's projection": {"projection": "paper"},
    "denoising retain loss": {"retain_loss": "denoise"},
    "scope attn": {"scope": "attn"},
    "scope xattn": {"scope": "xattn"},
}


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
    import torch

    from sd_scissorhands.demo import share_original
    from sd_scissorhands.erase import erase
    from sd_scissorhands.evaluate import canvas
    from sd_scissorhands.settings import EraseSettings
    from sd_scissorhands.show import still_libraries

    still_libraries()
    torch.set_num_threads(1)
    settings = EraseSettings(concepts=(job.concept,), model="tiny", seed=job.seed, device="cpu")
    result = erase(dataclasses.replace(settings, **CONTROLS[job.variant]), job.folder, resume=True)
    folder = job.folder / f"eval-{job.count}"
    share_original(original_folder(job.concept, job.count), folder)
    told = canvas.evaluate(result["model_dir"], "tiny", job.concept, folder, seed=EVALUATION_SEED, count=job.count)
    return {
        **dataclasses.asdict(job),
        **told["figures"],
        "original": told["original"],
        "n": told["n"],
        **{k: result[k] for k in ("trimmed", "conflict_rate", "mean_correction", "seconds", "scope_size")},
    }


def draw_original(concept_and_count: tuple[str, int]) -> None:
    """The original's pictures for a concept."""
    import torch

    from sd_scissorhands.evaluate import canvas
    from sd_scissorhands.evaluate.sample import open_for_sampling
    from sd_scissorhands.run import silent
    from sd_scissorhands.show import still_libraries

    still_libraries()
    torch.set_num_threads(1)
    concept, count = concept_and_count
    rows = canvas.canvas_rows(concept, seed=EVALUATION_SEED, count=count)
    opened, denoiser = open_for_sampling("tiny", "cpu")
    canvas.measure(
        opened, denoiser, concept, rows, seed=EVALUATION_SEED, folder=original_folder(concept, count), name="original",
        batch_size=32, progress=silent,
    )  # fmt: skip


def original_folder(concept: str, count: int) -> Path:
    """Where the original's pictures for a concept are counted."""
    return ROOT / "original" / f"{concept}-{count}"


def run_all(jobs: list[Job]) -> list[dict]:
    """All rows, two at a time, printed as they come."""
    rows = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(draw_original, sorted({(job.concept, job.count) for job in jobs}), chunksize=1)
        for row in pool.imap_unordered(work, jobs, chunksize=1):
            rows.append(row)
            print(
                f"{len(rows)}/{len(jobs)} {row['variant']}, {row['concept']}, seed {row['seed']}: "
                + ", ".join(f"{f} {row[f]:.3f}" for f in FIGURES)
                + f", {row['seconds']} s",
                flush=True,
            )
    return sorted(
        rows,
        key=lambda row: [
            jobs.index(job)
            for job in jobs
            if (job.variant, job.concept, job.seed) == (row["variant"], row["concept"], row["seed"])
        ],
    )


def mean(rows: list[dict], figure: str) -> float:
    """Mean of a figure over rows."""
    return statistics.fmean(row[figure] for row in rows)


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def table_defaults(seeds: tuple[int, ...] = (0, 1, 2), count: int = 500) -> str:
    """Table 1: one set of defaults over tuned and unseen concepts."""
    concepts = TUNED_ON + UNSEEN
    rows = run_all([Job("default", concept, seed, count) for concept in concepts for seed in seeds])
    lines = []
    for concept in concepts:
        own = [row for row in rows if row["concept"] == concept]
        name = concept if concept in TUNED_ON else f"**{concept}**"
        cells = [f"{mean(own, f):.3f} ({min(r[f] for r in own):.3f})" for f in ("UA", "UA_synonyms")]
        cells += [f"{mean(own, f):.3f} / {own[0]['original'][f]:.3f}" for f in ("IRA", "CRA", "CRA_forget")]
        lines.append(
            [
                name,
                f"{own[0]['original']['UA']:.3f}",
                *cells,
                f"{mean(own, 'seconds'):.0f} ({max(r['seconds'] for r in own):.0f})",
            ]
        )
    cells = [f"{mean(rows, f):.3f}" for f in ("UA", "UA_synonyms")]
    cells += [
        f"{mean(rows, f):.3f} / {statistics.fmean(r['original'][f] for r in rows):.3f}"
        for f in ("IRA", "CRA", "CRA_forget")
    ]
    lines.append(
        ["mean", f"{statistics.fmean(r['original']['UA'] for r in rows):.3f}", *cells, f"{mean(rows, 'seconds'):.0f}"]
    )
    header = [
        "concept",
        "UA original",
        "UA (worst seed)",
        "UA synonyms (worst)",
        "IRA / original",
        "CRA / original",
        "CRA forget / original",
        "seconds (worst)",
    ]
    n = rows[0]["n"]
    return (
        markdown(header, lines)
        + f"\n\nSeeds {', '.join(map(str, seeds))}; per run {n['UA']} pictures for UA, {n['UA_synonyms']} for UA synonyms, {n['IRA']} for IRA. {machine()}"
    )


def table_controls(seeds: tuple[int, ...] = (0,), count: int = 200) -> str:
    """Table 2: what each part brings, on the same concepts."""
    concepts = ("heart", "circle", "red", "star", "ring", "blue")
    rows = run_all(
        [Job(variant, concept, seed, count) for variant in CONTROLS for concept in concepts for seed in seeds]
    )
    first = [row for row in rows if row["variant"] == "default"]
    lines = [
        ["original", *[f"{statistics.fmean(r['original'][f] for r in first):.3f}" for f in FIGURES], "", "", "", ""]
    ]
    for variant in CONTROLS:
        own = [row for row in rows if row["variant"] == variant]
        rates = [r["conflict_rate"] for r in own if r["conflict_rate"] is not None]
        sizes = [r["mean_correction"] for r in own if r["mean_correction"] is not None]
        worst = min(own, key=lambda r: r["UA"])
        lines.append(
            [
                variant, *[f"{mean(own, f):.3f}" for f in FIGURES], f"{worst['UA']:.3f} ({worst['concept']})", f"{mean(own, 'trimmed'):.0f}",
                f"{statistics.fmean(rates):.2f} / {statistics.fmean(sizes):.2f}" if rates and sizes else "", f"{mean(own, 'seconds'):.0f}",
            ]
        )  # fmt: skip
    header = [
        "variant",
        "UA",
        "UA synonyms",
        "IRA",
        "CRA",
        "CRA forget",
        "worst UA",
        "trimmed",
        "conflicts / correction",
        "seconds",
    ]
    n = rows[0]["n"]
    return (
        markdown(header, lines)
        + f"\n\nMeans over {', '.join(concepts)}; seeds {', '.join(map(str, seeds))}; per run {n['UA']} pictures for UA, {n['UA_synonyms']} for UA synonyms, {n['IRA']} for IRA. {machine()}"
    )


def table_full_size() -> str:
    """Table 3: the real SD 1.4 UNet configuration with random weights, in a process of its own for its peak memory."""
    tables = []
    for scope in ("xattn", "full"):
        done = subprocess.run(
            [sys.executable, Path(__file__).parent / "full_size.py", "--scope", scope, "--json"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        told = json.loads(done.stdout.splitlines()[-1])
        lines = [[s["stage"], f"{s['seconds']:.1f}", f"{s['peak_gib']:.1f}"] for s in told["stages"]]
        tables.append(
            f"Scope `{scope}`: {told['scope_size']:,} of {told['weights']:,} weights, {told['trimmed']:,} trimmed.\n\n"
            + markdown(["stage", "seconds", "peak GiB"], lines)
        )
    return "\n\n".join(tables) + f"\n\n{machine()}"


def machine() -> str:
    """The machine and the versions, for under a table."""
    import torch

    from sd_scissorhands.diffusion.load import open_pipeline
    from sd_scissorhands.show import still_libraries

    still_libraries()
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown CPU",
    )
    return f"Machine: {cpu}, {os.cpu_count()} cores; torch {torch.__version__}; embedded model {open_pipeline('tiny').weights[:12]}."


TABLES = {"defaults": table_defaults, "controls": table_controls, "full-size": table_full_size}


def publish(name: str, table: str) -> None:
    """Put a table between its marks in the document."""
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(begin, 1)
    DOCUMENT.write_text(f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    """Run the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    for name in parser.parse_args().tables or TABLES:
        publish(name, TABLES[name]())


if __name__ == "__main__":
    main()
