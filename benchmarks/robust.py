"""The tables of docs/experiments.md on staying gone: `python benchmarks/robust.py [main|parts|several|pushed|alone ...]`.

Every erasure and every figure is kept in runs/robust, so that what was cut off continues. Two workers of one thread each;
seconds are those of an erasure on one of the two busy cores, but for those of `alone`.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from experiments import alone, machine, markdown, publish  # the other tables' helpers, beside this file

from sd_scissorhands.tiny.world import DOMAINS

ROOT = Path("runs/robust")
PLOT = Path(__file__).parent.parent / "docs" / "quality-against-attack.svg"
TUNED_ON = ("heart", "blue", "ring", "triangle", "cross", "yellow", "diamond")
UNSEEN = ("green",)
CONCEPTS = TUNED_ON + UNSEEN
SEEDS = (0, 1, 2)
COUNT = 170  # pictures for UA and for IRA, each, per run: 510 over three seeds
ASKED = 48  # pictures behind every attack's rate
LOOKS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 60, 80, 120, 160)  # steps of relearning
FEW = 8

DISTILLED = {  # as the recipe was before: the rest is matched under its own words or none, on a third of the pictures
    "retain_loss": "distil",
    "retain_count": 160,
    "retain_sampling_steps": 0,
    "forget_weight": 0.2,
    "steps": 300,
}
SHORT = DISTILLED | {"steps": 200}  # and before that
MIXED = SHORT | {"ahead": "mixture"}  # and before that
OTHERS = MIXED | {"other_words": 0.5}  # half of the retain samples under another sample's words
BY_NAME = OTHERS | {"conditions": "longer", "ahead": "name"}
PUSHED = BY_NAME | {"episode": 20}
WHOLE = {"recipe": "substitution", "scope": "full", "steps": 300, "lr": 4e-4}  # scope and rate as robust has them

VARIANTS: dict[str, dict[str, Any]] = {
    "scissorhands-robust": {},
    "substitution": {"recipe": "substitution"},
    "substitution, all weights": WHOLE,
    "scissorhands-anchored": {"recipe": "scissorhands-anchored"},
    "scissorhands": {  # with the paper's own settings, from which the recipe departs on the embedded model
        "recipe": "scissorhands",
        "scope": r"up_blocks\.[12]\.attentions\.1\..*attn1",
        "top_k": 0.005,
        "threshold_scope": "global",
        "init": "kaiming",
        "projection": "paper",
        "forget_weight": 0.1,
        "retain_loss": "denoise",
    },
    # what each part of the robust recipe brings
    "without looking ahead": {"relearn_every": 0},
    "under the name alone": {"conditions": "name"},
    "anchor's prediction": {"repair": "anchor"},
    # how far a concept can be pushed
    "distilled": DISTILLED,
    "200 steps": SHORT,
    "200 steps, without looking ahead": SHORT | {"relearn_every": 0},
    "look ahead under the mixture": MIXED,
    "look ahead by name": SHORT | {"ahead": "name"},
    "weight .6": SHORT | {"forget_weight": 0.6},
    "weight 1": SHORT | {"forget_weight": 1.0},
    "others' words": OTHERS,
    "longer prompts": OTHERS | {"conditions": "longer"},
    "longer prompts, look ahead by name": BY_NAME,
    "pushed": PUSHED,
    "pushed, projection": PUSHED | {"projection": "scale-free"},
    "pushed, weight .5": PUSHED | {"forget_weight": 0.5},
    "pushed, weight .6": PUSHED | {"forget_weight": 0.6},
    "pushed, weight 1": PUSHED | {"forget_weight": 1.0},
    # what trimming and projection bring to it
    "projection": {"projection": "scale-free"},
    "trim .5 %, contrast": {"edit": "reinitialise", "top_k": 0.005},
    "trim 1 % in channels, activation": {
        "edit": "reinitialise",
        "top_k": 0.01,
        "granularity": "channel",
        "scorer": "activation",
    },
}


@dataclasses.dataclass(frozen=True)
class Job:
    """Figures of one concept on one model."""

    variant: str  # of VARIANTS, "original" or "unseen" (benchmarks/unseen.py)
    concept: str
    seed: int
    figures: tuple[str, ...]  # of FIGURES
    together: tuple[str, ...] = ()  # what was erased in the same run, the concept included
    after: tuple[str, ...] = ()  # what was erased before, in a run of its own

    @property
    def folder(self) -> Path:
        names = "-".join(self.together or (self.concept,))
        return ROOT / re.sub(r"\W+", "-", self.variant) / "-then-".join((*self.after, f"{names}-{self.seed}"))

    @property
    def held(self) -> dict[str, Any]:
        """The figures that are measured already."""
        file = self.folder / f"figures-{self.concept}.json"
        return json.loads(file.read_text()) if file.exists() else {}


class Model:
    """A model to be measured: opened once."""

    def __init__(self, job: Job):
        import torch

        from sd_scissorhands.concepts import of_world
        from sd_scissorhands.diffusion.denoiser import Denoiser
        from sd_scissorhands.evaluation.judges import WorldJudge
        from sd_scissorhands.evaluation.sample import Sampling
        from sd_scissorhands.models.load import open_pipeline

        source = "tiny" if job.variant == "original" else str(job.folder / "model")
        opened = open_pipeline(source, device=torch.device("cpu"))
        self.job, self.denoiser, self.sampling = job, Denoiser(opened.pipeline), Sampling.of(opened, None, None)
        self.original = Denoiser(open_pipeline("tiny", device=torch.device("cpu")).pipeline)
        self.concept, self.judge = of_world(job.concept), WorldJudge(job.concept)
        self.gone = [name for name in (*job.after, *job.together) if name != job.concept]

    def look(self, prompts: Sequence[str], first_seed: int, encode: Callable[..., Any] | None = None) -> list[dict]:
        """What the judge names in the picture for each prompt, drawn as every evaluation draws."""
        from sd_scissorhands.evaluation.prompts import Row
        from sd_scissorhands.evaluation.sample import draw

        rows = [Row(n, prompt, first_seed + n) for n, prompt in enumerate(prompts)]
        encode = encode or (lambda some: self.denoiser.encode([row.prompt for row in some]))
        said: list[dict] = []
        for chunk, pixels in draw(self.denoiser, rows, self.sampling, batch_size=None, encode=encode):
            said += self.judge.look(pixels, [row.prompt for row in chunk])
        return said

    def rate(self, *asked: Any, **how: Any) -> float:
        """Share of `look`'s pictures that show the concept."""
        return statistics.fmean(self.judge.sees(said) for said in self.look(*asked, **how))

    def pairs(self, count: int) -> list[tuple[str, str]]:
        """(slotted, plain) prompts that an attacker learns from."""
        from sd_scissorhands.attacks.scene import filled
        from sd_scissorhands.diffusion.dataset import spread

        return spread(filled(self.concept), count, 900 + self.job.seed)

    def taught(self, count: int) -> tuple[list[str], Any]:
        """These prompts, plain, and the original's pictures for them."""
        return self.drawn([plain for _, plain in self.pairs(count)])

    def others(self, count: int) -> tuple[list[str], Any]:
        """Prompts of anything but the concept, and the original's pictures for them."""
        from sd_scissorhands.concepts import world_captions

        return self.drawn(world_captions({self.concept.name}, count, 900 + self.job.seed))

    def drawn(self, prompts: list[str]) -> tuple[list[str], Any]:
        """Prompts, and the original's pictures for them."""
        from sd_scissorhands.attacks.scene import TRAINING_SEED

        seeds = range(TRAINING_SEED, TRAINING_SEED + len(prompts))
        return prompts, self.original.generate(prompts, seeds, steps=20, guidance=3.0)

    def asked(self) -> list[tuple[str, str]]:
        """(slotted, plain) prompts that name the concept, which nothing was learned from."""
        from sd_scissorhands.attacks.scene import named

        return named(self.concept, count=ASKED, seed=900 + self.job.seed, in_world=True)


