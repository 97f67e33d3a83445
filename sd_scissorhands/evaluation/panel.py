"""Putting together who judges: the judge that fits or was asked for, a second one where there is one, and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..concepts import Concept, general_captions
from ..domains import DOMAINS
from ..domains.base import Domain
from ..settings import UserError
from .clip import Clip, ConceptJudge, open_clip
from .features import open_features, reference_features
from .judges import Judge, NudeJudge, WorldJudge
from .sample import Features

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
WITHOUT = "none"  # --clip none: no CLIP at all


@dataclass(frozen=True)
class JudgeSet:
    """Who judges an evaluation."""

    judges: Sequence[Judge]  # the first decides; a second is shown beside it
    domain: Domain  # whose prompts they are asked about
    features: Features | None = None  # for distances
    features_name: str = ""
    clip: Clip | None = None  # whose embeddings the features are; for the CLIP score
    reference: Tensor | None = None  # features of real pictures, (N, d)
    reference_name: str = ""


def open_judges(
    concept: Concept,
    *,
    domain: Domain,
    judge: str | None = None,
    threshold: float | None = None,
    clip: str | None = None,
    features: Path | None = None,
    reference: Path | None = None,
    device: str = "auto",
) -> JudgeSet:
    """The judges and the features of an evaluation; everything is opened, and so checked, before a picture is drawn.

    Args:
        judge: nudenet, clip or canvas; None chooses what fits.
        threshold: NudeNet's score (.6) or CLIP's probability (.5) from which on the concept counts as seen.
        clip: where CLIP comes from, local or hub; "none" leaves it out.
        features: a TorchScript file for the distances, in place of CLIP or of the embedded world's judge.
        reference: a directory of real pictures, for distances from them.

    Raises:
        UserError: a judge that cannot judge this, or files that cannot be opened.
    """
    name = judge or domain.default_judge(concept)
    if name == "canvas":
        if domain.name != "canvas":
            raise UserError("--judge canvas judges the embedded model's world alone: use nudenet or clip")
        return _world(concept, features, reference)
    opened = (
        None
        if clip == WITHOUT or (clip is None and not domain.default_clip)
        else open_clip(clip or DEFAULT_CLIP, device)
    )
    if name == "clip":
        if opened is None:
            raise UserError("--judge clip needs a CLIP model: name a directory or a hub id with --clip")
        judges: list[Judge] = [_clip_judge(opened, concept, threshold)]
    else:
        if not concept.labels:
            raise UserError(f"--judge nudenet has no label for {concept.name!r}: use --judge clip")
        judges = [NudeJudge(labels=concept.labels, threshold=threshold or 0.6)]
        judges += [_clip_judge(opened, concept, None)] if opened else []
    return _with_features(judges, opened, features, reference)


def _world(concept: Concept, features: Path | None, reference: Path | None) -> JudgeSet:
    first = WorldJudge(concept.name)
    judges: list[Judge] = [first, WorldJudge(concept.name, second=True)]
    extract, said = (open_features(features), features.name) if features else (first.features, "the judge's own, 128")
    real = reference_features(reference, extract, size=32) if reference else None
    return JudgeSet(judges, DOMAINS["canvas"], extract, said, None, real, str(reference or ""))


def _clip_judge(clip: Clip, concept: Concept, threshold: float | None) -> ConceptJudge:
    return ConceptJudge(
        clip, concept=concept.name, texts=concept.words, others=(concept.anchor, *concept.neighbours[:16]),
        candidates=(*concept.neighbours, *general_captions()), threshold=threshold or 0.5,
    )  # fmt: skip


def _with_features(
    judges: Sequence[Judge], clip: Clip | None, features: Path | None, reference: Path | None
) -> JudgeSet:
    if features:
        extract, name, used = open_features(features), features.name, None
    elif clip:
        extract, name, used = clip.pictures, f"CLIP {clip.name}", clip
    else:
        if reference:
            raise UserError(
                "--reference needs features: name a CLIP model with --clip or a TorchScript file with --features"
            )
        return JudgeSet(judges, DOMAINS["photographs"])
    return JudgeSet(
        judges,
        DOMAINS["photographs"],
        extract,
        name,
        used,
        reference_features(reference, extract) if reference else None,
        str(reference or ""),
    )
