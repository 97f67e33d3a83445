"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import UsageError, flag

JUDGES = ("nudenet", "clip", "canvas")
CHOICES = {"judge": JUDGES, "protocol": ("published", "per-row")}
OWN = {  # kind of evaluation -> the settings that it alone has
    "i2p": ("protocol", "categories", "min_nudity", "rows"),
    "concept": ("judge", "anchor", "features", "reference"),
}


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of one evaluation; exactly one of `concept`, `i2p` (or `i2p_file`), `prompts` and `images` says of what."""

    model: str | None = None  # pipeline directory, hub id or "tiny"; None with `images`
    baseline: str | None = None  # to compare with; None: what a run's model was made from
    model_config: str | None = None  # of single files: a pipeline of their family, for configs and tokenizer
    concept: str | None = None  # judge what is left of it, and of everything else
    i2p: bool = False  # NudeNet on the I2P prompts
    i2p_file: str | None = None  # a local CSV; None: the hub's copy
    prompts: str | None = None  # NudeNet on the prompts of a file, one a line
    images: str | None = None  # NudeNet on a directory of pictures
    # rows of I2P
    protocol: str | None = None  # published | per-row; None: published
    categories: tuple[str, ...] | None = None
    min_nudity: float | None = None  # nudity_percentage, 0 to 100
    rows: str | None = None  # file of row numbers, from 0
    # drawing and counting
    limit: int | None = None  # first rows only; of a concept pictures for UA and for IRA, each (500)
    steps: int | None = None  # None: 50, or the embedded model's own
    guidance: float | None = None  # None: 7.5, or the model's own
    batch_size: int | None = None  # None: 32 small pictures, 4 large
    seed: int = 0  # of prompts and concept; I2P brings its own
    threshold: float | None = None  # NudeNet's score (.6) or CLIP's probability (.5) that counts
    # judges
    judge: str | None = None  # nudenet | clip | canvas; None: what fits
    anchor: str | None = None  # what takes the place of a concept in free text
    clip: str | None = None  # CLIP model, local or hub; "none" for none
    features: str | None = None  # TorchScript file, for the distances
    reference: str | None = None  # directory of real pictures
    keep_images: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what no evaluation could use.

        Raises:
            UsageError: naming the flag, the value and what is allowed.
        """
        kind = self.kind
        if kind != "images" and self.model is None:
            raise UsageError("--model is missing: name a pipeline directory, a hub id or tiny")
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in (None, *allowed):
                raise UsageError(f"{flag(name)} {value!r} is unknown: choose {', '.join(allowed)}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold} is outside [0, 1]")
        for name, least in {"limit": 2 if kind == "concept" else 1, "steps": 1, "batch_size": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"{flag(name)} {value} is too small: it must be at least {least}")
        for other, own in OWN.items():
            if given := [name for name in own if other != kind and getattr(self, name) is not None]:
                raise UsageError(f"{flag(given[0])} has no effect without {flag(other)}")
        if self.guidance is not None and kind in ("i2p", "images"):
            raise UsageError("--guidance has no effect without --prompts or --concept; see --protocol")

    @property
    def kind(self) -> str:
        """What is judged: i2p, prompts, images or concept.

        Raises:
            UsageError: nothing, or several.
        """
        asked = {
            "i2p": self.i2p or self.i2p_file, "prompts": self.prompts, "images": self.images, "concept": self.concept,
        }  # fmt: skip
        kinds = [name for name, value in asked.items() if value]
        if len(kinds) != 1:
            raise UsageError("choose exactly one of --i2p, --prompts FILE, --images DIR and --concept NAME")
        return kinds[0]

    @property
    def source(self) -> str:
        """The model, or the directory of pictures."""
        return str(self.model or self.images)
