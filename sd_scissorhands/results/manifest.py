"""run.json, the manifest of a run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from ..errors import UserError
from ..files import read_json
from .base import Record, SparseRecord
from .erase import EraseResult

MANIFEST = "run.json"
Result = TypeVar("Result", bound=Record)


@dataclass(frozen=True)
class BaseModel(SparseRecord):
    """The model that a run started from; former versions wrote less of it."""

    model: str | None = None  # as the user named it, see `naming`; of a local one the absolute path
    weights_sha256: str | None = None  # of its denoiser, see `hash_tensors`
    files_sha256: str | None = None  # of all files that drawing reads, see `PipelineDirectory.sha256`
    ema: str | None = None  # see `ema_of`


@dataclass(frozen=True)
class Stage(SparseRecord):
    """A stage that has ended, or the newest checkpoint of one that has not."""

    file: str  # within the run directory
    step: int | None = None  # of a checkpoint
    seconds: float | None = None
    peak_bytes: int | None = None  # of memory
    evaluations: int | None = None  # of the network, forward passes of a sample
    cached: int | None = None  # pictures that were not drawn, for the cache had them
    dropped: bool | None = None  # whether its file was done with and is gone


@dataclass(frozen=True)
class Manifest(SparseRecord):
    """A run's settings, its base model, the stages that have ended, and the result."""

    settings: dict[str, Any]  # of any version
    source: BaseModel
    inputs: dict[str, str] = field(
        default_factory=dict
    )  # setting that names a file or a folder -> sha256 of what is in it
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
            raise damaged(str(error), folder / MANIFEST) from None

    @property
    def erased(self) -> EraseResult | None:
        """The result of an erasure that has ended, as far as it can be read."""
        return EraseResult.from_json(self.result, strict=False) if self.result else None

    @property
    def of_erasure(self) -> bool:
        """Whether a diffusion model was unlearned, not a classifier."""
        return "concepts" in self.settings

    def result_as(self, kind: type[Result]) -> Result:
        """What the run came to.

        Raises:
            UserError: it is damaged.
        """
        try:
            return kind.from_json(self.result)
        except ValueError as error:
            raise damaged(f"result: {error}") from None

    def stage(self, name: str) -> Stage | None:
        """A stage that has ended; each is read by itself, so that a damaged one spoils no other.

        Its file is named after it: no manifest can name another to be read or deleted.

        Raises:
            UserError: it is damaged.
        """
        if name not in self.stages:
            return None
        try:
            stage = Stage.from_json(self.stages[name])
        except ValueError as error:
            raise damaged(f"stage {name}: {error}") from None
        own = {"model": "model", "repair": f"repair/step-{stage.step}.safetensors"}
        if stage.file != own.get(name, f"{name}.safetensors") or (stage.step is not None and stage.step < 1):
            raise damaged(f"stage {name} names {stage.file!r}")
        return stage


def damaged(why: str, file: Path = Path(MANIFEST)) -> UserError:
    """A manifest that cannot be read."""
    return UserError(f"{file} is damaged ({why[:200]}): choose another --output-dir")
