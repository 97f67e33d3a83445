"""The machine that a command runs on: the processes that share the work, their device, and their memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import UserError, reason
from .methods.distributed import ProcessGroup


@dataclass(frozen=True)
class Processes(ProcessGroup):
    """The processes that share one command's work, as `accelerate launch` or `torchrun` started them."""

    @classmethod
    def here(cls) -> Processes:
        """This process among those of the launcher; one alone without a launcher.

        Raises:
            UserError: the launcher asks for sharded weights, or starts more processes than there are GPUs.
        """
        for name in ("DEEPSPEED", "FSDP"):
            if _is_set(f"ACCELERATE_USE_{name}"):
                raise UserError(f"{name} is not supported: launch with --multi_gpu instead")
        if process_count() == 1:
            return cls()
        here, gpus = process_count("LOCAL_WORLD_SIZE"), torch.cuda.device_count()
        if here > gpus > 0 and not _is_set("ACCELERATE_USE_CPU"):
            raise UserError(f"{here} processes for {gpus} GPU: launch with --num_processes {gpus}, or with --cpu")
        state = accelerate_state()
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.index == 0

    def device(self, name: str) -> str:
        """The device of this process: with several, `auto` is each one's own."""
        return name if self.count == 1 or name != "auto" else str(accelerate_state().device)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            state = accelerate_state()
            with collective():  # accelerate names a GPU for each process on the CPU too, where there is one
                state.wait_for_everyone() if state.device.type == "cuda" else torch.distributed.barrier()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """See `ProcessGroup`."""
        if self.count > 1:
            with collective():
                for tensor in tensors:
                    torch.distributed.all_reduce(tensor)
                    tensor.div_(self.count)

    def broadcast(self, tensors: Sequence[Tensor], owner: int) -> None:
        """See `ProcessGroup`."""
        if self.count > 1:
            with collective():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, owner)


@contextmanager
def collective() -> Iterator[None]:
    """Wrap collective calls; report a dead peer in one line.

    Raises:
        UserError: another process has ended, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)  # NCCL raises a class of its own, gloo none
        of_gloo = any(word in message.lower() for word in ("gloo", "connection"))
        if not isinstance(error, torch.distributed.DistError) and not of_gloo:
            raise
        raise UserError(
            f"another process of this run has ended or cannot be reached ({message.splitlines()[0][:120]}): "
            "see its output, then repeat the command with --resume"
        ) from None


def accelerate_state() -> Any:
    """accelerate's state; on the CPU where the launcher asks for it or there is nothing else, which it does not find out itself.

    Raises:
        UserError: WORLD_SIZE is set, and not by a launcher, which says more than that.
    """
    from accelerate import PartialState

    try:
        return PartialState(cpu=_is_set("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE={process_count()} and no whole launcher's environment ({str(error)[:120]}): unset it, or start with "
            "accelerate launch or torchrun"
        ) from None


def _is_set(variable: str) -> bool:
    """Whether a launcher set a variable of the environment to true."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def process_count(variable: str = "WORLD_SIZE") -> int:
    """How many processes a launcher says that there are; 1 without one.

    Raises:
        UserError: its variable of the environment holds no such number.
    """
    text = os.environ.get(variable, "1")
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 7 and int(text)):
        raise UserError(
            f"{variable}={text} is no number of processes: unset it, or start with accelerate launch or torchrun"
        )
    return int(text)


def resolve_device(device: str) -> str:
    """`auto` is CUDA, then Apple's GPU, then the CPU, which a launcher can ask for.

    Raises:
        UserError: the device named is not there.
    """
    if device == "auto":
        if _is_set("ACCELERATE_USE_CPU"):
            return "cpu"
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()  # meta and other devices that hold no values are none
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise UserError(f"--device {device} cannot be used ({reason(error)}): choose cuda, mps, cpu or auto") from None
    return device


def machine_facts(device: torch.device) -> list[Any]:
    """What the rounding of a computation on a device depends on, beside its inputs and the libraries; plain JSON values."""
    if device.type == "cpu":
        return ["cpu", processor(), torch.get_num_threads()]
    return [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type]


def processor() -> str:
    """The kind of CPU, each of which rounds in its own way: vendor, family and model on Linux, and what torch uses of it."""
    cpuinfo, kind = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if cpuinfo.exists():
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        fields = {
            name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())
        }
        kind = " ".join(fields[name] for name in ("vendor_id", "cpu family", "model") if name in fields) or kind
    return f"{kind} {torch.backends.cpu.get_cpu_capability()}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PeakMemory:
    """How much memory is in use at most from here on: of a CUDA device what torch took there, else of this process.

    Counts may be nested: an inner one resets the system's counter, whose value the outer ones take first.
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
        """The peak so far, in bytes; None where the system does not count it (not Linux). Ends the counting."""
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
    """An entry of Linux's account of this process's memory, in bytes; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)
