"""Who judges an evaluation: the judge that fits or was named, a second one where there is one, and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..concepts import Concept
from ..domains.base import Domain
from ..models.tensor_files import hash_file
from ..picture_folders import list_pictures
from ..settings import UserError
from .features import open_features, reference_features
from .judges import JUDGES
from .judges.base import Features, Judge, JudgeRequest


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
        judge: one of `JUDGES`; None chooses what fits.
        threshold: from which on the concept counts as seen; None: the judge's own.
        clip: where CLIP comes from, local or hub; "none" leaves it out.
        features: a TorchScript file for the distances, in place of the judges' own.
        reference: a directory of real pictures, for distances from them.
        recursive: whether those in its subfolders count.

    Raises:
        UserError: a judge that cannot judge this, or files that cannot be opened.
    """
    name = judge or domain.default_judge(concept)
    declared = JUDGES[name]
    if declared.domain not in (None, domain.name):
        raise UserError(
            f"--judge {name} judges the domain {declared.domain} alone, and this model is not made from it: use --i2p or --judge clip"
        )
    request = JudgeRequest(concept, domain, threshold or declared.threshold, clip, device)
    if why := declared.missing(request):
        raise UserError(f"--judge {name} {why}")
    judges = [declared.open(request)]
    if declared.second:
        second = JUDGES[declared.second]
        request = replace(request, threshold=second.threshold)
        judges += [] if second.missing(request) else [second.open(request)]
    own = next((one.features for one in judges if one.features), None)
    chosen = own
    if features:
        chosen = Features(open_features(features), features.name, hash_file(features), own.size if own else None)
    if reference is None:
        return JudgeSet(judges, domain, chosen)
    if chosen is None:
        raise UserError(
            "--reference needs features: name a CLIP model with --clip or a TorchScript file with --features"
        )
    real = reference_features(reference, chosen.extract, size=chosen.size, recursive=recursive)
    remarks = list_pictures(reference, recursive).remarks("--reference")
    return JudgeSet(judges, domain, chosen, real, str(reference), tuple(remarks))
