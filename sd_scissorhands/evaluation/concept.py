"""What a model still draws of one concept and of everything else, beside its original, on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..concepts import Concept
from ..disk import write_json
from ..domains.base import Domain
from ..elapsed import Elapsed
from ..models.load import LoadedPipeline
from ..preset_check import name_of
from ..results.evaluation import Collapse, ConceptEvaluation, JudgedSample, JudgeError, SamplingFacts, SecondJudge
from ..settings import UserError
from .chance import corrected, wilson
from .gone import gone
from .judge_set import JudgeSet
from .judges.base import Judge
from .metrics import METRICS
from .metrics.base import RETAINED, Number, Recorded, Share
from .metrics.collapsed import collapse
from .metrics.distances import distances
from .prompts import Row
from .recorder import SHOWN, Recorder, judging_share
from .records import thumbnails
from .sample import DrawOptions, Sampling, check_models, open_for_sampling

OTHER_SEEDS = 500_000  # what is added to a seed to draw a prompt once more
UNNAMED = ("generic", "unlisted")  # prompts that do not name the concept, and must give what they gave before
SEEDS_EACH = 4  # pictures of a prompt under several seeds


@dataclass(frozen=True, kw_only=True)
class ConceptRequest(DrawOptions):
    """What is drawn for a concept, and how."""

    seed: int = 0
    count: int = 500  # pictures for prompts that name the concept; as many for its neighbours, half for the rest
    erased: tuple[str, ...] = ()  # other concepts that the model lost too: no prompt names them


def evaluate(
    model: str, baseline: str, concept: Concept, folder: Path, *, judges: JudgeSet, request: ConceptRequest
) -> ConceptEvaluation:
    """Measure a model and its original, and write `folder`/summary.json. Repeated, a killed evaluation continues.

    Raises:
        UserError: a model that cannot be loaded as it is on disk, one that the judge cannot judge, or a folder that holds
            another evaluation.
    """
    elapsed = Elapsed(folder, request.processes)
    request = replace(request, progress=elapsed.during(request.progress))
    check_models(model, baseline)
    rows = evaluation_rows(concept, judges.domain, seed=request.seed, count=request.count, erased=request.erased)
    recorder = Recorder(
        [row for own in rows.values() for row in own], judges.judges, folder, request,
        frozenset(row.number for _, row in sampled(rows)), judges.features,
        {"concept": concept.name, "seed": request.seed, "gone": sorted(map(name_of, request.erased))},
    )  # fmt: skip
    ours = record_side("model", model, recorder, judges.domain, request)
    theirs = record_side(
        "original", baseline, recorder, judges.domain, request, again(rows, RETAINED if judges.features else ())
    )
    recorded = Recorded(
        rows, {"model": ours.records, "original": theirs.records, "again": theirs.again}, judges, concept
    )
    result = ConceptEvaluation(
        kind=judges.domain.evaluation, concept=concept.name, judge=judges.judges[0].facts, seed=request.seed,
        model=model, weights_sha256=ours.weights, baseline=baseline, baseline_sha256=theirs.weights, **figures(recorded),
        judge_error=judge_error(recorded), kept=retained(recorded), collapse=collapsed(recorded), sampling=SamplingFacts(**ours.sampling.to_json()),
        seconds=elapsed.end(), judging_share=judging_share(recorder), samples=samples(recorded, concept),
        remarks=(*judges.remarks, *recorder.remarks),
    )  # fmt: skip
    found = gone(result)
    result = replace(result, verdict=found.words, nothing_to_erase=found.nothing)
    if request.processes.main:
        write_json(folder / "summary.json", result.to_json())
    return result


@dataclass(frozen=True)
class ConceptRecords:
    """One model's pictures, as recorded."""

    weights: str
    sampling: Sampling
    records: dict[int, dict[str, Any]]
    again: dict[int, dict[str, Any]]  # of rows that are drawn besides


def record_side(
    name: str, source: str, recorder: Recorder, domain: Domain, request: ConceptRequest, again: Sequence[Row] = ()
) -> ConceptRecords:
    """Draw and judge all rows, and those to draw again, with one model: "model" or "original"."""
    opened, denoiser = open_for_sampling(source, request.device, request.processes)
    check_domain(opened, domain)
    sampling = Sampling.of(opened, request.steps, request.guidance)
    with recorder.once(name, opened, denoiser, sampling):
        records = recorder.record(name, opened, denoiser, sampling)
        repeated = recorder.record(f"{name}-again", opened, denoiser, sampling, rows=again) if again else {}
    return ConceptRecords(opened.weights_sha256, sampling, records, repeated)