# ---------------------------------------------------------------- figures


def kept(model: Model, count: int = COUNT, series: int = 0) -> dict[str, float]:
    """UA, UA_synonyms, UA_generic, IRA, CRA; the original's IRA and CRA alone where its first seed said the rest.

    Another series has other prompts and other start noise.
    """
    from sd_scissorhands.evaluation import canvas

    prompts = canvas.prompts(model.concept, seed=5000 + 1000 * series + model.job.seed, count=count, gone=model.gone)
    if model.job.variant == "original" and model.job.seed:
        prompts |= {"forget": [], "synonym": [], "generic": []}
    asked, said, number = {}, {}, 0
    for kind in ("forget", "synonym", "generic", "retain"):
        first = 1_000_000 * (5 + 10 * series + model.job.seed) + number
        asked[kind] = [_Asked(number + n, text) for n, text in enumerate(prompts[kind])]
        said |= {number + n: one for n, one in enumerate(model.look(prompts[kind], first))}
        number += len(prompts[kind])
    hits = canvas.hits(model.concept.name, asked, said)
    return {name: statistics.fmean(own) for name, own in hits.items() if own}


@dataclasses.dataclass(frozen=True)
class _Asked:
    number: int
    prompt: str


def embedding(model: Model, width: int, restarts: int) -> list[float]:
    """Success of every restart of the learned embeddings."""
    import torch

    from sd_scissorhands.attacks.learn import Target, learn_embedding, start_embedding
    from sd_scissorhands.diffusion import slots as words

    d, pairs = model.denoiser, model.pairs(48)
    _, latents = model.drawn([plain for _, plain in pairs])
    target = Target(d, latents, words.slotted(d, [slotted for slotted, _ in pairs], width=width))
    name = words.vocabulary(d)[d.pipeline.tokenizer(model.concept.name, add_special_tokens=False).input_ids]
    asked, rates = [slotted for slotted, _ in model.asked()], []
    for restart in range(restarts):
        seed = 900 + model.job.seed
        state = start_embedding(target, seed=seed, restart=restart, word=name)
        state = learn_embedding(target, state, steps=200, lr=0.3, batch_size=16, seed=100 * seed + restart)

        def encode(rows, vectors=state.vectors):
            with torch.no_grad():
                return words.encode(d, words.slotted(d, [row.prompt for row in rows], width=width), vectors)

        rates.append(model.rate(asked, 7_000_000, encode=encode))
    return rates


