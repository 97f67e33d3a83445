"""What an erasure or a forgetting is asked to do: frozen dataclasses, read from TOML and flags, written to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from .declaration import SEED, check_declared, declared_of, setting
from .errors import UsageError, UserError
from .files import read_toml
from .methods.edits import EDITS
from .methods.objectives import OBJECTIVES
from .methods.retain_losses import RETAIN_LOSSES
from .methods.scorers import SCORERS
from .naming import model_named
from .parsing import assignment, did_you_mean, of_type
from .recipes import COMMON, DEFAULT_RECIPE, MEMORY, RECIPES, recipes_for, values_for

DEFAULT_MODEL = "CompVis/stable-diffusion-v1-4"
DIGITS = "digits"  # the embedded classifier and its data
OUTPUT_FORMATS = ("diffusers", "unet-only", "single-file", "lycoris", "delta")


WHAT, DATA, SELECT, REPAIR, RUN = "What", "Data", "Scores, selection, edit", "Repair", "Run"  # panels of --help
BY_RECIPE = "by recipe"
OPEN: Any = None  # until `resolved`: the recipe, then the model's profile, then `COMMON` sets it


def concept_names() -> tuple[str, ...]:
    """Every concept that has a name: presets, and words of the embedded world."""
    from .concepts import listed_names  # imports numpy

    return listed_names()


@dataclass(frozen=True)
class MethodSettings:
    """How to unlearn, whatever the model is; docs/experiments.md gives the measurements behind the defaults."""

    # fmt: off
    recipe: str = setting(DEFAULT_RECIPE, "The method, see sdscissor recipes.", panel=WHAT, level="basic", choices=lambda: tuple(RECIPES), default_text=DEFAULT_RECIPE)
    # scores and selection
    scorer: str = setting(OPEN, "How weights are scored{choices}.", panel=SELECT, choices=SCORERS.names, default_text=BY_RECIPE)
    score_draws: int = setting(OPEN, "Batches per score.", panel=SELECT, level="file", least=1)
    granularity: str = setting(OPEN, "What is selected as one{choices}.", panel=SELECT, choices=("weight", "channel"), default_text=BY_RECIPE)
    top_k: float = setting(OPEN, "Share of the scope to select, in (0, 1).", panel=SELECT, least=0, most=1, open_ends=True, remedy="it is the share of the scope to select, e.g. 0.001", default_text=BY_RECIPE)
    scope: str = setting(OPEN, "Weights that may change: xattn, attn, full, or a regular expression.", panel=SELECT, default_text=BY_RECIPE)
    threshold_scope: str = setting(OPEN, "Where the top k is taken: scope, layer, or global (over all weights).", panel=SELECT, choices=("scope", "layer", "global"), default_text=BY_RECIPE)
    # edit
    edit: str = setting(OPEN, "What is done to the selected weights{choices}.", panel=SELECT, choices=lambda: ("none", *EDITS.names()), default_text=BY_RECIPE)
    options: Mapping[str, Any] = field(default_factory=dict)  # settings that the scorer and the edit declare, by name
    # repair
    repair: str = setting(OPEN, "What takes the concept's place{choices}.", panel=REPAIR, choices=OBJECTIVES.names, default_text=BY_RECIPE)
    steps: int = setting(OPEN, "Steps of the repair; 0 stops after the edit.", panel=REPAIR, least=0, remedy="0 stops after the edit", default_text=BY_RECIPE)
    lr: float = setting(OPEN, "Learning rate.", panel=REPAIR, least=0, most=1, open_ends=True, default_text=BY_RECIPE)
    optimiser: str = setting(OPEN, "adam-8bit needs bitsandbytes; soap is Adam in the eigenbasis of the gradients, for small models.", panel=REPAIR, level="file", choices=("adam", "adam-8bit", "sgd", "soap"))
    train: str = setting(OPEN, "Weights that the repair may change{choices}.", panel=REPAIR, choices=("scope", "selection"), default_text=BY_RECIPE)
    forget_weight: float = setting(OPEN, "Weight of the forget term against the retain term.", panel=REPAIR, least=0, default_text=BY_RECIPE)
    projection: str = setting(OPEN, "How gradients in conflict are projected{choices}; scale-free and paper keep the repair from undoing the forgetting, retain keeps the forgetting from harming what is retained, both does both.", panel=REPAIR, choices=("scale-free", "paper", "retain", "both", "none"), default_text=BY_RECIPE)
    memory_every: int = setting(OPEN, "Steps between fresh memory gradients and checkpoints; the authors' epoch.", panel=REPAIR, level="file", least=1)
    relearn_every: int = setting(OPEN, "Steps between forget terms taken at an adversary's weights (simulated fine-tuning); 0 for none.", panel=REPAIR, least=0, remedy="0 leaves it out", default_text=BY_RECIPE)
    batch_size: int = setting(OPEN, "Forget and retain samples, each, per step.", panel=REPAIR, least=1, default_text=BY_RECIPE)
    # run
    seed: int = setting(0, "The same seed gives the same weights.", panel=RUN, default_text="0", **SEED)
    device: str = setting("auto", "cuda, mps, cpu or auto.", panel=RUN, level="basic", default_text="auto")
    keep_scores: bool = setting(False, "Keep the scores after the selection, as many bytes as four times what was scored.", panel=RUN)
    # fmt: on

    def __post_init__(self) -> None:
        """Refuse what no run could use.

        Raises:
            UserError: naming the flag or the file's key, the value and what is allowed.
        """
        check_declared(self, spelled)
        if self.options:
            _check_options(self)

    def resolved(self, profile: str) -> Self:
        """The same settings with everything that was left open filled in, for a model's profile, see `recipes.PROFILES`.

        Raises:
            UserError: the recipe does not fit the profile.
        """
        from .methods.method import declared_settings

        recipe = RECIPES[self.recipe]
        if profile not in recipe.fits:
            raise UserError(
                f"--recipe {self.recipe} is not for this kind of model: choose {', '.join(recipes_for(profile))}"
            )
        values = values_for(recipe, profile)
        values |= OBJECTIVES[self.repair or values["repair"]].defaults
        filled = dataclasses.replace(self, **{n: values[n] for n in left_open(self) if getattr(self, n) is None})
        edits = [EDITS[filled.edit]] if filled.edit != "none" else []
        declared = declared_settings(SCORERS[filled.scorer], *edits)
        options = {name: values.get(name, own.default) for name, own in declared.items()}
        return dataclasses.replace(filled, options=options | dict(self.options))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what is asked first, then how, with the scorer's and the edit's options beside the rest."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        values |= values.pop("options")
        how = {*(field.name for field in dataclasses.fields(MethodSettings)), *self.options}
        return {name: values[name] for name in sorted(values, key=lambda name: name in how)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**_nested(cls, {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}))


@dataclass(frozen=True)
class EraseSettings(MethodSettings):
    """Settings of one erasure from a diffusion model."""

    # fmt: off
    concepts: tuple[str, ...] = setting((), "A preset, the path of your own (my.toml), a word of the embedded world, or any text with --anchor. Repeatable.", panel=WHAT, level="basic", flag="--concept", examples=concept_names)
    model: str = setting(DEFAULT_MODEL, "Hub id (owner/name, owner/name@revision:variant), diffusers directory, single .safetensors file, or tiny, the embedded model.", panel=WHAT, level="basic", default_text=DEFAULT_MODEL)
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.", panel=WHAT)  # becomes a part of `model`, as does the next
    variant: str | None = setting(None, "Which of several sets of weights: fp16, non_ema.", panel=WHAT)
    model_config: str | None = setting(None, "Of a single file: diffusers directory or hub id of its family, for configs and tokenizer.", panel=WHAT, default_text="by the file")
    anchor: str | None = setting(None, "What takes the concept's place.", panel=WHAT, level="basic", default_text="the preset's own")
    # data
    forget_count: int = setting(OPEN, "Pictures of each concept.", panel=DATA, level="file", least=1)
    retain_count: int = setting(OPEN, "Pictures of everything else.", panel=DATA, level="file", least=1)
    open_share: float = setting(OPEN, "Of the retain set, prompts that leave the concept open, with a less specific word, a made-up one or none in its place.", panel=DATA, level="file", least=0, most=1)
    retain_prompts: str | None = setting(None, "File with one prompt a line, for the general captions.", panel=DATA)
    forget_images: str | None = setting(None, "Directory of pictures of the concept, for the model's own.", panel=DATA)
    retain_images: str | None = setting(None, "Directory of pictures to keep, for the model's own.", panel=DATA)
    recursive: bool = setting(False, "Take the pictures of subfolders, too.", panel=DATA, flag="--recursive")
    sampling_steps: int = setting(OPEN, "Sampling steps of the pictures that are learned from.", panel=DATA, level="file", least=1)
    retain_sampling_steps: int = setting(OPEN, "Sampling steps of the pictures of everything else; 0 takes as many.", panel=DATA, level="file", least=0, remedy="0 takes as many as sampling_steps")
    solver: str = setting(OPEN, "Sampler of the pictures that are learned from{choices}: the model's own, or DPM-Solver++ 2M.", panel=DATA, level="file", choices=("own", "few-step"))
    guidance: float = setting(OPEN, "Guidance scale of the pictures that are learned from.", panel=DATA, level="file", default_text="the model's own")
    # repair
    conditions: str = setting(OPEN, "Words it is unlearned under{choices}.", panel=REPAIR, choices=("name", "mixture"), default_text=BY_RECIPE)
    anchor_share: float = setting(OPEN, "Of the forget term's latents, those that show the anchor already.", panel=REPAIR, level="file", least=0, most=1)
    retain_loss: str = setting(OPEN, "How the model is held to everything else{choices}.", panel=REPAIR, choices=RETAIN_LOSSES.names, default_text=BY_RECIPE)
    other_words: float = setting(OPEN, "Of the distilled retain samples, those under the words of another.", panel=REPAIR, level="file", least=0, most=1)
    relative_lr: float = setting(OPEN, "Learning rate over the root mean square of the weights that may change, where --lr is left open; 0 for the recipe's own.", panel=REPAIR, level="file", least=0, most=1, remedy="0 takes the recipe's own rate")
    calibrate: bool = setting(OPEN, "Change rate, steps and weight of the repair on the way where looks at held-out latents call for it.", panel=REPAIR, flag="--calibrate/--no-calibrate", default_text="by recipe; no with --lr or --steps")
    # proof
    verify: bool = setting(True, "Find out from held-out latents whether the concept is gone and the rest whole, and say so; exit code 4 if not.", panel=RUN, flag="--verify/--no-verify", default_text="yes")
    # memory
    memory: str = setting(OPEN, "How much memory to take{choices}.", panel=RUN, choices=tuple(MEMORY), default_text="balanced for SD, else fast")
    mixed_precision: str = setting(OPEN, "no or bf16.", panel=RUN, choices=("no", "bf16"), default_text="by --memory; no on a CPU")
    checkpointing: bool = setting(OPEN, "Recompute activations on the way back, for less memory.", panel=RUN, level="file", default_text="by --memory")
    micro_batch: int = setting(OPEN, "Samples that pass the model together, of a step's 2 * batch_size; 0 for all of them.", panel=RUN, level="file", least=0, remedy="0 takes the whole batch at once", default_text="by --memory")
    dtype: str = setting("base", "Precision that the erased weights are saved in{choices}; base is what the base's file has.", panel=RUN, choices=("base", "float32"), default_text="base")
    compile: bool = setting(False, "Compile the denoiser with torch.compile first.", panel=RUN, flag="--compile/--no-compile")
    # fmt: on

    def __post_init__(self) -> None:
        """As of every method; and the model is named by one string.

        Raises:
            UserError: see `model_named`.
        """
        super().__post_init__()
        object.__setattr__(self, "model", model_named(self.model, self.revision, self.variant))
        object.__setattr__(self, "revision", None)
        object.__setattr__(self, "variant", None)

    def check_named(self) -> None:
        """Refuse an erasure of nothing.

        Raises:
            UsageError: no concept is named.
        """
        if not self.concepts:
            raise UsageError(
                "nothing to erase: name a preset, a word or a text with --concept (sdscissor concepts lists them)"
            )

    def resolved(self, profile: str) -> Self:
        """As of every method; every further concept adds half as many steps."""
        memory, fixed = self.memory or "fast", self.lr is not None or self.steps is not None
        asked = {name: value for name, value in MEMORY[memory].items() if getattr(self, name) is None}
        if self.calibrate is None and (fixed or not self.verify):
            asked["calibrate"] = False
        if self.relative_lr is None and self.lr is not None:
            asked["relative_lr"] = 0.0
        settings = super(EraseSettings, dataclasses.replace(self, memory=memory, **asked)).resolved(profile)
        if settings.relative_lr and self.lr is None:
            settings = dataclasses.replace(settings, lr=OPEN)  # until the weights are there, see `preparation`
        if self.steps is not None:
            return settings
        more = max(len(self.concepts) - 1, 0)
        return dataclasses.replace(settings, steps=settings.steps + more * settings.steps // 2)


@dataclass(frozen=True)
class ForgetSettings(MethodSettings):
    """Settings of one forgetting by an image classifier."""

    # fmt: off
    recipe: str = setting("scissorhands", f"The method: {', '.join(recipes_for('classifier'))}.", panel=WHAT, level="basic", choices=lambda: tuple(RECIPES), default_text="scissorhands")
    scope: str = setting(OPEN, "Weights that may change: full, head or a regular expression.", panel=SELECT, default_text=BY_RECIPE)
    forget_class: str | None = setting(None, "A class, by its name or number.", panel=WHAT, level="basic")
    forget_indices: str | None = setting(None, "File with the numbers of training pictures, one a line, from 0.", panel=WHAT, level="basic")
    forget_random: float | None = setting(None, "A share of the training pictures, drawn by the seed.", panel=WHAT, level="basic", least=0, most=1, open_ends=True, remedy="it is the share of the training pictures, e.g. 0.1")
    model: str = setting(DIGITS, "Hub id or directory of an image classifier, or digits, the embedded one.", panel=WHAT, level="basic", default_text=DIGITS)
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.", panel=WHAT)
    data: str | None = setting(None, "Image folder (train/CLASS/*.png, test/ or val/ beside it) or .npz.", panel=WHAT, level="basic", default_text="the digits")
    retrained: str | None = setting(None, "A model trained without it, to measure against.", panel=WHAT, default_text="the digits' is trained here")
    # fmt: on


def left_open(settings: Any) -> frozenset[str]:
    """Names of the settings that recipe and profile fill in."""
    fields = dataclasses.fields(settings)
    return frozenset(field.name for field in fields if field.default is OPEN and "None" not in str(field.type))


LEFT_OPEN = left_open(EraseSettings)
FORMER = ("ahead", "dp_noise", "episode", "forget_snr", "memories")  # settings that are gone
# settings that former versions did not write: what their runs were made with
ADDED: dict[str, Any] = {
    name: COMMON[name]
    for name in ("open_share", "other_words", "retain_sampling_steps", "relative_lr", "calibrate", "solver")
} | {
    "verify": False,
    "dtype": "float32",
    "recursive": False,
}


def read_former(values: dict[str, Any]) -> dict[str, Any]:
    """An erasure's settings as any version wrote them: what it lacked is added, what is gone is left out."""
    found = ADDED | {name: value for name, value in values.items() if name not in FORMER}
    return found | ({"conditions": "mixture"} if found.get("conditions") == "longer" else {})


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def spelled(name: str) -> str:
    """A field as a user gives it: by its flag, or as a file names it where there is none."""
    return name if file_only(name) else flag(name)


