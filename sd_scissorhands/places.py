"""Default output directories, and that of the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .lineage import run_of
from .preset_check import name_of
from .settings import EraseSettings, ForgetSettings

RUNS = Path("runs")


def erasure_directory(settings: EraseSettings) -> Path:
    """runs/MODEL-CONCEPTS-seedN."""
    return RUNS / f"{file_name(Path(settings.model).name, *map(name_of, settings.concepts))}-seed{settings.seed}"


def forgetting_directory(settings: ForgetSettings) -> Path:
    """runs/MODEL-WHAT-RECIPE-seedN."""
    chosen = settings.forget_class or Path(settings.forget_indices or f"random-{settings.forget_random}").stem
    return RUNS / f"{file_name(Path(settings.model).name, chosen, settings.recipe)}-seed{settings.seed}"


def measurement_directory(folder: str, model: str, what: str, concept: str = "") -> Path:
    """`folder`/WHAT beside the run that the model belongs to, with the concept unless it is the run's first; else under runs/."""
    path = Path(model)
    run = run_of(path)
    if not run:
        return RUNS / file_name(folder, path.name, what, *filter(None, [concept]))
    first = next(iter(run.erased.concepts if run.erased else ()), concept)
    return path.parent / folder / (what if concept in ("", first) else file_name(what, concept))


def cache_root() -> Path:
    """Where the package keeps what it can make again, under HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "sd_scissorhands"


def file_name(*parts: str) -> str:
    """Words as a name that every file system takes."""
    return short_name("".join(c if c.isalnum() or c in "-._" else "-" for c in "-".join(parts).lower()))


def short_name(name: str, most: int = 80) -> str:
    """A name of `most` bytes at the most, of which file systems count 255: a longer one is cut, and ends with a hash of it."""
    if len(name.encode()) <= most:
        return name
    return name.encode()[: most - 9].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
