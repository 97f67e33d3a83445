"""What the terminal shows: progress and tables on stderr, results on stdout, JSON alone when asked for."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .quiet import LIBRARIES, bars, is_small, silenced
from .results.base import Record
from .run import Progress, silent
from .terminal import console, lines
from .views import view

UNREADABLE_LISTED = 20  # files that could not be read; summary.json names all


def still_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if console.is_terminal else "1")
    warnings.filterwarnings("ignore")
    for library in LIBRARIES:
        silenced(library)


def one_thread_if_small(model: str) -> None:
    """The embedded model is fastest on one thread: its layers are too small to share."""
    import torch

    if is_small(model):
        torch.set_num_threads(1)


def progress(quiet: bool) -> Progress:
    """Bars with time left on a terminal, nothing elsewhere; what stops a stage is noted where that was."""
    shown = bars if console.is_terminal and not quiet else silent

    @contextmanager
    def noted(stage: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            show(count)

        with shown(stage, total) as show:
            try:
                yield tick
            except BaseException as stopped:
                stopped.add_note(f"in {stage}, at {done} of {total}")
                raise

    return noted


def values(values: Mapping[str, Any], as_json: bool) -> None:
    """A few named values: JSON on stdout, or a line each on stderr."""
    return print(json.dumps(values)) if as_json else lines(values)


def note(text: str) -> None:
    """A line that says what was not done."""
    lines({"note": text})


def with_unet(model: str, unet: Path | None) -> str:
    """The name of a model with the UNet of a file, if one is named, and a line on what it took of it."""
    from .models import composed

    made = composed.with_unet(model, str(unet)) if unet else model
    origin(made)
    return made


def origin(model: str | None) -> None:
    """A line on what a model took of another file, if it did."""
    from .models.composed import origin_of

    lines({"unet": origin_of(model) if model else None})


# ---------------------------------------------------------------- results


def result(result: Record, as_json: bool) -> None:
    """A result: one JSON object on stdout, figures at its top level too, or tables and lines on stderr."""
    if not as_json:
        view(result)
        for remark in (*getattr(result, "unreadable", ())[:UNREADABLE_LISTED], *getattr(result, "remarks", ())):
            console.print(remark, highlight=False, soft_wrap=True)
        return
    print(json.dumps(plain(result)))


def plain(result: Record) -> dict[str, Any]:
    """A result as JSON on stdout has it: its figures at the top level, too, and no samples."""
    values = result.to_json()
    values.pop("samples", None)
    return values | values.get("figures", {})
