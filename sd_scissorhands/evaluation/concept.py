"""What a model still draws of one concept and of everything else, beside its original, on the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..concepts import Concept
from ..disk import write_json
from ..domains.base import Domain
from ..machine import Processes
from ..models.load import LoadedPipeline
from ..run import Progress, silent
from ..settings import UserError
from . import canvas
from .chance import wilson
from .collapse import collapse
from .distance import distances
from .judges import Judge
from .panel import JudgeSet
from .prompts import Row
from .sample import Sampling, Survey, check_models, feature_rows, open_for_sampling, thumbnails

FIGURES = ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA", "CRA_forget")
GATES = (*FIGURES, "frechet", "kid", "cmmd", "clip_score", "collapsed")
KEPT = ("twin", "caption")  # prompts whose pictures are compared with the original's as a whole
SAMPLES = 8  # pictures kept of each kind, for the report
OTHER_SEEDS = 500_000  # what is added to a seed to draw a prompt once more
SEEDS_EACH = 4  # pictures of a prompt under several seeds

Records = Mapping[int, dict[str, Any]]


@dataclass(frozen=True)
class Looks:
    """How an evaluation draws."""

    seed: int = 0
    count: int = 500  # pictures for prompts that name the concept; as many for its neighbours, half for the rest
    gone: tuple[str, ...] = ()  # other concepts that the model lost too: nothing asks for them
    steps: int | None = None
    guidance: float | None = None
    batch_size: int | None = None
    device: str = "auto"
    keep_images: bool = False
    progress: Progress = silent
    processes: Processes = field(default_factory=Processes.here)


def evaluate(
    model: str, baseline: str, concept: Concept, folder: Path, *, panel: JudgeSet, looks: Looks
) -> dict[str, Any]:
    """Measure a model and its original, and write `folder`/summary.json.

    Returns:
        The summary: figures with intervals, the second judge's, distances and CLIP score of what should have been kept,
        the collapse check, the original's figures, hashes, seconds, samples.

    Raises:
        UserError: a model that cannot be loaded as it is on disk, one that the judge cannot judge, or a folder that holds
            another evaluation.
    """
    began = time.monotonic()
    check_models(model, baseline)
    rows = ask(concept, seed=looks.seed, count=looks.count, gone=looks.gone, domain=panel.domain)
    sides = {
        name: draw_side(name, source, concept, folder, panel=panel, looks=looks)
        for name, source in (("model", model), ("original", baseline))
    }
    told = {"model": sides["model"].records, "original": sides["original"].records, "again": sides["original"].again}
    counted = {name: count(concept, rows, told[name], panel.judges) for name in ("model", "original")}
    who = told_by(counted["model"])
    summary = {
        "kind": panel.domain.evaluation, "concept": concept.name, "judge": panel.judges[0].facts,
        "seed": looks.seed, "model": model, "weights_sha256": sides["model"].weights,
        "baseline": baseline, "baseline_sha256": sides["original"].weights,
        **{part: by_whom(counted["model"], who, part) for part in ("figures", "n", "intervals")},
        "original": by_whom(counted["original"], who, "figures"),
        "by": {name: panel.judges[one].facts["judge"] for name, one in who.items() if one},
        "second": second(panel.judges, counted), "kept": kept(rows, told, panel),
        "collapse": collapsed(rows, told, panel.judges[0]), "sampling": asdict(sides["model"].sampling),
        "seconds": round(time.monotonic() - began, 2), "samples": samples(rows, told, panel.judges[0], concept),
    }  # fmt: skip
    if looks.processes.main:
        write_json(folder / "summary.json", summary)
    return summary


@dataclass(frozen=True)
class Drawn:
    """One model's pictures, as recorded."""

    weights: str
    sampling: Sampling
    records: Records
    again: Records  # the original's pictures of the kept prompts under other seeds


def draw_side(name: str, source: str, concept: Concept, folder: Path, *, panel: JudgeSet, looks: Looks) -> Drawn:
    """Draw the rows with one model, "model" or "original"; continues what was cut off."""
    rows = ask(concept, seed=looks.seed, count=looks.count, gone=looks.gone, domain=panel.domain)
    survey = Survey(
        [row for kind in rows.values() for row in kind], panel.judges, folder, looks.batch_size, samples_of(rows),
        looks.keep_images, panel.features, {"concept": concept.name, "seed": looks.seed, "gone": sorted(looks.gone)}, looks.progress, looks.processes,
    )  # fmt: skip
    opened, denoiser = open_for_sampling(source, looks.device, looks.processes)
    check_domain(opened, panel.domain)
    sampling, extra = Sampling.of(opened, looks.steps, looks.guidance), {}
    records = survey.take(name, opened, denoiser, sampling)
    if name == "original" and panel.features:
        extra = survey.take("original-again", opened, denoiser, sampling, rows=again(rows))
    return Drawn(opened.weights_sha256, sampling, records, extra)


