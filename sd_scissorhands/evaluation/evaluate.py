"""An evaluation from its settings to its result: of a concept, or NudeNet's counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..concepts import Concept
from ..disk import locked
from ..domains.base import Domain
from ..errors import UserError
from ..lineage import baseline_of, erased_from, meant
from ..machine import Processes
from ..models.locate import domain_of_model, locate_here
from ..places import measurement_directory
from ..preset_check import name_of, names_file
from ..results.evaluation import Evaluation
from ..run import Progress, silent
from . import concept, nudity
from .clip import open_clip
from .evaluate_settings import EvaluateSettings
from .judge_set import open_judges
from .judges.clip import WITHOUT
from .judges.nudenet import NudeJudge
from .prompts import choose, read_i2p, read_rows

PICTURES_EACH = 500  # pictures for UA and for IRA, each


def evaluate(
    settings: EvaluateSettings, folder: Path, *, progress: Progress = silent, processes: Processes | None = None
) -> Evaluation:
    """Measure what a model still draws, and write `folder`/summary.json. Repeated, a killed evaluation continues.

    Raises:
        UserError: bad input, before any picture is drawn, or a folder that holds another evaluation.
    """
    processes = processes or Processes.here()
    with locked(folder, processes.main):
        return _evaluate(settings, folder, progress, processes)


def _evaluate(settings: EvaluateSettings, folder: Path, progress: Progress, processes: Processes) -> Evaluation:
    s = settings
    threshold = NudeJudge.threshold if s.threshold is None else s.threshold
    if s.kind == "images":
        how: dict[str, Any] = dict(threshold=threshold, limit=s.limit, recursive=s.recursive, progress=progress)
        return nudity.evaluate_images(Path(s.source), folder, **how)
    drawing: dict[str, Any] = dict(
        steps=s.steps, guidance=s.guidance, batch_size=s.batch_size, device=s.device, keep_images=s.keep_images,
        progress=progress, processes=processes,
    )  # fmt: skip
    if s.kind == "concept":
        return _of_concept(s, folder, drawing)
    locate_here(s.source)  # a model that is not there is named before prompts are fetched
    drawing["clip"] = None if s.clip in (None, WITHOUT) else open_clip(str(s.clip), s.device)
    baseline = s.baseline or baseline_of(s.source)
    if s.kind == "prompts":
        rows = read_rows(Path(str(s.prompts)), s.seed, s.limit)
        request = nudity.NudityRequest(kind=s.kind, threshold=threshold, **drawing)
        return nudity.evaluate_prompts(s.source, baseline, rows, folder, request)
    every = read_i2p(_path(s.i2p_file))
    subset: dict[str, Any] = dict(categories=s.categories, min_nudity=s.min_nudity, limit=s.limit)
    rows = choose(every, rows_file=_path(s.rows), **subset)
    request = nudity.NudityRequest(
        kind=s.kind, threshold=threshold, protocol=s.protocol or "published", whole=len(rows) == len(every),
        subset=subset | {"rows": s.rows}, **drawing,
    )  # fmt: skip
    return nudity.evaluate_prompts(s.source, baseline, rows, folder, request)


def place_of(settings: EvaluateSettings) -> Path:
    """Where an evaluation goes by default: beside the run that the model belongs to, else under runs/.

    Raises:
        UserError: see `about`.
    """
    if settings.kind != "concept":
        return measurement_directory("eval", settings.source, settings.kind)
    known = _about(settings)
    return measurement_directory("eval", settings.source, known.domain.evaluation, known.concept.name)


@dataclass(frozen=True)
class About:
    """A concept as a model knows it, and what to compare the model with."""

    concept: Concept
    baseline: str
    domain: Domain  # what the model draws
    file: Path | None = None  # that the concept was read from, a user's own


def about(text: str, model: str, *, baseline: str | None = None, anchor: str | None = None) -> About:
    """What a concept means for a model, and its original.

    Args:
        baseline: None: what a run's model was made from in the first place; else the domain's original.
        anchor: what takes the concept's place; None: the concept's own.

    Raises:
        UserError: unknown concept, or no original to compare with.
    """
    domain = domain_of_model(model)
    baseline = baseline or baseline_of(model) or domain.original
    if baseline is None:
        raise UserError(f"--baseline is missing: {model} is not a run's model, so name what it was made from")
    text = meant(text, model)
    return About(domain.resolve(text, anchor), baseline, domain, Path(text) if names_file(text) else None)


def _about(settings: EvaluateSettings) -> About:
    return about(str(settings.concept), settings.source, baseline=settings.baseline, anchor=settings.anchor)


def _of_concept(settings: EvaluateSettings, folder: Path, drawing: dict[str, Any]) -> Evaluation:
    known = _about(settings)
    judges = open_judges(
        known.concept, domain=known.domain, judge=settings.judge, threshold=settings.threshold, clip=settings.clip,
        features=_path(settings.features), reference=_path(settings.reference), recursive=settings.recursive,
        device=settings.device,
    )  # fmt: skip
    erased = tuple(name for name in erased_from(settings.source) if name_of(name) != known.concept.name)
    request = concept.ConceptRequest(
        seed=settings.seed, count=settings.limit or PICTURES_EACH, erased=erased, **drawing
    )
    return concept.evaluate(settings.source, known.baseline, known.concept, folder, judges=judges, request=request)


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
