"""What an evaluation found, as `summary.json` holds it: of one concept, or NudeNet's counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import Measurement, Record

# NudeNet's -> what each is called; a concept's are named by its domain
NUDITY_KINDS = {"i2p": "I2P prompts", "prompts": "own prompts", "images": "own pictures"}
OF_IMAGES = ("source", "unreadable")
NOT_OF_IMAGES = ("rows", "nothing_to_erase", "calibration", "protocol", "subset", "sampling", "collapse", "clip_score")


@dataclass(frozen=True)
class SamplingFacts(Record):
    """How the pictures were drawn."""

    steps: int | None = None
    guidance: float | str | None = None  # a text where each row has its own
    size: int | str | None = None  # pixels a side
    scheduler: str | None = None


@dataclass(frozen=True)
class Collapse(Record):
    """Whether a model still draws pictures, see `evaluation.collapse`."""

    collapsed: bool = False
    says: str = ""  # why, in a sentence
    nothing: float | None = None  # share of pictures in which the judge can name nothing
    nothing_original: float | None = None
    variance: float | None = None  # of pixels over seeds
    variance_original: float | None = None
    agreement: float | None = None  # share of pictures nearer to the original's for the same prompt than to another


@dataclass(frozen=True)
class SecondJudge(Record):
    """The second judge's figures over the very same pictures."""

    judge: dict[str, Any]  # its facts
    figures: dict[str, float | None] = field(default_factory=dict)
    original: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeError(Record):
    """How the deciding judge errs, by the original's pictures: for the concept's prompts, and for the same with the anchor.

    A picture in which the original failed to draw the concept counts as the judge's error, too.
    """

    seen: int  # of `pictures` for the concept
    pictures: int
    wrong: int  # of `anchors`, pictures for the anchor, those in which it sees the concept
    anchors: int
    shown: list[float] | None = None  # share of the model's pictures with the concept, corrected, and its 95 % interval


@dataclass(frozen=True)
class JudgedSample(Record):
    """A prompt's two pictures, for the page; files are named from the summary's folder."""

    kind: str  # of prompt: forget, synonym, ...
    prompt: str
    seed: int
    original: str
    model: str
    original_says: str  # the judge's answer in a word or two
    model_says: str
    flagged: bool  # may be explicit


@dataclass(frozen=True)
class Sample(Record):
    """The same where NudeNet alone judges."""

    prompt: str
    seed: int
    model: str
    original: str | None = None
    flagged: bool = True


@dataclass(frozen=True)
class ConceptEvaluation(Measurement):
    """What a model draws of one concept and of everything else, beside its original."""

    kind: str  # the domain's `evaluation`
    concept: str = ""
    judge: dict[str, Any] = field(default_factory=dict)  # the deciding judge's facts
    seed: int = 0
    model: str = ""
    weights_sha256: str | None = None
    baseline: str = ""
    baseline_sha256: str | None = None
    figures: dict[str, float | None] = field(default_factory=dict)  # by metric
    n: dict[str, int] = field(default_factory=dict)  # answers behind each share
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)  # 95 %
    original: dict[str, float | None] = field(default_factory=dict)  # the original's figures
    another_seed: dict[str, float | None] = field(
        default_factory=dict
    )  # what the original has against itself under other seeds
    by: dict[str, str] = field(default_factory=dict)  # figures that the second judge decided -> its name
    verdict: str = ""  # whether the concept is gone, see `evaluation.gone`
    nothing_to_erase: bool = False  # the original does not show the concept, so that nothing can be gone
    second: SecondJudge | None = None
    judge_error: JudgeError | None = None  # None: nothing was drawn that tells
    kept: dict[str, Any] | None = (
        None  # what is retained: n, features, distances by metric, floor, clip_score, reference
    )
    collapse: Collapse = Collapse()
    sampling: SamplingFacts = SamplingFacts()
    seconds: float | None = None
    # of the time of drawing and judging, in which the judges looked at pictures; None: nothing was drawn
    judging_share: float | None = field(default=None, compare=False)
    samples: tuple[JudgedSample, ...] = ()


@dataclass(frozen=True)
class Exposed(Record):
    """Boxes of some labels and pictures with any, with 95 % intervals."""

    boxes: int
    boxes_interval: tuple[int, int]
    images: int
    images_interval: tuple[int, int]


@dataclass(frozen=True)
class SweepRow(Record):
    """The exposed boxes, and the pictures with any, from one score on."""

    threshold: float
    boxes: int
    images: int
    core_boxes: int | None = None
    core_images: int | None = None


@dataclass(frozen=True)
class NudityCounts(Record):
    """What NudeNet saw in one model's pictures."""

    model: str | None = None
    weights_sha256: str | None = None
    images: int = 0
    boxes: dict[str, int] = field(default_factory=dict)  # by label
    images_with: dict[str, int] = field(default_factory=dict)  # by label
    any_exposed: int = 0  # pictures with any exposed class
    exposed: dict[str, Exposed] = field(default_factory=dict)  # "all" and "core"
    sweep: tuple[SweepRow, ...] = ()


@dataclass(frozen=True)
class PublishedCounts(Record):
    """The baseline's exposed boxes beside the literature's."""

    boxes: int
    rows: int
    published_boxes: int
    published_rows: int
    comparable: bool
    says: str


@dataclass(frozen=True)
class NudityEvaluation(Measurement):
    """What NudeNet saw in a model's pictures, beside its baseline's, or in the pictures of a directory."""

    kind: str  # of `NUDITY_KINDS`
    model: str | None = None
    weights_sha256: str | None = None
    source: str | None = None  # of images: their directory
    unreadable: tuple[str, ...] = ()  # of images: files that could not be judged, and why, in a sentence each
    images: int = 0
    boxes: dict[str, int] = field(default_factory=dict)
    images_with: dict[str, int] = field(default_factory=dict)
    any_exposed: int = 0
    exposed: dict[str, Exposed] = field(default_factory=dict)
    sweep: tuple[SweepRow, ...] = ()
    threshold: float | None = None
    baseline: NudityCounts | None = None
    rows: dict[str, int] | None = None  # both, only_original, only_model, neither
    nothing_to_erase: bool = False  # the baseline shows nothing exposed, so that nothing can be gone
    calibration: PublishedCounts | None = None
    protocol: str | None = None
    subset: dict[str, Any] = field(default_factory=dict)  # what was asked of the rows
    nudenet: str | None = None  # its version
    detector_sha256: str | None = None
    sampling: SamplingFacts = SamplingFacts()
    collapse: Collapse = Collapse()
    clip_score: dict[str, Any] | None = None
    seconds: float | None = None
    # of the time of drawing and judging, in which the judges looked at pictures; None: nothing was drawn
    judging_share: float | None = field(default=None, compare=False)
    samples: tuple[Sample, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As of every result, without the keys that this kind of evaluation has not."""
        absent = NOT_OF_IMAGES if self.kind == "images" else OF_IMAGES
        return {name: value for name, value in super().to_json().items() if name not in absent}


Evaluation = ConceptEvaluation | NudityEvaluation


def read_evaluation(values: Mapping[str, Any], *, strict: bool = True) -> Evaluation:
    """The evaluation that a summary holds: NudeNet's by its kind, else a concept's, whose kind is its domain's.

    Args:
        strict: see `Record.from_json`.

    Raises:
        ValueError: no evaluation, or a key that holds something else than its type.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind == "attack":
        raise ValueError(f"kind is {kind!r}: no evaluation")
    return (NudityEvaluation if kind in NUDITY_KINDS else ConceptEvaluation).from_json(values, strict=strict)
