"""What an erasure is asked to do: one frozen dataclass, read from TOML and flags, written to JSON.

A field that is None takes the default of the model's profile (`PROFILES`): what is right for the embedded model of
a million weights is not right for Stable Diffusion's 860 million.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "CompVis/stable-diffusion-v1-4"


class UserError(Exception):
    """Something that the user can put right. The message is one line that names the file or flag and the remedy."""


@dataclass(frozen=True)
class EraseSettings:
    """Settings of one erasure. Comments give the reason for a default; docs/experiments.md gives the measurements."""

    concepts: tuple[str, ...] = ()
    model: str = DEFAULT_MODEL  # hub id, diffusers directory, or "tiny"
    revision: str | None = None
    anchor: str | None = None  # None: the preset's own
    # data
    forget_count: int | None = None  # pictures of the concepts
    retain_count: int | None = None  # pictures of everything else
    retain_prompts: str | None = None  # file, one prompt a line; None: the package's general captions
    forget_images: str | None = None  # directory; None: the model draws them itself (latents only, never decoded)
    retain_images: str | None = None
    sampling_steps: int | None = None
    guidance: float | None = None
    # scores, selection, edit
    trim: bool = True
    scorer: str = "contrast"  # contrast | plain | random
    score_draws: int = 10  # batches per score; the paper's ten
    top_k: float = 0.001  # share of the scope
    scope: str = "attn"  # xattn | attn | full | a regular expression over parameter names
    threshold_scope: str = "scope"  # scope | global: where the top k is taken
    init: str = "layer"  # layer | kaiming | trunc_normal | zero
    # repair
    steps: int | None = None
    lr: float | None = None
    forget_weight: float = 0.3
    anchor_share: float = 0.5  # of the forget term's latents that show the anchor already; the others show the concept
    retain_loss: str = "distil"  # distil | denoise
    projection: str = "scale-free"  # scale-free | paper | none
    memories: int = 1
    memory_every: int = 50  # steps between fresh memory gradients and checkpoints; the authors' epoch
    batch_size: int | None = None  # forget and retain samples, each, per step
    # how
    seed: int = 0
    device: str = "auto"
    mixed_precision: str = "no"  # no | bf16, which has the range of float32 and needs no loss scaling

    def __post_init__(self) -> None:
        """Refuse what no run could use.

        Raises:
            UserError: naming the flag, the value and what is allowed.
        """
        if not 0 < self.top_k < 1:
            raise UserError(f"--top-k {self.top_k} is outside (0, 1): it is the share of the scope to trim, e.g. 0.001")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{flag(name)} {getattr(self, name)!r} is unknown: choose {', '.join(allowed)}")
        for name in ("score_draws", "memories", "memory_every", "batch_size", "forget_count", "retain_count"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{flag(name)} {value} is too small: it must be at least 1")
        if self.steps is not None and self.steps < 0:
            raise UserError(f"--steps {self.steps} is negative: 0 stops after the edit")
        if self.lr is not None and not 0 < self.lr < 1:
            raise UserError(f"--lr {self.lr} is outside (0, 1)")
        if self.forget_weight < 0:
            raise UserError(f"--forget-weight {self.forget_weight} is negative")
        if not 0 <= self.anchor_share <= 1:
            raise UserError(f"anchor_share {self.anchor_share} is outside [0, 1]")

    def resolved(self, profile: str) -> EraseSettings:
        """The same settings with every None that has a profile default filled in."""
        missing = {name: value for name, value in PROFILES[profile].items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EraseSettings:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


CHOICES = {
    "scorer": ("contrast", "plain", "random"),
    "threshold_scope": ("scope", "global"),
    "init": ("layer", "kaiming", "trunc_normal", "zero"),
    "retain_loss": ("distil", "denoise"),
    "projection": ("scale-free", "paper", "none"),
    "mixed_precision": ("no", "bf16"),
}

PROFILES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        forget_count=48, retain_count=160, sampling_steps=12, guidance=3.0, steps=150, lr=1e-3, batch_size=16
    ),
    "sd": dict(
        forget_count=64, retain_count=256, sampling_steps=30, guidance=7.5, steps=200, lr=1e-5, batch_size=4
    ),
}  # fmt: skip


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