def token(model: Model) -> float:
    """Success of suffixes of three real tokens, each learned for its own prompt."""
    import torch

    from sd_scissorhands.attacks.learn import Target, learn_tokens
    from sd_scissorhands.diffusion import slots as words

    d, prompts = model.denoiser, [plain for _, plain in model.asked()]
    latents = model.original.generate(prompts, range(7_000_000, 7_000_000 + len(prompts)), steps=20, guidance=3.0)
    slotted = words.slotted(d, [f"{prompt} {words.SLOT}" for prompt in prompts], width=3)
    target, known, ids = Target(d, latents, slotted), words.vocabulary(d), []
    for rows in torch.arange(len(prompts)).split(24):
        ids.append(learn_tokens(target, rows, steps=40, lr=0.5, seed=900 + model.job.seed + int(rows[0]))[0])
    suffixes = torch.cat(ids)

    def encode(rows):
        numbers = torch.tensor([row.number for row in rows])
        with torch.no_grad():
            return words.encode(d, slotted[numbers], known[suffixes[numbers]])

    return model.rate(prompts, 7_000_000, encode=encode)


def relearn(model: Model, lr: float, *, benign: bool = False) -> int | None:
    """Steps of fine-tuning, on the concept or on anything else, until half of the pictures show it; None if it never is back."""
    from sd_scissorhands.attacks.learn import Relearning

    d, asked = model.denoiser, [plain for _, plain in model.asked()][:24]
    prompts, latents = model.others(FEW) if benign else model.taught(FEW)
    pristine = {name: p.detach().clone() for name, p in d.module.named_parameters()}
    work = Relearning(d, latents, d.encode(prompts), lr=lr, batch_size=FEW, seed=900 + model.job.seed)
    back = None
    for step in LOOKS:
        work.run(step)
        if model.rate(asked, 7_500_000) >= 0.5:
            back = step
            break
    for name, parameter in d.module.named_parameters():
        parameter.data.copy_(pristine[name])
        parameter.requires_grad_(False)
    return back


