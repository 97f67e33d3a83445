"""A run directory: one manifest, one file a stage, everything written under a temporary name and then renamed.

A run that is killed at any moment leaves whole files only; opened again with `resume`, it continues after the last
stage whose file the manifest names.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .disk import LOCK, inside, parse_facts, read_tensors, refuse_file_in_place, write_json, write_tensors
from .errors import UserError
from .machine import PeakMemory, Processes
from .naming import absolute
from .results.manifest import MANIFEST, BaseModel, Manifest, Stage
from .settings import OPEN, MethodSettings, flag, left_open, read_former, spelled

NOT_IDENTITY = ("device", "model_config", "keep_scores")  # settings that may differ between a run and its resumption


# Opens a progress bar for a named stage of so many steps; what it yields is called with the steps done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(stage: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda count: None)


class Run:
    """A run directory and its manifest. `Run.open` makes one or continues one."""

    def __init__(self, path: Path, manifest: Manifest, processes: Processes | None = None):
        self.path, self.manifest, self.processes = path, manifest, processes or Processes()
        self._earlier, self._began = manifest.seconds, time.monotonic()
        self.counters = dict[
            str, Callable[[], int]
        ]()  # fields of `Stage` that go up while it runs -> what they stand at
        self._counted = Counter[str]()
        self.remarks: dict[str, None] = {}  # on what went otherwise than meant, each once

    @classmethod
    def open(
        cls,
        path: Path,
        settings: MethodSettings,
        source: BaseModel,
        *,
        resume: bool,
        inputs: dict[str, str] | None = None,
        processes: Processes | None = None,
        began: float | None = None,
    ) -> Run:
        """Make the directory, or continue the run in it.

        Args:
            source: the base model, which must be the same on resumption; only its name may be another.
            inputs: setting that names a file or a folder -> sha256 of what is in it, which must be the same, too.
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
                cls(path, Manifest(settings.to_json(), source, inputs or {})).save()
        processes.wait()
        run = cls.read(path)
        run.processes, run._began = processes, run._began if began is None else began
        former, now = run.manifest.source.to_json(), source.to_json()
        if any(now.get(name) != value for name, value in former.items() if name != "model"):
            raise UserError(f"{path} was started from another model than it is now: choose another --output-dir")
        if changed := [name for name, value in run.manifest.inputs.items() if (inputs or {}).get(name) != value]:
            raise UserError(
                f"{path} was started when {flag(changed[0])} held something else: put that back, or choose another --output-dir"
            )
        processes.wait()
        return run

    @classmethod
    def read(cls, path: Path) -> Run:
        """An existing run; an erasure's settings may be a former version's, see `settings.read_former`.

        Raises:
            UserError: no such directory, or no readable manifest in it.
        """
        manifest = Manifest.read(path)
        if manifest.of_erasure:
            manifest = replace(manifest, settings=read_former(manifest.settings))
        return cls(path, manifest)

    @property
    def seconds(self) -> float:
        """Time taken until now, with what earlier processes of a resumed run took until they last wrote."""
        return round(self._earlier + time.monotonic() - self._began, 2)

    def save(self) -> None:
        """Write the manifest."""
        self.manifest = replace(self.manifest, seconds=self.seconds)
        if self.processes.main:
            write_json(self.path / MANIFEST, self.manifest.to_json())

    def write(self, file: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write a file of tensors."""
        if self.processes.main:
            write_tensors(self.path / file, tensors, metadata)

    def done(self, stage: str) -> bool:
        """Whether a stage has ended and its file is there."""
        entry = self.manifest.stage(stage)
        return entry is not None and inside(self.path, entry.file).exists()

    def stage(
        self,
        name: str,
        make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
        device: str | torch.device = "cpu",
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and facts of a stage: read when it is done, else made, written and entered in the manifest.

        Args:
            device: whose peak memory goes into the manifest.
        """
        file = self.path / f"{name}.safetensors"
        if self.done(name):
            tensors, metadata = read_tensors(file)
            return tensors, parse_facts(file, metadata, "facts", dict)
        began, peak = time.monotonic(), PeakMemory(device)
        tensors, facts = make()
        self.write(file.name, tensors, {"facts": json.dumps(facts)})
        self.finish(name, Stage(file.name, seconds=time.monotonic() - began, peak_bytes=peak.total()))
        return tensors, facts

    def count(self, name: str) -> None:
        """Enter with a stage that has ended what its counters have gone up since."""
        if stage := self.manifest.stage(name):
            self.finish(name, stage)

    def drop(self, name: str) -> None:
        """Delete the file of a stage that no later one reads."""
        stage = self.manifest.stage(name)
        if stage and not stage.dropped:
            self.finish(name, replace(stage, dropped=True))
            if self.processes.main:
                inside(self.path, stage.file).unlink(missing_ok=True)

    def finish(self, name: str, stage: Stage, result: dict[str, Any] | None = None) -> None:
        """Enter a stage in the manifest, and what the run came to with the last one."""
        totals: dict[str, Any] = {}
        for field, count in self.counters.items():
            before, added = self.manifest.stage(name), count() - self._counted[field]
            self._counted[field] += added
            totals[field] = added + ((before and getattr(before, field)) or 0) or None
        stage = replace(stage, **totals)
        stages, result = {**self.manifest.stages, name: stage.to_json()}, result or self.manifest.result
        self.manifest = replace(self.manifest, stages=stages, result=result)
        self.save()


def check_free(path: Path, settings: MethodSettings, *, resume: bool) -> None:
    """Refuse an output directory that this run may not use; cheap, so that it comes before any model is loaded.

    Raises:
        UserError: see `Run.open`.
    """
    refuse_file_in_place(path)
    if not (path / MANIFEST).exists():
        left = (f".{MANIFEST}.partial", LOCK)  # by a process that was killed while it made the directory
        if path.exists() and any(one.name not in left for one in path.iterdir()):
            raise UserError(f"--output-dir {path} holds files that are no run: choose an empty or a new directory")
        return
    manifest, filled_later = Run.read(path).manifest, left_open(settings)  # by the recipe and the model's profile
    for name, value in settings.to_json().items():
        theirs = manifest.settings.get(name)
        if name in NOT_IDENTITY or (value is OPEN and name in filled_later) or theirs == value:
            continue
        if name == "model" and absolute(value) == manifest.source.model:  # named from another working directory
            continue
        raise UserError(
            f"--output-dir {path} holds a run with other settings ({spelled(name)} {str(theirs)[:100]} there, {value} here): "
            "choose another --output-dir"
        )
    if not resume:
        raise UserError(f"--output-dir {path} holds this run already: add --resume to continue it, or choose another")
