"""run.json, the manifest of a run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..errors import UserError
from ..parsing import read_json
from .base import SparseRecord
from .erase import EraseResult

MANIFEST = "run.json"


@dataclass(frozen=True)
class BaseModel(SparseRecord):
    """The model that a run started from; former versions wrote less of it."""

    model: str | None = None  # as the user named it, see `naming`
    weights_sha256: str | None = None  # of its denoiser, see `hash_tensors`
    ema: str | None = None  # see `ema_of`


@dataclass(frozen=True)
class Stage(SparseRecord):
    """A stage that has ended, or the newest checkpoint of one that has not."""

    file: str  # within the run directory
    step: int | None = None  # of a checkpoint
    seconds: float | None = None
    peak_bytes: int | None = None  # of memory


@dataclass(frozen=True)
class Manifest(SparseRecord):
    """A run's settings, its base model, the stages that have ended, and the result."""

    settings: dict[str, Any]  # of any version
    source: BaseModel
    stages: dict[str, Any] = field(default_factory=dict)  # see `stage`
    seconds: float = 0.0
    result: dict[str, Any] | None = None  # once the run has ended

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a run directory.

        Raises:
            UserError: there is none, or it is damaged.
        """
        try:
            return cls.from_json(read_json(folder / MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder} is not a run directory: it has no {MANIFEST}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged ({error}): choose another --output-dir") from None

    @property
    def erased(self) -> EraseResult | None:
        """The result of an erasure that has ended, as far as it can be read."""
        return EraseResult.from_json(self.result, strict=False) if self.result else None

    @property
    def of_erasure(self) -> bool:
        """Whether a diffusion model was unlearned, not a classifier."""
        return "concepts" in self.settings

    def stage(self, name: str) -> Stage | None:
        """A stage that has ended; each is read by itself, so that a damaged one spoils no other.

        Raises:
            UserError: it is damaged.
        """
        try:
            return Stage.from_json(self.stages[name]) if name in self.stages else None
        except ValueError as error:
            raise UserError(f"{MANIFEST} is damaged (stage {name}: {error}): choose another --output-dir") from None
