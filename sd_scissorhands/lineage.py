"""The runs behind a model: a run may start from another run's result."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError
from .naming import Name, is_path
from .preset_check import PRESET_FILE, name_of
from .results.manifest import MANIFEST, Manifest

MOST_RUNS = 100  # runs behind a model, so that a manifest that names itself comes to an end


def run_of(model: Path) -> Manifest | None:
    """The manifest of the run that made a model; None if none did."""
    if model.name != "model" or not (model.parent / MANIFEST).exists():
        return None
    try:
        return Manifest.read(model.parent)
    except UserError:
        return None


def runs_behind(model: str) -> list[Manifest]:
    """The manifests of the runs that led to a model, the last first."""
    return [run for _, run in _behind(model)]


def _behind(model: str) -> list[tuple[Path, Manifest]]:
    """The same, each with its directory."""
    found: list[tuple[Path, Manifest]] = []
    while len(found) < MOST_RUNS and (run := run_of(Path(model))):
        found.append((Path(model).parent, run))
        model = str(started_from(run))
    return found


def base_of(model: str) -> str | None:
    """What a run's model was made from in the first place."""
    runs = runs_behind(model)
    return started_from(runs[-1]) if runs else None


def baseline_of(model: str) -> str | None:
    """The same, to be compared with.

    Raises:
        UserError: it lay on this machine and does so no more.
    """
    base = base_of(model)
    if base and Path(Name.parse(base).location).is_absolute() and not is_path(Name.parse(base).location):
        raise UserError(
            f"{model} was made from {base}, which is no longer there: say with --baseline where it lies now"
        )
    return base


def started_from(run: Manifest) -> str | None:
    """The model that a run started from, as one string; manifests of former versions give the revision apart."""
    model, revision = run.source.model, run.settings.get("revision")
    return f"{model}@{revision}" if model and revision else model


def erased_from(model: str) -> tuple[str, ...]:
    """Every concept that the runs behind a model erased, as --concept takes it: one of a user's own file by the run's copy of that.

    Raises:
        UserError: such a copy is no longer there.
    """
    runs = ((folder, run, run.erased) for folder, run in _behind(model))
    return tuple(_as_erased(name, folder, run) for folder, run, erased in runs if erased for name in erased.concepts)


def _as_erased(name: str, folder: Path, run: Manifest) -> str:
    """One of them."""
    given = run.settings.get("concepts")
    texts = map(str, given if isinstance(given, list) else ())
    files = {name_of(text): text for text in texts if text.endswith(PRESET_FILE)}
    if name not in files:
        return name
    copy = folder / f"{Path(name).name}{PRESET_FILE}"
    if not copy.exists():
        raise UserError(f"{copy}, the file by which {name!r} was erased, is gone: put it back, a copy of {files[name]}")
    return str(copy)


def meant(text: str, model: str) -> str:
    """What a user gives with --concept, or the run's copy where a run behind the model erased a file of that name.

    Raises:
        UserError: see `erased_from`.
    """
    return next((one for one in erased_from(model) if one.endswith(PRESET_FILE) and name_of(one) == text.strip()), text)
