"""A run directory: one manifest, one file a stage, everything written under a temporary name and then renamed.

A run that is killed at any moment leaves whole files only; opened again with `resume`, it continues after the last
stage whose file the manifest names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .disk import read_tensors, write_json, write_tensors
from .lineage import MANIFEST
from .machine import PeakMemory, Processes
from .settings import OPEN, EraseSettings, MethodSettings, UserError, left_open, read_former, spelled

NOT_IDENTITY = ("device", "model_config")  # settings that may differ between a run and its resumption


# Opens a progress bar for a named stage of so many steps; what it yields is called with the steps done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(stage: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda count: None)


class Run:
    """A run directory and its manifest. `Run.open` makes one or continues one."""

    def __init__(self, path: Path, manifest: dict[str, Any], processes: Processes | None = None):
        self.path, self.manifest, self.processes = path, manifest, processes or Processes()
        self._earlier, self._began = manifest.get("seconds", 0.0), time.monotonic()

    @classmethod
    def open(
        cls,
        path: Path,
        settings: MethodSettings,
        source: dict[str, Any],
        *,
        resume: bool,
        processes: Processes | None = None,
        began: float | None = None,
    ) -> Run:
        """Make the directory, or continue the run in it.

        Args:
            source: what identifies the base model (id, hash); must be the same on resumption.
            processes: that share the run; the first alone writes.
            began: `time.monotonic()` from which on its seconds count; None: now.

        Raises:
            UserError: the directory is in use by something else, by a run with other settings, or by this very run
                while `resume` is off.
        """
        processes = processes or Processes()
        if processes.main:
            check_free(path, settings, resume=resume)
            if not (path / MANIFEST).exists():
                cls(path, {"settings": settings.to_json(), "source": source, "stages": {}}).save()
        processes.wait()
        run = cls.read(path)
        run.processes, run._began = processes, run._began if began is None else began
        told = run.manifest["source"]  # a former version's says less
        if any(told.get(name) != source.get(name) for name in told):
            raise UserError(f"{path} was started from another model than it is now: choose another --output-dir")
        processes.wait()
        return run

    @classmethod
    def read(cls, path: Path) -> Run:
        """An existing run; an erasure's settings may be a former version's, see `settings.read_former`.

        Raises:
            UserError: no such directory, or no readable manifest in it.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            told = {name: manifest[name] for name in ("settings", "source", "stages")} | manifest
            if "concepts" in told["settings"]:
                told["settings"] = read_former(told["settings"])
            return cls(path, told)
        except FileNotFoundError:
            raise UserError(f"{path} is not a run directory: it has no {MANIFEST}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / MANIFEST} is damaged ({error}): choose another --output-dir") from None

    @property
    def settings(self) -> EraseSettings:
        """The settings that the run was made with."""
        return EraseSettings.from_json(self.manifest["settings"])

    @property
    def seconds(self) -> float:
        """Time taken until now, with what earlier processes of a resumed run took until they last wrote."""
        return round(self._earlier + time.monotonic() - self._began, 2)

    def save(self) -> None:
        """Write the manifest."""
        self.manifest["seconds"] = self.seconds
        if self.processes.main:
            write_json(self.path / MANIFEST, self.manifest)

    def write(self, file: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write a file of tensors."""
        if self.processes.main:
            write_tensors(self.path / file, tensors, metadata)

    def done(self, stage: str) -> bool:
        """Whether a stage has ended and its file is there."""
        entry = self.manifest["stages"].get(stage)
        return entry is not None and (self.path / entry["file"]).exists()

    def stage(
        self,
        name: str,
        make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
        device: str | torch.device = "cpu",
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and facts of a stage: read when it is done, else made, written and entered in the manifest.

        Args:
            device: whose memory's peak the manifest tells.
        """
        file = self.path / f"{name}.safetensors"
        if self.done(name):
            tensors, metadata = read_tensors(file)
            return tensors, json.loads(metadata["facts"])
        began, peak = time.monotonic(), PeakMemory(device)
        tensors, facts = make()
        self.write(file.name, tensors, {"facts": json.dumps(facts)})
        self.finish(name, file.name, seconds=time.monotonic() - began, peak_bytes=peak.total())
        return tensors, facts

    def finish(self, stage: str, file: str, **facts: Any) -> None:
        """Enter a stage in the manifest."""
        self.manifest["stages"][stage] = {"file": file, **facts}
        self.save()


def check_free(path: Path, settings: MethodSettings, *, resume: bool) -> None:
    """Refuse an output directory that this run may not use; cheap, so that it comes before any model is loaded.

    Raises:
        UserError: see `Run.open`.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output-dir {path} is a file: choose another")
    if not (path / MANIFEST).exists():
        if path.exists() and any(path.iterdir()):
            raise UserError(f"--output-dir {path} holds files that are no run: choose an empty or a new directory")
        return
    theirs = Run.read(path).manifest["settings"]
    for name, value in settings.to_json().items():
        filled_later = value is OPEN and name in left_open(
            settings
        )  # by the recipe, and the profile once the model is known
        if name not in NOT_IDENTITY and not filled_later and theirs.get(name) != value:
            raise UserError(
                f"--output-dir {path} holds a run with other settings ({spelled(name)} {theirs.get(name)} there, {value} here): "
                "choose another --output-dir"
            )
    if not resume:
        raise UserError(f"--output-dir {path} holds this run already: add --resume to continue it, or choose another")
