"""What an erasure or a forgetting is asked to do: frozen dataclasses, read from TOML and flags, written to JSON."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from .errors import UsageError as UsageError
from .errors import UserError as UserError
from .naming import Name, is_path
from .recipes import COMMON, DEFAULT_RECIPE, MEMORY, PROFILES, RECIPES, recipes_for

DEFAULT_MODEL = "CompVis/stable-diffusion-v1-4"
DIGITS = "digits"  # the embedded classifier and its data
OUTPUT_FORMATS = ("diffusers", "unet-only", "single-file", "delta")


OPEN: Any = None  # until `resolved`: the recipe, then the model's profile, then `COMMON` says it


@dataclass(frozen=True)
class MethodSettings:
    """How to unlearn, whatever the model is; docs/experiments.md gives the measurements behind the defaults."""

    recipe: str = DEFAULT_RECIPE
    # scores and selection
    scorer: str = OPEN  # a file of methods/scorers
    score_draws: int = OPEN  # batches per score
    granularity: str = OPEN  # weight | channel: what is selected as one
    path_share: float = OPEN  # of relevance: share of a layer that counts per input
    top_k: float = OPEN  # share of the scope
    scope: str = OPEN  # weights that may change: a name that the model's kind knows or a regular expression
    threshold_scope: str = OPEN  # scope | layer | global: where the top k is taken
    # edit
    edit: str = OPEN  # a file of methods/edits, or none
    init: str = OPEN  # of reinitialise: layer | kaiming | trunc_normal
    damping: float = OPEN  # of newton
    newton_step: float | None = None  # of newton; None: as many as there are to forget over those to keep
    rounds: int = OPEN  # of newton, at most
    tolerance: float = OPEN  # of newton: what a step may cost the rest
    # repair
    repair: str = OPEN  # what takes the place of what is forgotten: see `REPAIRS`
    steps: int = OPEN
    lr: float = OPEN
    optimiser: str = OPEN  # adam | adam-8bit (bitsandbytes) | sgd
    train: str = OPEN  # scope | selection: the weights that the repair may change
    forget_weight: float = OPEN
    projection: str = OPEN  # scale-free | paper | none
    memories: int = OPEN
    memory_every: int = OPEN  # steps between fresh memory gradients and checkpoints; the authors' epoch
    relearn_every: int = OPEN  # steps between looks ahead at what fine-tuning would bring back; 0 for none
    episode: int = OPEN  # steps of fine-tuning that the looks ahead go before they start again
    batch_size: int = OPEN  # forget and retain samples, each, per step
    # how
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what no run could use.

        Raises:
            UserError: naming the flag or the file's key, the value and what is allowed.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        for name, allowed in CHOICES.items():
            if given.get(name, allowed[0]) not in allowed:
                raise UserError(f"{spelled(name)} {given[name]!r} is unknown: choose {', '.join(allowed)}")
        for name in (
            "score_draws", "rounds", "memories", "memory_every", "episode", "batch_size", "forget_count", "retain_count",
            "sampling_steps",
        ):  # fmt: skip
            if given.get(name, 1) < 1:
                raise UserError(f"{spelled(name)} {given[name]} is too small: it must be at least 1")
        if not 0 < given.get("top_k", 0.5) < 1:
            raise UserError(
                f"--top-k {self.top_k} is outside (0, 1): it is the share of the scope to select, e.g. 0.001"
            )
        if given.get("micro_batch", 0) < 0:
            raise UserError(f"micro_batch {given['micro_batch']} is negative: 0 takes the whole batch at once")
        if given.get("steps", 0) < 0:
            raise UserError(f"--steps {self.steps} is negative: 0 stops after the edit")
        if given.get("relearn_every", 0) < 0:
            raise UserError(f"--relearn-every {self.relearn_every} is negative: 0 leaves it out")
        if given.get("retain_sampling_steps", 0) < 0:
            raise UserError(
                f"retain_sampling_steps {given['retain_sampling_steps']} is negative: 0 takes as many as sampling_steps"
            )
        if not 0 < given.get("lr", 0.5) < 1:
            raise UserError(f"--lr {self.lr} is outside (0, 1)")
        if given.get("forget_weight", 0) < 0:
            raise UserError(f"--forget-weight {self.forget_weight} is negative")
        for name in ("anchor_share", "other_words"):
            if not 0 <= given.get(name, 0) <= 1:
                raise UserError(f"{name} {given[name]} is outside [0, 1]")
        if not 0 < given.get("path_share", 0.5) <= 1:
            raise UserError(f"path_share {self.path_share} is outside (0, 1]: it is a share of every layer")
        for name in ("damping", "newton_step", "tolerance"):
            if given.get(name, 0) < 0:
                raise UserError(f"{name} {given[name]} is negative")

    def resolved(self, profile: str) -> Self:
        """The same settings with everything that was left open filled in, for a model's profile, see `recipes.PROFILES`.

        Raises:
            UserError: the recipe does not fit the profile.
        """
        recipe = RECIPES[self.recipe]
        if profile not in recipe.fits:
            raise UserError(
                f"--recipe {self.recipe} is not for this kind of model: choose {', '.join(recipes_for(profile))}"
            )
        values = {**COMMON, **PROFILES[profile], **recipe.values, **recipe.profiles.get(profile, {})}
        if (self.repair or values["repair"]) == "none":
            values["steps"] = 0
        return dataclasses.replace(self, **{n: values[n] for n in left_open(self) if getattr(self, n) is None})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what is asked first, then how."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        how = {field.name for field in dataclasses.fields(MethodSettings)}
        return {name: values[name] for name in sorted(values, key=lambda name: name in how)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


@dataclass(frozen=True)
class EraseSettings(MethodSettings):
    """Settings of one erasure from a diffusion model."""

    concepts: tuple[str, ...] = ()
    model: str = DEFAULT_MODEL  # hub id, diffusers directory, single file, or "tiny"; see `naming`
    revision: str | None = None  # this and the next are put into `model`, which then says all
    variant: str | None = None
    model_config: str | None = None  # of a single file: a pipeline, for its configs and tokenizer
    anchor: str | None = None  # None: the preset's own
    # data
    forget_count: int = OPEN  # pictures of each concept
    retain_count: int = OPEN  # pictures of everything else
    retain_prompts: str | None = None  # file, one prompt a line; None: the package's general captions
    forget_images: str | None = None  # directory; None: the model draws them itself (latents only, never decoded)
    retain_images: str | None = None
    sampling_steps: int = OPEN
    retain_sampling_steps: int = OPEN  # of the pictures of everything else; 0 for as many
    guidance: float = OPEN
    # repair
    conditions: str = OPEN  # name | mixture | longer: the words under which concept latents are denoised
    ahead: str = OPEN  # mixture | name-half | name: a look ahead takes half, under those words or the name, or all
    anchor_share: float = OPEN  # of the forget term's latents that show the anchor already; the others show the concept
    retain_loss: str = OPEN  # distil | guided | denoise | none
    other_words: float = OPEN  # of the distilled retain samples, those under the words of another
    # memory
    memory: str = OPEN  # low | balanced | fast; says the next three, see `recipes.MEMORY`
    mixed_precision: str = OPEN  # no | bf16, which has the range of float32 and needs no loss scaling
    checkpointing: bool = OPEN  # of gradients: activations are computed again on the way back
    micro_batch: int = OPEN  # samples that pass the model together, of a step's 2 * batch_size; 0 for all of them
    compile: bool = False

    def __post_init__(self) -> None:
        """As of every method; and the model is named by one string.

        Raises:
            UserError: see `model_named`.
        """
        super().__post_init__()
        object.__setattr__(self, "model", model_named(self.model, self.revision, self.variant))
        object.__setattr__(self, "revision", None)
        object.__setattr__(self, "variant", None)

    def resolved(self, profile: str) -> Self:
        """As of every method; every further concept adds half as many steps."""
        memory = self.memory or "fast"
        asked = {name: value for name, value in MEMORY[memory].items() if getattr(self, name) is None}
        settings = super(EraseSettings, dataclasses.replace(self, memory=memory, **asked)).resolved(profile)
        if self.steps is not None:
            return settings
        more = max(len(self.concepts) - 1, 0)
        return dataclasses.replace(settings, steps=settings.steps + more * settings.steps // 2)


@dataclass(frozen=True)
class ForgetSettings(MethodSettings):
    """Settings of one forgetting by an image classifier."""

    recipe: str = "scissorhands"
    model: str = DIGITS  # hub id, directory of a transformers image classifier, or "digits"
    revision: str | None = None
    data: str | None = None  # image folder or .npz; None: the digits
    forget_class: str | None = None
    forget_indices: str | None = None  # file: numbers of training pictures, one a line
    forget_random: float | None = None  # share of the training pictures
    retrained: str | None = (
        None  # a model trained without what is forgotten, to measure against; the digits' is trained here
    )


def model_named(model: str, revision: str | None, variant: str | None = None) -> str:
    """A model as one string, from flags that say a part of it.

    Raises:
        UserError: said twice, or a revision of what lies on this machine.
    """
    name = Name.parse(model)
    for flag_, given, said in (("--revision", revision, name.revision), ("--variant", variant, name.variant)):
        if given and said not in (None, given):
            raise UserError(f"--model {model} names {said!r} already: leave out {flag_} {given}")
    if revision and is_path(name.place):
        raise UserError(f"--model {model} lies on this machine and has no revisions: leave out --revision {revision}")
    return str(Name(name.place, revision or name.revision, variant or name.variant))


def left_open(settings: Any) -> frozenset[str]:
    """Names of the settings that recipe and profile fill in."""
    fields = dataclasses.fields(settings)
    return frozenset(field.name for field in fields if field.default is OPEN and "None" not in str(field.type))


def _files(folder: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (Path(__file__).parent / "methods" / folder).glob("[a-z]*.py")))


LEFT_OPEN = left_open(EraseSettings)
REPAIRS = {  # what the forget term wants in the place of what is forgotten
    "none": "no repair at all",
    "retain": "nothing: what is kept is repaired, no more",
    "anchor": "what the original says of the anchor, under the concept's words",
    "paired": "the way to the pair, the picture that the anchor's words gave from the same noise",
    "ascent": "anything but what it was: up the loss",
    "random-label": "what the original says under other words, or another class",
    "negative-guidance": "what leads away from the concept, on half-finished pictures",
}
CHOICES = {
    "recipe": tuple(RECIPES),
    "scorer": _files("scorers"),
    "granularity": ("weight", "channel"),
    "threshold_scope": ("scope", "layer", "global"),
    "edit": ("none", *_files("edits")),
    "init": ("layer", "kaiming", "trunc_normal"),
    "repair": tuple(REPAIRS),
    "optimiser": ("adam", "adam-8bit", "sgd"),
    "train": ("scope", "selection"),
    "conditions": ("name", "mixture", "longer"),
    "ahead": ("mixture", "name-half", "name"),
    "retain_loss": ("distil", "guided", "denoise", "none"),
    "projection": ("scale-free", "paper", "none"),
    "memory": tuple(MEMORY),
    "mixed_precision": ("no", "bf16"),
}

# settings that no flag says, only a file
FILE_ONLY = (
    "forget_count", "retain_count", "sampling_steps", "retain_sampling_steps", "guidance", "anchor_share", "score_draws",
    "memories", "memory_every", "path_share", "damping", "newton_step", "rounds", "tolerance", "optimiser",
    "checkpointing", "micro_batch", "compile", "ahead", "episode", "other_words",
)  # fmt: skip

# settings that former versions did not write: what their runs were made with
ADDED = {name: COMMON[name] for name in ("ahead", "episode", "other_words", "retain_sampling_steps")}


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def spelled(name: str) -> str:
    """A field as a user gives it: by its flag, or as a file names it where there is none."""
    return name if name in FILE_ONLY else flag(name)


Kind = TypeVar("Kind", bound=MethodSettings)


def load_settings(kind: type[Kind], config: Path | None, flags: dict[str, Any]) -> Kind:
    """Settings from a TOML file with the flags laid over it; a flag that is None was not given.

    Raises:
        UserError: unreadable file, unknown key (with the nearest one), wrong type, impossible value.
    """
    values = _read_toml(config) if config else {}
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(f"{config}: unknown key {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        values[name] = _typed(config, name, fields[name], value)
    values.update({name: value for name, value in flags.items() if value is not None})
    return kind(**values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--config {path} is not TOML: {error}") from None
    if isinstance(values.get("concept"), str | list):
        values["concepts"] = values.pop("concept")
    if isinstance(values.get("concepts"), str):
        values["concepts"] = [values["concepts"]]
    return {name.replace("-", "_"): value for name, value in values.items()}


def _typed(config: Path | None, name: str, declared: Any, value: Any) -> Any:
    declared = str(declared)
    if declared.startswith("tuple"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif declared.startswith("float") and type(value) in (int, float):
        return float(value)
    elif type(value).__name__ == declared.removesuffix(" | None"):
        return value
    raise UserError(f"{config}: {name} = {value!r} is not of type {declared}")
