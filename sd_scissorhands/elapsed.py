"""How long a measurement takes over all its starts: what a killed one took before counts too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .disk import write_json
from .files import read_json
from .machine import Processes
from .run import Progress

FILE = "seconds.json"  # in the measurement's folder
EVERY = 5.0  # seconds after which it is written again


class Elapsed:
    """Counts seconds from here on, and those that the folder has of earlier starts."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._file, self._main = folder / FILE, processes.main
        self._began = self._written = time.monotonic()
        self._earlier = 0.0
        # No file, or a damaged one: it is a figure, for which nothing is stopped.
        with suppress(OSError, ValueError, TypeError, OverflowError):
            earlier = float(read_json(self._file))
            self._earlier = earlier if 0 <= earlier < math.inf else 0.0

    def end(self) -> float:
        """The seconds so far, written down."""
        return self._write(time.monotonic())

    def during(self, progress: Progress) -> Progress:
        """The same progress, which writes the seconds down as it goes."""

        @contextmanager
        def shown(stage: str, total: int) -> Iterator[Callable[[int], None]]:
            with progress(stage, total) as tick:

                def ticked(count: int) -> None:
                    tick(count)
                    if (now := time.monotonic()) - self._written > EVERY:
                        self._write(now)

                yield ticked

        return shown

    def _write(self, now: float) -> float:
        seconds, self._written = round(self._earlier + now - self._began, 2), now
        if self._main:
            write_json(self._file, seconds)
        return seconds
