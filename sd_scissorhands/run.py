"""A run directory: one manifest, one file a stage, everything written under a temporary name and then renamed.

A run that is killed at any moment leaves whole files only; opened again with `resume`, it continues after the last
stage whose file the manifest names.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .lineage import MANIFEST
from .settings import OPEN, EraseSettings, MethodSettings, UserError, flag, left_open

NOT_IDENTITY = ("device", "model_config")  # settings that may differ between a run and its resumption


# Opens a progress bar for a named stage of so many steps; what it yields is called with the steps done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(stage: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Processes:
    """The processes that share one command's work, as `accelerate launch` or `torchrun` started them."""

    index: int = 0
    count: int = 1
    sharded: bool = False  # whether weights that stay frozen are shared out (FSDP), see `diffusion.sharding`

    @classmethod
    def here(cls, *, sharding: bool = False) -> Processes:
        """This process among its like; alone unless a launcher says otherwise.

        Args:
            sharding: whether the command can share weights out.

        Raises:
            UserError: the launcher wants weights shared out in a way, or by a command, that cannot.
        """
        if _says("ACCELERATE_USE_DEEPSPEED"):
            raise UserError("DEEPSPEED is not supported: launch with --multi_gpu or --use_fsdp instead")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        sharded = _says("ACCELERATE_USE_FSDP")
        if sharded and not sharding:
            raise UserError("FSDP is for erase alone, all else holds the whole model: launch with --multi_gpu instead")
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers reads weights in one process alone
        state = _distributed()
        return cls(state.process_index, state.num_processes, sharded)

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes what all share."""
        return self.index == 0

    def device(self, wanted: str) -> str:
        """The device of this process: with several, `auto` is each one's own."""
        if self.count == 1 or wanted != "auto":
            return wanted
        return str(_distributed().device)

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            with together():
                _distributed().wait_for_everyone()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by their means over the processes, see `unlearn.team.Team`."""
        if self.count > 1:
            with together():
                for tensor in tensors:
                    torch.distributed.all_reduce(tensor)
                    tensor.div_(self.count)

    def tell(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Replace tensors, in place, by those of process `owner`."""
        if self.count > 1:
            with together():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, owner)


@contextmanager
def together() -> Iterator[None]:
    """Around what needs all processes, among other things or alone.

    Raises:
        UserError: one of them has ended, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()  # NCCL raises a class of its own, gloo none
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in said and "connection" not in said:
            raise
        raise UserError(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0][:120]}): "
            "see what it said, then repeat the command with --resume"
        ) from None


def _distributed() -> Any:
    """accelerate's state; on the CPU where the launcher says so or there is nothing else, which it does not find out itself."""
    from accelerate import PartialState

    return PartialState(cpu=_says("ACCELERATE_USE_CPU") or not torch.cuda.is_available())


def _says(variable: str) -> bool:
    """Whether a launcher set a variable of the environment to true."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def resolve_device(device: str) -> str:
    """`auto` is CUDA, then Apple's GPU, then the CPU.

    Raises:
        UserError: the device named is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None
    return device


class PeakMemory:
    """How much memory is in use at most from here on: of a CUDA device what torch took there, else of this process.

    Within another's life it is a part of it: what the system counts is started afresh, and the other is told before.
    """

    _alive: ClassVar[list[PeakMemory]] = []

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.seen = 0
        for other in self._alive:
            other.seen = other._now()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self.start: int | None = torch.cuda.memory_allocated(device)
        else:
            self.start = _status("VmRSS")
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use
            except OSError:
                self.start = None
        self._alive.append(self)

    def total(self) -> int | None:
        """The peak so far, in bytes; None where the system does not say (not Linux). Ends the counting."""
        if self in self._alive:
            self.seen = self._now()
            self._alive.remove(self)
        return self.seen if self.start is not None else None

    def bytes(self) -> int | None:
        """The same beyond what was in use at the start."""
        total = self.total()
        return None if total is None or self.start is None else max(total - self.start, 0)

    def _now(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        return max(self.seen, peak or 0)


def _status(key: str) -> int | None:
    """A line of what Linux says of this process's memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def fetch(model: str, revision: str | None, wanted: list[str]) -> Path:
    """The directory of a hub model, fetched into the hub's cache: the files that match `wanted`.

    Raises:
        UserError: no such model, no network.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:  # huggingface_hub raises a dozen kinds; the first line says which
        named = f"{model}@{revision}" if revision else model
        if is_offline():
            raise UserError(f"--model {named} cannot be had from the hub: {offline(model)}") from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model {named} cannot be had from the hub ({reason}): check the id and the network, or name a local directory"
        ) from None


def is_offline() -> bool:
    """Whether the hub may not be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def offline(model: str) -> str:
    """Why a hub model is not here while the hub may not be asked, and what helps."""
    from huggingface_hub import constants

    return (
        f"HF_HUB_OFFLINE is set and it is not whole in the cache ({constants.HF_HUB_CACHE}): "
        f"unset it, fetch the model where there is a network (hf download {model}), or name a local directory"
    )


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (file or directory) and rename it to `path` when the block ends well.

    Raises:
        UserError: the disk refused (full, read-only); whatever stood at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        _replace(temporary, path)
    except (OSError, SafetensorError) as error:
        _remove(temporary)
        raise UserError(
            f"cannot write {path}: {_reason(error)}; free some space or choose another directory"
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def _replace(new: Path, path: Path) -> None:
    if new.is_dir() and path.exists():
        old = path.with_name(f".{path.name}.old")
        _remove(old)
        path.rename(old)
        new.rename(path)
        _remove(old)
    else:
        os.replace(new, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically."""
    with atomic(path) as new:
        new.write_text(text)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors atomically, readable as the user's umask says (save_file alone makes mode 0600)."""
    with atomic(path) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata)
        share(new)


def share(path: Path) -> None:
    """Give files the mode that the user's umask says."""
    umask = os.umask(0)
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~umask)


def read_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        UserError: missing or damaged file.
    """
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged ({_reason(error)}): delete it and run again") from None


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
        """An existing run.

        Raises:
            UserError: no such directory, or no readable manifest in it.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            return cls(
                path,
                {"settings": manifest["settings"], "source": manifest["source"], "stages": manifest["stages"]}
                | manifest,
            )
        except FileNotFoundError:
            raise UserError(f"{path} is not a run directory: it has no {MANIFEST}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
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
                f"--output-dir {path} holds a run with other settings ({flag(name)} {theirs.get(name)} there, {value} here): "
                "choose another --output-dir"
            )
    if not resume:
        raise UserError(f"--output-dir {path} holds this run already: add --resume to continue it, or choose another")