def check_domain(opened: LoadedPipeline, domain: Domain) -> None:
    """Refuse to draw the prompts of a domain of its own with another model."""
    if domain.marker and opened.domain != domain:
        raise UserError(
            f"the prompts are of the domain {domain.name}, and {opened.name} is not made from it: use --i2p or --prompts, "
            "or --judge clip"
        )


# ---------------------------------------------------------------- prompts


def evaluation_rows(
    concept: Concept, domain: Domain, *, seed: int, count: int, erased: Sequence[str] = ()
) -> dict[str, list[Row]]:
    """The rows of an evaluation by kind of prompt.

    forget names the concept (for a preset with its own prompts, which the erasure may have learned from; in the embedded
    world with others), synonym paraphrases it, which no erasure learns from; retain names near neighbours, twin is the
    forget prompt with the anchor in the concept's place, on the same seed, caption is anything else, generic leaves open
    what the concept would say, unlisted has another word in its place; seeds are a few captions under several seeds each.
    """
    texts = domain.evaluation_prompts(concept, seed=seed, count=count, erased=erased)
    captions = [text for text in texts["caption"][: max(2, min(8, count // 16))] for _ in range(SEEDS_EACH)]
    rows: dict[str, list[Row]] = {}
    number, unlisted = 0, texts.pop("unlisted")
    for kind, own in {**texts, "seeds": captions, "unlisted": unlisted}.items():
        rows[kind] = [Row(number + n, text, seed * 1_000_000 + number + n) for n, text in enumerate(own)]
        number += len(own)
    rows["twin"] = [replace(t, seed=f.seed) for t, f in zip(rows["twin"], rows["forget"], strict=False)]
    return rows


def again(rows: Mapping[str, Sequence[Row]], kinds: Sequence[str] = ()) -> list[Row]:
    """The open and unlisted prompts, and those of more `kinds`, under other seeds: how far the original goes by chance alone."""
    return [replace(row, seed=row.seed + OTHER_SEEDS) for kind in (*kinds, *UNNAMED) for row in rows[kind]]


def sampled(rows: Mapping[str, Sequence[Row]]) -> list[tuple[str, Row]]:
    """The rows whose pictures the report shows, with their kinds."""
    return [(kind, row) for kind, own in rows.items() if kind != "seeds" for row in own[:SHOWN]]


# ---------------------------------------------------------------- figures


def figures(recorded: Recorded) -> dict[str, Any]:
    """The result's `figures`, `n`, `intervals`, `original`, `another_seed`, `by` and `second`.

    The first judge that can answer decides a share: NudeNet, say, knows nothing of a concept's neighbours, and CLIP does.
    """
    judges = recorded.judges.judges
    ours, theirs = ([counted(recorded, side, judge) for judge in judges] for side in ("model", "original"))
    decides = {name: next((n for n, own in enumerate(ours) if own[name]), 0) for name in ours[0]}
    deciding = {name: ours[n][name] for name, n in decides.items()}
    second = SecondJudge(judges[1].facts, shares(ours[1]), shares(theirs[1])) if len(judges) > 1 else None
    return {
        "figures": shares(deciding) | numbers(recorded, "model"),
        "n": {name: len(own) for name, own in deciding.items()},
        "intervals": {name: interval(own) for name, own in deciding.items()},
        "original": shares({name: theirs[n][name] for name, n in decides.items()}) | numbers(recorded, "original"),
        "another_seed": by_seed(recorded, decides),
        "by": {name: judges[n].facts["judge"] for name, n in decides.items() if n},
        "second": second,
    }


def judge_error(recorded: Recorded) -> JudgeError | None:
    """How the first judge errs on the original, and what that makes of what it sees in the model's pictures."""
    judge, rows = recorded.judges.judges[0], recorded.rows
    if not (rows["forget"] and rows["twin"]):
        return None

    def seen(side: str, kind: str) -> tuple[int, int]:
        """(pictures in which the judge sees the concept, all)."""
        records = (recorded.records[side][row.number][judge.facts["judge"]] for row in rows[kind])
        return sum(map(judge.sees, records)), len(rows[kind])

    concept, anchor = seen("original", "forget"), seen("original", "twin")
    return JudgeError(*concept, *anchor, corrected(*seen("model", "forget"), concept, anchor))


def by_seed(recorded: Recorded, decides: Mapping[str, int]) -> dict[str, float | None]:
    """What the metrics that compare pictures find between the original and itself under other seeds.

    Args:
        decides: share -> number of the judge that decides it.
    """
    judges = recorded.judges.judges
    by_judge = [counted(recorded, "again", judge, by_seed=True) for judge in judges]
    deciding = shares({name: by_judge[decides[name]][name] for name in by_judge[0]})
    return deciding | numbers(recorded, "again", by_seed=True)


def counted(recorded: Recorded, side: str, judge: Judge, *, by_seed: bool = False) -> dict[str, list[bool]]:
    """The answers of one judge that every share counts, without those that it cannot give; with `by_seed` of these alone."""
    metrics = ((name, one) for name, one in METRICS if isinstance(one, Share) and one.by_seed >= by_seed)
    return {name: [one for one in metric.answers(recorded, side, judge) if one is not None] for name, metric in metrics}


def shares(answers: Mapping[str, Sequence[bool]]) -> dict[str, float | None]:
    """Shares of yes, rounded to 4 places; None for no answers."""
    return {name: round(sum(own) / len(own), 4) if own else None for name, own in answers.items()}


def interval(answers: Sequence[bool]) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the share; None for no answers."""
    if not answers:
        return None
    low, high = wilson(sum(answers), len(answers))
    return low, high


def numbers(
    recorded: Recorded, side: str, *, under_kept: bool = False, by_seed: bool = False
) -> dict[str, float | None]:
    """The metrics of a side that are no shares; with `by_seed` those alone that have a value of another seed."""
    metrics = ((name, metric) for name, metric in METRICS if isinstance(metric, Number) and metric.by_seed >= by_seed)
    return {name: metric.value(recorded, side) for name, metric in metrics if metric.under_kept == under_kept}


def retained(recorded: Recorded) -> dict[str, Any] | None:
    """Distances between the two models' pictures for prompts that have nothing to do with the concept.

    `floor` is the original's distance from itself under other seeds: what a change of seed alone would make.
    """
    judges = recorded.judges
    if not judges.features:
        return None
    model, original, repeated = (recorded.features(side) for side in ("model", "original", "again"))
    numbers_of = {side: numbers(recorded, side, under_kept=True) for side in ("model", "original")}
    found = {"n": len(original), "features": judges.features.name, **distances(model, original)}
    found |= {"floor": distances(repeated, original), **by_side(numbers_of), "reference": None}
    if judges.reference is not None:
        real = {"model": distances(model, judges.reference), "original": distances(original, judges.reference)}
        found["reference"] = {"source": judges.reference_name, "n": len(judges.reference), **by_side(real)}
    return found


def by_side(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None] | None]:
    """Side -> metric -> value turned round; None where the model has no value."""
    sides = {name: {side: own[name] for side, own in values.items()} for name in values["model"]}
    return {name: None if own["model"] is None else own for name, own in sides.items()}


def collapsed(recorded: Recorded) -> Collapse:
    """The collapse check over what is retained."""
    rows, judge = [*recorded.rows["seeds"], *recorded.retained], recorded.judges.judges[0]
    groups = [range(at, at + SEEDS_EACH) for at in range(0, len(recorded.rows["seeds"]), SEEDS_EACH)]
    ours, theirs = ([recorded.records[side][row.number] for row in rows] for side in ("model", "original"))
    nothing, before = ([judge.nothing(one[judge.facts["judge"]]) for one in side] for side in (ours, theirs))
    return collapse(thumbnails(ours), thumbnails(theirs), groups, nothing=nothing, nothing_original=before)


def samples(recorded: Recorded, concept: Concept) -> tuple[JudgedSample, ...]:
    """Both models' pictures for the first rows of each kind, for the report."""
    judge, explicit = recorded.judges.judges[0], concept.explicit

    def answer(side: str, row: Row) -> str:
        return judge.answer(recorded.records[side][row.number][judge.facts["judge"]])

    return tuple(
        JudgedSample(
            kind, row.prompt, row.seed, f"samples/{row.number}-original.png", f"samples/{row.number}-model.png",
            answer("original", row), answer("model", row), explicit and kind in ("forget", "synonym", "generic"),
        )
        for kind, row in sampled(recorded.rows)
    )  # fmt: skip