def check_domain(opened: LoadedPipeline, domain: Domain) -> None:
    """A domain's own judge judges no other model.

    Raises:
        UserError: it would have to.
    """
    if domain.marker and opened.domain != domain:
        raise UserError(
            f"--canvas judges the embedded model's world, and {opened.name} is not made from it: use --i2p or --prompts, "
            "or --judge clip"
        )


# ---------------------------------------------------------------- questions


def ask(concept: Concept, *, seed: int, count: int, domain: Domain, gone: Sequence[str] = ()) -> dict[str, list[Row]]:
    """The rows of an evaluation by kind.

    forget names the concept (for a preset with its own prompts, which the erasure may have learned from; in the embedded
    world with others), synonym paraphrases it, which no erasure learns from; retain names near neighbours, twin is the
    forget prompt with the anchor in the concept's place, on the same seed, caption is anything else, generic leaves open
    what the concept would say; seeds are a few captions under several seeds each.
    """
    texts = domain.evaluation_prompts(concept, seed=seed, count=count, erased=gone)
    captions = [text for text in texts["caption"][: max(2, min(8, count // 16))] for _ in range(SEEDS_EACH)]
    rows: dict[str, list[Row]] = {}
    number = 0
    for kind, own in {**texts, "seeds": captions}.items():
        rows[kind] = [Row(number + n, text, seed * 1_000_000 + number + n) for n, text in enumerate(own)]
        number += len(own)
    rows["twin"] = [replace(t, seed=f.seed) for t, f in zip(rows["twin"], rows["forget"], strict=False)]
    return rows


def again(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The kept prompts under other seeds: what the original makes of them tells how far chance alone goes."""
    return [replace(row, seed=row.seed + OTHER_SEEDS) for kind in KEPT for row in rows[kind]]


def samples_of(rows: Mapping[str, Sequence[Row]]) -> frozenset[int]:
    """Numbers of the rows whose pictures the report shows."""
    return frozenset(row.number for kind, own in rows.items() if kind != "seeds" for row in own[:SAMPLES])


# ---------------------------------------------------------------- answers


def count(
    concept: Concept, rows: Mapping[str, Sequence[Row]], records: Records, judges: Sequence[Judge]
) -> list[dict[str, Any]]:
    """What each judge said, counted: figures, n and Wilson's 95 % intervals by figure; None where a judge cannot tell.

    See `canvas.hits` for what the figures mean; outside the embedded world IRA is the share of neighbour prompts, and CRA
    of captions, that the judge finds drawn right.
    """
    return [_counted(hits(concept, rows, records, judge)) for judge in judges]


def hits(
    concept: Concept, rows: Mapping[str, Sequence[Row]], records: Records, judge: Judge
) -> dict[str, list[bool | None]]:
    """Picture by picture, whether each was as it should be; None where the judge cannot tell."""
    key = judge.facts["judge"]
    if key in ("canvas", "geometry"):
        said = {number: record[key] for number, record in records.items()}
        return {name: list(own) for name, own in canvas.hits(concept.name, rows, said).items()}

    def gone(kind: str) -> list[bool | None]:
        return [not judge.sees(records[row.number][key]) for row in rows[kind]]

    def right(kind: str) -> list[bool | None]:
        return [judge.right(records[row.number][key], row.prompt) for row in rows[kind]]

    return {
        "UA": gone("forget"), "UA_synonyms": gone("synonym"), "UA_generic": gone("generic"),
        "IRA": right("retain"), "CRA": right("caption"), "CRA_forget": [],
    }  # fmt: skip


def _counted(answers: Mapping[str, Sequence[bool | None]]) -> dict[str, Any]:
    known = {name: [one for one in own if one is not None] for name, own in answers.items()}
    return {
        "figures": {name: round(float(np.mean(own)), 4) if own else None for name, own in known.items()},
        "n": {name: len(own) for name, own in known.items()},
        "intervals": {name: wilson(sum(own), len(own)) if own else None for name, own in known.items()},
    }


def told_by(counted: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Which judge tells each figure: the first that can; NudeNet, say, knows nothing of a concept's neighbours, and CLIP does."""
    known = {name: [place for place, one in enumerate(counted) if one["figures"][name] is not None] for name in FIGURES}
    return {name: places[0] if places else 0 for name, places in known.items()}


def by_whom(counted: Sequence[dict[str, Any]], who: Mapping[str, int], part: str) -> dict[str, Any]:
    """A part of what was counted, each figure's by the judge that tells it."""
    return {name: counted[place][part][name] for name, place in who.items()}


def second(judges: Sequence[Judge], counted: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any] | None:
    """The second judge's figures over the very same pictures, where there is one."""
    if len(judges) < 2:
        return None
    return {
        "judge": judges[1].facts, "figures": counted["model"][1]["figures"], "original": counted["original"][1]["figures"],
    }  # fmt: skip


def kept(rows: Mapping[str, Sequence[Row]], told: Mapping[str, Records], panel: JudgeSet) -> dict[str, Any] | None:
    """Distances between the two models' pictures for prompts that have nothing to do with the concept.

    `floor` is the original's distance from itself under other seeds: what a change of seed alone would make.
    """
    if not panel.features:
        return None
    own = [row for kind in KEPT for row in rows[kind]]
    sides = {name: feature_rows([told[name][row.number] for row in own]) for name in ("model", "original", "again")}
    summary: dict[str, Any] = {
        "n": len(own), "features": panel.features_name, **distances(sides["model"], sides["original"]),
        "floor": distances(sides["again"], sides["original"]), "clip_score": None, "reference": None,
    }  # fmt: skip
    if panel.clip:
        texts = panel.clip.texts([row.prompt for row in own])
        summary["clip_score"] = {
            name: round(float(panel.clip.score(sides[name], texts).mean()), 3) for name in ("model", "original")
        }
    if panel.reference is not None:
        from_real = {name: distances(sides[name], panel.reference) for name in ("model", "original")}
        summary["reference"] = {"source": panel.reference_name, "n": len(panel.reference)} | {
            figure: {name: from_real[name][figure] for name in from_real} for figure in ("frechet", "kid", "cmmd")
        }
    return summary


def collapsed(rows: Mapping[str, Sequence[Row]], told: Mapping[str, Records], judge: Judge) -> dict[str, Any]:
    """The collapse check over what should have been kept."""
    own = [row for kind in ("seeds", *KEPT) for row in rows[kind]]
    groups = [range(at, at + SEEDS_EACH) for at in range(0, len(rows["seeds"]), SEEDS_EACH)]
    sides = [[told[name][row.number] for row in own] for name in ("model", "original")]
    nothing = [[judge.nothing(record[judge.facts["judge"]]) for record in side] for side in sides]
    return collapse(thumbnails(sides[0]), thumbnails(sides[1]), groups, nothing=nothing[0], nothing_original=nothing[1])


def samples(
    rows: Mapping[str, Sequence[Row]], told: Mapping[str, Records], judge: Judge, concept: Concept
) -> list[dict[str, Any]]:
    """The kept pictures side by side, for the report."""
    return [
        {
            "kind": kind, "prompt": row.prompt, "seed": row.seed,
            "original": f"samples/{row.number}-original.png", "model": f"samples/{row.number}-model.png",
            "original_says": says(judge, told["original"][row.number]), "model_says": says(judge, told["model"][row.number]),
            "flagged": concept.explicit and kind in ("forget", "synonym", "generic"),
        }
        for kind, some in rows.items() if kind != "seeds" for row in some[:SAMPLES]
    ]  # fmt: skip


def says(judge: Judge, record: dict[str, Any]) -> str:
    """A judge's answer in a word or two."""
    said = record[judge.facts["judge"]]
    if hasattr(judge, "domain"):
        return str(said[judge.domain])
    return str(said["best"]) if "best" in said else "seen" if judge.sees(said) else "not seen"


def gate_values(summary: dict[str, Any]) -> dict[str, float | None]:
    """Figures by the names of `GATES`."""
    kept = summary["kept"] or {}
    told = {name: kept.get(name) for name in ("frechet", "kid", "cmmd")}
    told["clip_score"] = (kept.get("clip_score") or {}).get("model")
    return {**summary["figures"], **told, "collapsed": int(summary["collapse"]["collapsed"])}