def file_only(name: str) -> bool:
    """Whether no flag gives a setting, only a file; so it is with those that scorers and edits declare."""
    return name not in _flagged()


@cache
def _flagged() -> frozenset[str]:
    fields = (field for kind in (EraseSettings, ForgetSettings) for field in dataclasses.fields(kind))
    return frozenset(field.name for field in fields if (declared := declared_of(field)) and declared.level != "file")


Kind = TypeVar("Kind", bound=MethodSettings)


def load_settings(
    kind: type[Kind],
    config: Path | None,
    flags: dict[str, Any],
    *,
    own: Sequence[str] = (),
    leave_out: Iterable[str] = (),
) -> Kind:
    """Settings from a TOML file with the flags laid over it; a flag that is None, or "" in the file, was not given.

    Args:
        own: NAME=VALUE of settings that scorers and edits declare, and of others that have no flag; laid over the file.
        leave_out: names that the file may not hold.

    Raises:
        UserError: unreadable file, unknown key (with the nearest one), wrong type, impossible value.
    """
    read = read_toml(config, "--config") if config else {}
    values = {"concepts" if name == "concept" else name.replace("-", "_"): value for name, value in read.items()}
    if len(values) < len(read):
        raise UserError(f"{config}: a key is there twice, spelled in two ways: leave one out")
    if isinstance(values.get("concepts"), str):
        values["concepts"] = [values["concepts"]]
    if present := [name for name in leave_out if name in values]:
        raise UserError(f"{config}: leave out {present[0]!r}: in a comparison the command line says it")
    sources = dict.fromkeys(values, str(config))
    for text in own:
        name, value = assignment(text)
        values[name], sources[name] = value, f"--set {name}"
    fields = {field.name: field.type for field in dataclasses.fields(kind) if field.name != "options"}
    if not values.keys() <= fields.keys():
        from .methods.method import declared_settings

        fields |= {name: own.type for name, own in declared_settings().items()}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{sources[name]}: {_unknown(name, fields)}")
        open_ = value == "" and sources[name] == str(config)  # in a file, which has no other word for it
        values[name] = None if open_ else of_type(sources[name], name, fields[name], value)
    values.update({name: value for name, value in flags.items() if value is not None})
    values = {name: value for name, value in values.items() if value is not None}
    return kind(**_nested(kind, values))


def _nested(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Flat values with what is no field put into `options`."""
    fields = {field.name for field in dataclasses.fields(kind)}
    options = {name: value for name, value in values.items() if name not in fields}
    return {name: value for name, value in values.items() if name in fields} | ({"options": options} if options else {})


def _check_options(settings: MethodSettings) -> None:
    """Refuse options that no scorer and no edit declares; one that the chosen ones do not is left to others.

    Raises:
        UserError: an unknown one, or a value that its declaration does not allow.
    """
    from .methods.method import Options, declared_settings, options_for

    known = declared_settings()
    for name in settings.options:
        if name not in known:
            raise UserError(_unknown(name, [*(field.name for field in dataclasses.fields(settings)), *known]))
    for registry in (SCORERS, EDITS):
        for _, method in registry:
            options_for(method, Options(), settings.options)


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"unknown key {name!r}{did_you_mean(name, known)}"
