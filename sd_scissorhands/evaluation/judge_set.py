"""Who judges an evaluation: the judge that fits or was named, a second one where there is one, and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..concepts import Concept
from ..domains.base import Domain
from ..errors import AbsentError, UsageError, UserError
from ..files import hash_file
from ..picture_folders import list_pictures
from .features import open_features, reference_features
from .judges import JUDGES, judges_named
from .judges.base import Features, Judge, JudgeRequest
from .judges.clip import WITHOUT


@dataclass(frozen=True)
class JudgeSet:
    """The judges of an evaluation, and what distances are taken from."""

    judges: Sequence[Judge]  # the first decides; a second is shown beside it
    domain: Domain  # whose prompts they judge
    features: Features | None = None
    reference: Tensor | None = None  # features of real pictures, (N, d)
    reference_name: str = ""
    remarks: tuple[str, ...] = ()  # what was skipped of them


def open_judges(
    concept: Concept, *, domain: Domain, judge: str | None = None, threshold: float | None = None,
    clip: str | None = None, features: Path | None = None, reference: Path | None = None, recursive: bool = False,
    device: str = "auto",
) -> JudgeSet:  # fmt: skip
    """The judges and the features of an evaluation; everything is opened, and so checked, before a picture is drawn.

    Args:
        judge: one of `JUDGES`, or an image classifier, see `judges.classifier`; NAME+NAME for two of them, of which the first
            decides; None chooses what fits.
        threshold: from which on the concept counts as seen; None: the judge's own.
        clip: where CLIP comes from, local or hub; "none" leaves it out.
        features: a TorchScript file for the distances, in place of the judges' own.
        reference: a directory of real pictures, for distances from them.
        recursive: whether those in its subfolders count.

    Raises:
        UserError: a judge that cannot judge this, or files that cannot be opened.
    """
    judges, remarks = _open_named(judge, threshold, JudgeRequest(concept, domain, 0.0, clip=clip, device=device))
    own = next((one.features for one in judges if one.features), None)
    chosen = own
    if features:
        chosen = Features(open_features(features), features.name, hash_file(features), own.size if own else None)
    if reference is None:
        return JudgeSet(judges, domain, chosen, remarks=tuple(remarks))
    if chosen is None:
        raise UserError(
            "--reference needs features: name a CLIP model with --clip or a TorchScript file with --features"
        )
    real = reference_features(reference, chosen.extract, size=chosen.size, recursive=recursive)
    remarks += list_pictures(reference, recursive).remarks("--reference")
    return JudgeSet(judges, domain, chosen, real, str(reference), tuple(remarks))


def _open_named(text: str | None, threshold: float | None, request: JudgeRequest) -> tuple[list[Judge], list[str]]:
    """The judges of --judge, or the one that fits, with its second beside it; and what is missing, in a sentence."""
    text = text or request.concept.judge
    first, *others = judges_named(text) if text else (request.domain.default_judge(request.concept),)
    _check_clip(request.clip, [first, *others])
    judges = [_open(first, request, threshold)]
    if others:
        judges.append(_open(others[0], request, None))
        if judges[0].facts["judge"] == judges[1].facts["judge"]:
            raise UserError(
                f"--judge {text} names two of one kind, whose answers would share a name: name judges of two kinds"
            )
        return judges, []
    if not judges[0].second:
        return judges, []
    second = JUDGES[judges[0].second]
    request = replace(request, threshold=second.threshold)
    if second.missing(request):
        return judges, []
    try:
        return [*judges, second.open(request)], []
    except UserError as error:
        if request.clip:  # which was asked for
            raise
        remedy = f"; {second.download}" if isinstance(error, AbsentError) else ""
        return judges, [
            f"{judges[0].second} does not judge beside it, and what it alone measures is left empty: {error}{remedy}"
        ]


def _check_clip(clip: str | None, named: Sequence[str]) -> None:
    """Refuse a CLIP model that none of the judges, nor the second of a single one, would look at pictures with."""
    second = JUDGES[named[0]].second if len(named) == 1 and named[0] in JUDGES else None
    if clip not in (None, WITHOUT) and "clip" not in (*named, second):
        judges = "+".join(named)
        raise UsageError(
            f"--clip {clip} has no effect with --judge {judges}: leave it out, or name CLIP as a judge, e.g. --judge {named[0]}+clip"
        )


def _open(name: str, request: JudgeRequest, threshold: float | None) -> Judge:
    declared = JUDGES[name] if name in JUDGES else JUDGES["classifier"]
    if declared.domain not in (None, request.domain.name):
        raise UserError(
            f"--judge {name} judges the domain {declared.domain} alone, and this model is not made from it: use --i2p or --judge clip"
        )
    request = replace(request, threshold=threshold or declared.threshold, source=None if name in JUDGES else name)
    if why := declared.missing(request):
        raise UserError(f"--judge {name} {why}")
    return declared.open(request)
