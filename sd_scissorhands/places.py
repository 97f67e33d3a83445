"""Where results go when nobody says."""

from __future__ import annotations

from pathlib import Path

from .lineage import run_of
from .settings import EraseSettings, ForgetSettings

RUNS = Path("runs")


def place_of_erasure(settings: EraseSettings) -> Path:
    """runs/MODEL-CONCEPTS-seedN."""
    return RUNS / f"{file_name(Path(settings.model).name, *settings.concepts)}-seed{settings.seed}"


def place_of_forgetting(settings: ForgetSettings) -> Path:
    """runs/MODEL-WHAT-RECIPE-seedN."""
    chosen = settings.forget_class or Path(settings.forget_indices or f"random-{settings.forget_random}").stem
    return RUNS / f"{file_name(Path(settings.model).name, chosen, settings.recipe)}-seed{settings.seed}"


def place_of_proof(room: str, model: str, what: str, concept: str = "") -> Path:
    """`room`/WHAT beside the run that the model belongs to, with the concept unless it is the run's first; else under runs/."""
    path = Path(model)
    run = run_of(path)
    if not run:
        return RUNS / file_name(room, path.name, what, *filter(None, [concept]))
    first = next(iter((run.result or {}).get("concepts") or [concept]))
    return path.parent / room / (what if concept in ("", first) else file_name(what, concept))


def file_name(*parts: str) -> str:
    """Words as a name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in "-".join(parts).lower())[:80]