FIGURES: dict[str, Callable[[Model], Any]] = {
    "kept": kept,
    "kept briefly": lambda model: kept(model, 100),
    "kept afresh": lambda model: kept(model, series=1),
    "embedding": lambda model: embedding(model, 1, 4),
    "embedding once": lambda model: embedding(model, 1, 1),
    "three": lambda model: embedding(model, 3, 4),
    "three once": lambda model: embedding(model, 3, 1),
    "token": token,
    "relearn": lambda model: relearn(model, 3e-4),
    "relearn slowly": lambda model: relearn(model, 1e-4),
    "benign": lambda model: relearn(model, 3e-4, benign=True),
    "distance": lambda model: distance(model),
}


def distance(model: Model) -> float:
    """L2 distance of the UNet's weights from the original's."""
    pairs = zip(model.denoiser.module.parameters(), model.original.module.parameters(), strict=True)
    return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5


def work(job: Job) -> dict[str, Any]:
    """The row of a job: erase if need be, then measure; seconds are those of the erasure."""
    alone()
    if job.variant == "original":
        return measured(job)
    erase_for(job)
    return measured(job) | {"seconds": json.loads((job.folder / "run.json").read_text())["result"]["seconds"]}


def measured(job: Job) -> dict[str, Any]:
    """The row of a job whose model is there: what its file does not hold yet is measured."""
    file = job.folder / f"figures-{job.concept}.json"
    row, model = job.held, None
    for name in job.figures:
        if name not in row:
            model = model or Model(job)
            row[name] = FIGURES[name](model)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row))
    how = " then ".join([*job.after, " + ".join(job.together)])
    return {"variant": job.variant, "concept": job.concept, "seed": job.seed, "how": how} | row


def erase_for(job: Job) -> None:
    """The erasure of a job, made or found; those that go before it first."""
    from sd_scissorhands.erasure import erase
    from sd_scissorhands.settings import EraseSettings

    model = "tiny"
    if job.after:
        first = Job(job.variant, job.after[-1], job.seed, (), after=job.after[:-1])
        erase_for(first)
        model = str(first.folder / "model")
    concepts = job.together or (job.concept,)
    settings = EraseSettings(concepts=concepts, model=model, seed=job.seed, device="cpu", **VARIANTS[job.variant])
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with job.folder.with_suffix(".lock").open("w") as lock:  # two concepts of one run may be measured at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        erase(settings, job.folder, resume=True)


