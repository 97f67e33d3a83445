"""What an erasure is asked to do: one frozen dataclass, read from TOML and flags, written to JSON."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recipes import COMMON, DEFAULT_RECIPE, PROFILES, RECIPES

DEFAULT_MODEL = "CompVis/stable-diffusion-v1-4"


class UserError(Exception):
    """Something that the user can put right. The message is one line that names the file or flag and the remedy."""


OPEN: Any = None  # until `resolved`: the recipe, then the model's profile, then `COMMON` says it


@dataclass(frozen=True)
class EraseSettings:
    """Settings of one erasure; docs/experiments.md gives the measurements behind the defaults."""

    concepts: tuple[str, ...] = ()
    model: str = DEFAULT_MODEL  # hub id, diffusers directory, or "tiny"
    revision: str | None = None
    anchor: str | None = None  # None: the preset's own
    recipe: str = DEFAULT_RECIPE
    # data
    forget_count: int = OPEN  # pictures of each concept
    retain_count: int = OPEN  # pictures of everything else
    retain_prompts: str | None = None  # file, one prompt a line; None: the package's general captions
    forget_images: str | None = None  # directory; None: the model draws them itself (latents only, never decoded)
    retain_images: str | None = None
    sampling_steps: int = OPEN
    guidance: float = OPEN
    # scores, selection, edit
    trim: bool = OPEN
    scorer: str = OPEN  # contrast | plain | activation | random
    score_draws: int = OPEN  # batches per score
    granularity: str = OPEN  # weight | channel: what is selected and trimmed as one
    top_k: float = OPEN  # share of the scope
    scope: str = OPEN  # xattn | attn | full | a regular expression over parameter names
    threshold_scope: str = OPEN  # scope | global: where the top k is taken
    init: str = OPEN  # layer | kaiming | trunc_normal | zero
    # repair
    steps: int = OPEN
    lr: float = OPEN
    forget_target: str = OPEN  # anchor | paired: what concept latents are to be denoised towards
    conditions: str = OPEN  # name | mixture: the words under which they are
    forget_weight: float = OPEN
    anchor_share: float = OPEN  # of the forget term's latents that show the anchor already; the others show the concept
    retain_loss: str = OPEN  # distil | denoise
    projection: str = OPEN  # scale-free | paper | none
    memories: int = OPEN
    memory_every: int = OPEN  # steps between fresh memory gradients and checkpoints; the authors' epoch
    relearn_every: int = OPEN  # steps between looks ahead at what fine-tuning would bring back; 0 for none
    batch_size: int = OPEN  # forget and retain samples, each, per step
    # how
    seed: int = 0
    device: str = "auto"
    mixed_precision: str = "no"  # no | bf16, which has the range of float32 and needs no loss scaling

    def __post_init__(self) -> None:
        """Refuse what no run could use.

        Raises:
            UserError: naming the flag, the value and what is allowed.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        for name, allowed in CHOICES.items():
            if given.get(name, allowed[0]) not in allowed:
                raise UserError(f"{flag(name)} {given[name]!r} is unknown: choose {', '.join(allowed)}")
        for name in ("score_draws", "memories", "memory_every", "batch_size", "forget_count", "retain_count"):
            if given.get(name, 1) < 1:
                raise UserError(f"{flag(name)} {given[name]} is too small: it must be at least 1")
        if not 0 < given.get("top_k", 0.5) < 1:
            raise UserError(f"--top-k {self.top_k} is outside (0, 1): it is the share of the scope to trim, e.g. 0.001")
        if given.get("steps", 0) < 0:
            raise UserError(f"--steps {self.steps} is negative: 0 stops after the edit")
        if given.get("relearn_every", 0) < 0:
            raise UserError(f"--relearn-every {self.relearn_every} is negative: 0 leaves it out")
        if not 0 < given.get("lr", 0.5) < 1:
            raise UserError(f"--lr {self.lr} is outside (0, 1)")
        if given.get("forget_weight", 0) < 0:
            raise UserError(f"--forget-weight {self.forget_weight} is negative")
        if not 0 <= given.get("anchor_share", 0) <= 1:
            raise UserError(f"anchor_share {self.anchor_share} is outside [0, 1]")

    def resolved(self, profile: str) -> EraseSettings:
        """The same settings with everything that was left open filled in, for a model's profile ("tiny" or "sd").

        Every further concept adds half as many steps.
        """
        recipe, more = RECIPES[self.recipe], max(len(self.concepts) - 1, 0)
        values = {**COMMON, **PROFILES[profile], **recipe.values, **recipe.profiles.get(profile, {})}
        values["steps"] += more * values["steps"] // 2
        return dataclasses.replace(self, **{name: v for name, v in values.items() if getattr(self, name) is None})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EraseSettings:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


LEFT_OPEN = frozenset(
    field.name for field in dataclasses.fields(EraseSettings) if field.default is OPEN and "None" not in str(field.type)
)
CHOICES = {
    "recipe": tuple(RECIPES),
    "scorer": ("contrast", "plain", "activation", "random"),
    "granularity": ("weight", "channel"),
    "threshold_scope": ("scope", "global"),
    "init": ("layer", "kaiming", "trunc_normal", "zero"),
    "forget_target": ("anchor", "paired"),
    "conditions": ("name", "mixture"),
    "retain_loss": ("distil", "denoise"),
    "projection": ("scale-free", "paper", "none"),
    "mixed_precision": ("no", "bf16"),
}


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def load_settings(config: Path | None, flags: dict[str, Any]) -> EraseSettings:
    """Settings from a TOML file with the flags laid over it; a flag that is None was not given.

    Raises:
        UserError: unreadable file, unknown key (with the nearest one), wrong type, impossible value.
    """
    values = _read_toml(config) if config else {}
    fields = {field.name: field.type for field in dataclasses.fields(EraseSettings)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(f"{config}: unknown key {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        values[name] = _typed(config, name, fields[name], value)
    values.update({name: value for name, value in flags.items() if value is not None})
    return EraseSettings(**values)


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
