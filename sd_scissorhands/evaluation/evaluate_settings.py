"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from ..declaration import SEED, check_declared, setting
from ..errors import UsageError
from ..naming import model_of
from ..settings import concept_names, flag
from .judges import JUDGES, judges_named

WHAT, ROWS, SAMPLE, JUDGE, RUN = "What", "Rows of I2P", "Drawing and counting", "Judges", "Run"  # panels of --help
OWN_SETTINGS = {  # kind of evaluation -> the settings that it alone has
    "i2p": ("protocol", "categories", "min_nudity", "rows"),
    "concept": ("judge", "anchor", "features", "reference"),
}


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of one evaluation; exactly one of `concept`, `i2p` (or `i2p_file`), `prompts` and `images` is set."""

    # fmt: off
    model: str | None = setting(None, "Run, pipeline directory, single .safetensors file, hub id or tiny.", panel=WHAT, level="basic")
    unet: str | None = setting(None, "The UNet's weights, of another method say, from this .safetensors; the rest is --model's.", panel=WHAT)
    baseline: str | None = setting(None, "The model to compare with.", panel=WHAT, default_text="what a run's model was made from")
    model_config: str | None = setting(None, "Of single files: diffusers directory or hub id of their family, for configs and tokenizer.", panel=WHAT, default_text="by the file")
    concept: str | None = setting(None, "Judge what is left of it, and of everything else.", panel=WHAT, level="basic", examples=concept_names)
    i2p: bool = setting(False, "NudeNet on the I2P prompts, each row with its own seed.", panel=WHAT, level="basic")
    i2p_file: str | None = setting(None, "A local I2P CSV, official or ESD-style columns.", panel=WHAT, default_text="hub copy AIML-TUDA/i2p")
    prompts: str | None = setting(None, "NudeNet on your own prompts, one a line, or the column prompt of a CSV.", panel=WHAT, level="basic")
    images: str | None = setting(None, "NudeNet on a directory of pictures; nothing is generated.", panel=WHAT, level="basic")
    recursive: bool = setting(False, "Take the pictures of subfolders, too; with --images or --reference.", panel=WHAT, flag="--recursive")
    # rows of I2P
    protocol: str | None = setting(None, "published: guidance 7.5, 512 x 512; per-row: each row's own.", panel=ROWS, choices=("published", "per-row"), default_text="published")
    categories: tuple[str, ...] | None = setting(None, "Only these, e.g. sexual,violence.", panel=ROWS, listed=True, default_text="all")
    min_nudity: float | None = setting(None, "Only rows with a nudity_percentage of at least this.", panel=ROWS)
    rows: str | None = setting(None, "Only the rows numbered in this file, from 0.", panel=ROWS)
    # sampling and counting
    limit: int | None = setting(None, "First rows only; with --concept pictures for UA and IRA, each.", panel=SAMPLE, level="basic", default_text="all; 500")
    steps: int | None = setting(None, "Sampling steps.", panel=SAMPLE, least=1, default_text="50; tiny 20")
    guidance: float | None = setting(None, "Guidance scale, where no protocol has its own.", panel=SAMPLE, default_text="7.5; tiny 3")
    batch_size: int | None = setting(None, "Pictures drawn, judged and written at a time.", panel=SAMPLE, least=1, default_text="what a GPU's memory holds; else 32 small, 4 large")
    seed: int = setting(0, "For --prompts and --concept; I2P brings its own.", panel=SAMPLE, default_text="0", **SEED)
    threshold: float | None = setting(None, "NudeNet's score, or CLIP's probability, that counts.", panel=JUDGE, least=0, most=1, default_text="0.6; clip 0.5")
    # judges
    judge: str | None = setting(None, "Who decides{choices}; or your own image classifier: DIRECTORY, HUB_ID or FILE.onnx, with :LABEL,... that mean the concept. A+B: two, the first decides.", panel=JUDGE, examples=JUDGES.names, default_text="what fits")
    anchor: str | None = setting(None, "What takes the place of a concept in free text.", panel=JUDGE)
    clip: str | None = setting(None, "CLIP model, local or hub; none for none.", panel=JUDGE, default_text="openai/clip-vit-large-patch14 with --concept")
    features: str | None = setting(None, "TorchScript file (Inception, say) whose features the distances use. It is a program and runs: name none that you do not trust.", panel=JUDGE, default_text="CLIP's")
    reference: str | None = setting(None, "Directory of real pictures to measure distances from, too.", panel=JUDGE)
    keep_images: bool = setting(False, "Keep every picture, under images/.", panel=RUN)
    device: str = setting("auto", "cuda, mps, cpu or auto.", panel=RUN, level="basic", default_text="auto")
    # fmt: on

    def __post_init__(self) -> None:
        """Refuse what no evaluation could use.

        Raises:
            UsageError: naming the flag, the value and what is allowed.
        """
        kind = self.kind
        for name in ("model", "baseline"):
            if given := getattr(self, name):
                object.__setattr__(self, name, model_of(given))
        if kind != "images" and self.model is None:
            raise UsageError("--model is missing: name a pipeline directory, a hub id or tiny")
        if self.unet and self.model is None:
            raise UsageError("--unet has no effect without --model")
        check_declared(self, flag, UsageError)
        if self.judge:
            judges_named(self.judge)
        least = 2 if kind == "concept" else 1
        if self.limit is not None and self.limit < least:
            raise UsageError(f"--limit {self.limit} is too small: it must be at least {least}")
        for other, own in OWN_SETTINGS.items():
            if given := [name for name in own if other != kind and getattr(self, name) is not None]:
                raise UsageError(f"{flag(given[0])} has no effect without {flag(other)}")
        if self.recursive and not (self.images or self.reference):
            raise UsageError("--recursive has no effect without --images or --reference")
        if self.guidance is not None and kind in ("i2p", "images"):
            raise UsageError("--guidance has no effect without --prompts or --concept; see --protocol")

    @property
    def kind(self) -> str:
        """What is judged: i2p, prompts, images or concept.

        Raises:
            UsageError: nothing, or several.
        """
        named = {
            "i2p": self.i2p or self.i2p_file, "prompts": self.prompts, "images": self.images, "concept": self.concept,
        }  # fmt: skip
        kinds = [name for name, value in named.items() if value]
        if len(kinds) != 1:
            raise UsageError("choose exactly one of --i2p, --prompts FILE, --images DIR and --concept NAME")
        return kinds[0]

    @property
    def source(self) -> str:
        """The model, or the directory of pictures."""
        return str(self.model or self.images)