def run_all(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """All rows in order, worked on two at a time, printed as they come."""
    rows = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for row in pool.imap(work, jobs, chunksize=1):
            rows.append(row)
            print(f"{len(rows)}/{len(jobs)} {json.dumps(row)}", flush=True)
    return rows


def by_itself(concept: str) -> dict[str, Any]:
    """The command of a user, nothing else running: its seconds, and whether it gives the bytes that were measured."""
    folder = ROOT / "alone" / concept
    file = folder.with_suffix(".json")
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        words = ["erase", "--model", "tiny", "--concept", concept, "--output-dir", str(folder), "--json"]
        ours = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        began = time.monotonic()
        told = subprocess.run(
            [sys.executable, "-m", "sd_scissorhands", *words], env=ours, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.monotonic() - began
        result, stages = json.loads(told.stdout), json.loads((folder / "run.json").read_text())["stages"].values()
        twin = json.loads((Job("scissorhands-robust", concept, 0, ()).folder / "run.json").read_text())["result"]
        row = {
            "concept": concept,
            "erasure": result["seconds"],
            "seconds": seconds,
            "MiB": max(stage.get("peak_bytes", 0) for stage in stages) / 2**20,
            "same": result["weights_sha256"] == twin["weights_sha256"],
        }
        file.write_text(json.dumps(row))
    return json.loads(file.read_text())


# ---------------------------------------------------------------- what is measured

PROOF = ("kept", "kept afresh", "embedding", "three", "token", "relearn", "relearn slowly", "benign")
CONTROL = ("kept briefly", "three once", "relearn", "distance")
PARTS = {  # group -> variants of the robust recipe
    "recipes": ("scissorhands-robust", "substitution", "scissorhands-anchored", "scissorhands"),
    "leaving out": ("without looking ahead", "under the name alone", "anchor's prediction"),
    "adding": ("projection", "trim .5 %, contrast", "trim 1 % in channels, activation"),
}
COMPARED = ("heart", "ring")
SOFTLY = (
    "scissorhands-robust",
    "distilled",
    "200 steps",
    "200 steps, without looking ahead",
    "look ahead under the mixture",
    "look ahead by name",
    "others' words",
    "longer prompts",
    "longer prompts, look ahead by name",
)
HARDER = (
    "weight .6",
    "weight 1",
    "substitution, all weights",
    "pushed",
    "pushed, projection",
    "pushed, weight .5",
    "pushed, weight .6",
    "pushed, weight 1",
)
TOGETHER, CHAIN = ("heart", "star", "blue", "striped"), ("ring", "yellow")


def jobs_main() -> list[Job]:
    """The robust recipe on every concept and seed, the original and plain substitution beside it."""
    known = ("kept", "kept afresh", "embedding once", "three once", "token")
    jobs = [Job("scissorhands-robust", c, 0, PROOF) for c in CONCEPTS]
    jobs += [Job("original", c, 0, known) for c in CONCEPTS]
    plain = ("relearn", "relearn slowly", "kept", "three once")
    jobs += [Job(v, c, 0, plain) for v in ("substitution", "substitution, all weights") for c in CONCEPTS]
    for seed in SEEDS[1:]:
        for concept in CONCEPTS:
            token = ("token",) if concept in DOMAINS["colour"] else ()
            jobs.append(
                Job("scissorhands-robust", concept, seed, ("kept", "kept afresh", "embedding", "relearn", *token))
            )
            jobs += [Job(v, concept, seed, ("relearn",)) for v in ("substitution", "substitution, all weights")]
            jobs.append(Job("original", concept, seed, ("kept", "kept afresh")))
    return jobs


def jobs_parts() -> list[Job]:
    """Other recipes, and the robust one with parts left out or added."""
    return [Job(v, c, 0, CONTROL) for some in PARTS.values() for v in some for c in COMPARED]


def jobs_several() -> list[Job]:
    """Four concepts in one run, and two one after the other."""
    together = [
        Job("scissorhands-robust", c, 0, ("kept briefly", "embedding once", "three once"), together=TOGETHER)
        for c in TOGETHER
    ]
    first = [
        Job(
            "scissorhands-robust",
            c,
            0,
            ("kept briefly", "embedding once", "three once"),
            after=CHAIN[:1],
            together=CHAIN[1:],
        )
        for c in CHAIN
    ]
    return together + first


def jobs_pushed() -> list[Job]:
    """How far a concept can be pushed: colours and shapes alike, beside the original."""
    figures = ("kept briefly", "relearn")
    softly = [Job(v, c, 0, (*figures, "token")) for c in CONCEPTS for v in SOFTLY]
    harder = [Job(v, c, 0, figures) for c in CONCEPTS for v in HARDER]
    return [*softly, *harder, *[Job("original", c, 0, ("kept briefly",)) for c in CONCEPTS]]


# ---------------------------------------------------------------- tables

Rows = Sequence[dict[str, Any]]


def of(rows: Rows, **same: Any) -> list[dict[str, Any]]:
    """The rows that agree with `same`."""
    return [row for row in rows if all(row[name] == value for name, value in same.items())]


def mean(rows: Rows, name: str, figure: str | None = None, digits: int = 3) -> str:
    """Mean over the rows that have a figure; "" where none has."""
    found = [
        row[name][figure] if figure else row[name]
        for row in rows
        if name in row and (not figure or figure in row[name])
    ]
    return f"{statistics.fmean(found):.{digits}f}" if found else ""


def left(ours: Rows, theirs: Rows, name: str) -> list[str]:
    """What is left of the concept: three shares of pictures that do not show it, the last beside the original's."""
    gone = [mean(ours, name, figure) for figure in ("UA", "UA_synonyms", "UA_generic")]
    return [*gone[:2], f"{gone[2]} / {mean(theirs, name, 'UA_generic')}"]


def untouched(ours: Rows, theirs: Rows, name: str) -> list[str]:
    """What is left of the rest, the original's behind the stroke."""
    return [f"{mean(ours, name, figure)} / {mean(theirs, name, figure)}" for figure in ("IRA", "CRA", "CRA_forget")]


def attacked(rows: Rows, name: str) -> str:
    """Mean over all restarts, and the worst of them."""
    found = [rate for row in rows if name in row for rate in row[name]]
    return f"{statistics.fmean(found):.2f} ({max(found):.2f})" if found else ""


def steps(rows: Rows, name: str) -> str:
    """Steps of relearning, from the fewest to the most."""
    if not (found := [row[name] for row in rows if name in row]):
        return ""
    known = sorted(step for step in found if step is not None)
    told = [f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"] if known else []
    return ", ".join(told + [f"never within {LOOKS[-1]}"] * (len(known) < len(found)))


def tables_main(rows: Rows) -> None:
    """The robust recipe beside the original, and relearning beside plain substitution."""
    robust, original = of(rows, variant="scissorhands-robust"), of(rows, variant="original")
    plain, whole = of(rows, variant="substitution"), of(rows, variant="substitution, all weights")
    lines, afresh, again = [], [], []
    for concept in (*CONCEPTS, "mean"):
        same = {} if concept == "mean" else {"concept": concept}
        ours, theirs = of(robust, **same), of(original, **same)
        one = f"{attacked(ours, 'embedding')} / {attacked(theirs, 'embedding once')[:4]}"
        three = f"{attacked(ours, 'three')} / {attacked(theirs, 'three once')[:4]}"
        suffix = f"{mean(ours, 'token', digits=2)} / {mean(theirs, 'token', digits=2)}"
        name = f"**{concept}**" if concept in UNSEEN else concept
        lines.append([name, *left(ours, theirs, "kept"), *untouched(ours, theirs, "kept"), one, three, suffix])
        afresh.append([name, *left(ours, theirs, "kept afresh"), *untouched(ours, theirs, "kept afresh")])
        others = [of(plain, **same), of(whole, **same)]
        beside = [" / ".join(steps(some, lr) for some in (ours, *others)) for lr in ("relearn", "relearn slowly")]
        asr = " / ".join([attacked(ours, "three"), *(attacked(some, "three once") for some in others)])
        plainly = [" / ".join(mean(some, "kept", figure) for some in others) for figure in ("UA", "IRA")]
        again.append([name, *beside, steps(ours, "benign"), asr, *plainly])
    drawn = "concept; UA; UA synonyms; UA generic / original; IRA / original; CRA / original; CRA forget / original"
    attacks = "embedding ASR (worst) / original; three embeddings ASR (worst) / original; token ASR / original"
    publish("robust", markdown(f"{drawn}; {attacks}", lines) + "\n\n" + machine())
    publish("afresh", markdown(drawn, afresh) + "\n\n" + machine())
    header = (
        "concept; relearn steps at 3e-4, robust / substitution / of all weights; at 1e-4; on other pictures, robust; three embeddings ASR; "
        "UA of substitution / of all weights; IRA of substitution / of all weights"
    )
    publish("relearning", markdown(header, again) + "\n\n" + machine())


def tables_alone(rows: Rows) -> None:
    """What one erasure takes where nothing else runs."""
    lines = []
    for row in rows:
        same = "yes" if row["same"] else "no"
        lines.append([row["concept"], f"{row['erasure']:.0f}", f"{row['seconds']:.0f}", f"{row['MiB']:.0f}", same])
    means = [f"{statistics.fmean(row[name] for row in rows):.0f}" for name in ("erasure", "seconds", "MiB")]
    lines.append(["mean", *means, ""])
    header = "concept; seconds of the erasure; of the whole command; MiB; the bytes of one thread"
    publish("alone", markdown(header, lines) + "\n\n" + machine())


def tables_parts(rows: Rows) -> None:
    """What each part brings, and the plot of quality against attack."""
    from sd_scissorhands.report.plots import tradeoff_plot

    lines, points = [], []
    for group, variants in PARTS.items():
        for variant in variants:
            own = of(rows, variant=variant)
            figures = [mean(own, "kept briefly", name) for name in ("UA", "UA_synonyms", "IRA", "CRA")]
            back = [steps(of(own, concept=concept), "relearn") for concept in COMPARED]
            far = f"{statistics.fmean(row['distance'] for row in own):.2f}"
            seconds = f"{statistics.fmean(row['seconds'] for row in own):.0f}"
            lines.append([group, variant, *figures, attacked(own, "three once"), *back, far, seconds])
            asr = statistics.fmean(rate for row in own for rate in row["three once"])
            points.append(
                (variant, asr, statistics.fmean((r["kept briefly"]["IRA"] + r["kept briefly"]["CRA"]) / 2 for r in own))
            )
    header = (
        "group; variant; UA; UA synonyms; IRA; CRA; three embeddings ASR (worst); "
        f"relearn steps, {'; '.join(COMPARED)}; L2 from the original; seconds"
    )
    publish("parts", markdown(header, lines) + "\n\n" + machine())
    original = [json.loads(file.read_text()) for c in COMPARED for file in ROOT.glob(f"original/{c}-0/figures-*.json")]
    theirs = statistics.fmean((one["kept"]["IRA"] + one["kept"]["CRA"]) / 2 for one in original)
    points.insert(0, ("original", statistics.fmean(one["three once"][0] for one in original), theirs))
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="background:white"'
    PLOT.write_text(str(tradeoff_plot(points)).replace("<svg ", f"<svg {space} ", 1))


def tables_several(rows: Rows) -> None:
    """Several concepts together, and one after the other."""
    lines = []
    for row in rows:
        figures = [f"{row['kept briefly'][name]:.3f}" for name in ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA")]
        lines.append(
            [
                row["how"],
                row["concept"],
                *figures,
                f"{row['embedding once'][0]:.2f}",
                f"{row['three once'][0]:.2f}",
                f"{row['seconds']:.0f}",
            ]
        )
    header = (
        "run; concept; UA; UA synonyms; UA generic; IRA; CRA; embedding ASR; three embeddings ASR; seconds of the run"
    )
    publish("several", markdown(header, lines) + "\n\n" + machine())


def tables_pushed(rows: Rows) -> None:
    """How far a concept can be pushed, by concept; what was not measured is left out."""
    lines = []
    for concept in CONCEPTS:
        original = of(rows, variant="original", concept=concept)
        for variant in SOFTLY + HARDER:
            if not (own := of(rows, variant=variant, concept=concept)):
                continue
            gone = [mean(own, "kept briefly", name) for name in ("UA", "UA_synonyms", "UA_generic")]
            rest = untouched(own, original, "kept briefly")
            lines.append([concept, variant, steps(own, "relearn"), *gone, *rest, mean(own, "token", digits=2)])
    header = (
        "concept; variant; relearn steps at 3e-4; UA; UA synonyms; UA generic; IRA / original; CRA / original; "
        "CRA forget / original; token ASR"
    )
    publish("pushed", markdown(header, lines) + "\n\n" + machine())


TABLES: dict[str, tuple[Callable[[], list[Job]], Callable[[Rows], None]]] = {
    "main": (jobs_main, tables_main), "parts": (jobs_parts, tables_parts), "several": (jobs_several, tables_several),
    "pushed": (jobs_pushed, tables_pushed),
}  # fmt: skip


def main() -> None:
    """Run the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join([*TABLES, "alone"]))
    parser.add_argument("--held", action="store_true", help="pushed: print what is measured, and measure nothing")
    asked = parser.parse_args()
    for name in asked.tables or [*TABLES, "alone"]:
        if name == "alone":
            tables_alone([by_itself(concept) for concept in CONCEPTS])
            continue
        jobs, tables = TABLES[name]
        if asked.held:
            tables([measured(job) for job in jobs() if set(job.figures) <= job.held.keys()])
        else:
            tables(run_all(jobs()))


if __name__ == "__main__":
    main()
