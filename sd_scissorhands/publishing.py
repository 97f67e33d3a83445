"""A model on the hub: a run's, a diffusers directory or an exported file, with the card and what is to be said of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from .lineage import MANIFEST
from .models.delta import FORMAT, read_delta
from .models.hub import Repo
from .models.modelspec import DIFFUSERS, OWN, SPEC
from .models.source import Source
from .models.tensor_files import Stored
from .report import card_text
from .run import Progress, Run, silent
from .settings import UserError

CARD = "README.md"


def publish(path: Path, repo: Repo, *, source: Path | None = None, progress: Progress = silent) -> str:
    """Put a model on the hub in one commit; whatever happens, it stays whole here.

    Args:
        path: run directory, whose model goes as it is; diffusers directory; or exported file.
        source: what `path` was exported from: a run's card tells of it. None: nothing else.

    Returns:
        The repository's address.

    Raises:
        UserError: not whole, or the upload failed; says where the model is and how to repeat.
    """
    run, files = run_of(path, source or path), files_of(path)
    if run:
        files[CARD] = card_text(run, repo=repo.name, file=path.name, to=format_of(path)).encode(errors="replace")
    try:
        with progress("upload", 1):
            return repo.upload(files, message_of(run, path))
    except UserError as error:
        again = shlex.join(["sdscissor", "export", str(path), "--push-to-hub", repo.name, *["--public"] * repo.public])
        raise UserError(
            f"the upload failed ({error}); the model is whole in {place_of(path)}, repeat with: {again}"
        ) from None


def run_of(path: Path, source: Path) -> Path | None:
    """The run that a model comes from: `source`, or the directory around it; of an export, if it says so itself."""
    run = next((one for one in (source, source.parent) if (one / MANIFEST).exists()), None)
    if run is None or path in (run, run / "model"):
        return run
    told = Run.read(run).manifest.get("result") or {}
    return run if weights_told(path) == told.get("weights_sha256") else None


def weights_told(path: Path) -> str | None:
    """The hash of the denoiser that an export was made of, as its header has it."""
    file = Source.find(path).denoiser.file if path.is_dir() else Stored.open(path)
    if FORMAT in file.metadata:
        return read_delta(path).origin.result_sha256
    return file.metadata.get(f"{OWN}weights_sha256")


def place_of(path: Path) -> Path:
    """The model itself."""
    return path / "model" if (path / MANIFEST).exists() else path


def files_of(path: Path) -> dict[str, Path | bytes]:
    """What goes into the repository, by its name there.

    Raises:
        UserError: a directory that holds no whole model, or other weights than its run's; a file that is damaged.
    """
    if path.is_file():
        Stored.open(path)
        return {path.name: path}
    source = Source.find(path)
    source.check_weights()
    found = {file.relative_to(source.directory): file for file in source.directory.rglob("*") if file.is_file()}
    return {
        name.as_posix(): file for name, file in found.items() if not any(part.startswith(".") for part in name.parts)
    }


def format_of(path: Path) -> str:
    """Which of `settings.OUTPUT_FORMATS` a model is in."""
    if path.is_dir():
        return "diffusers"
    told = Stored.open(path).metadata
    if FORMAT in told:
        return "delta"
    return "unet-only" if told.get(f"{SPEC}implementation") == DIFFUSERS else "single-file"


def message_of(run: Path | None, path: Path) -> str:
    """The commit's: recipe, concept and seed."""
    result: dict[str, Any] = Run.read(run).manifest.get("result") or {} if run else {}
    if not result:
        return f"{path.name}, by sd_scissorhands"
    what = ", ".join(map(str, result.get("concepts") or ()))
    return f"{what} erased by sd_scissorhands ({result.get('recipe')}, seed {result.get('seed')})"
