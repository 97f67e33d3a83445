"""Uploading a model to the hub: a run's, a diffusers directory or an exported file, with its card."""

from __future__ import annotations

import shlex
from pathlib import Path

from .models.delta import FORMAT, read_delta
from .models.hub import Repo
from .models.locate import find_pipeline
from .models.modelspec import DIFFUSERS, OWN, SPEC
from .models.tensor_files import TensorFile
from .report import card_text
from .results.manifest import MANIFEST, Manifest
from .run import Progress, silent
from .settings import UserError

CARD = "README.md"


def publish(path: Path, repo: Repo, *, source: Path | None = None, progress: Progress = silent) -> str:
    """Upload a model to the hub in one commit; whatever happens, it stays whole here.

    Args:
        path: run directory, whose model goes as it is; diffusers directory; or exported file.
        source: what `path` was exported from: a run's card describes it. None: nothing else.

    Returns:
        The repository's address.

    Raises:
        UserError: not whole, or the upload failed; the message names the model and how to repeat.
    """
    run, files = run_behind(path, source or path), files_of(path)
    if run:
        files[CARD] = card_text(run, repo=repo.name, file=path.name, to=format_of(path)).encode(errors="replace")
    try:
        with progress("upload", 1):
            return repo.upload(files, commit_message(run, path))
    except UserError as error:
        again = shlex.join(["sdscissor", "export", str(path), "--push-to-hub", repo.name, *["--public"] * repo.public])
        model = path / "model" if (path / MANIFEST).exists() else path
        raise UserError(f"the upload failed ({error}); the model is whole in {model}, repeat with: {again}") from None


def run_behind(path: Path, source: Path) -> Path | None:
    """The run that a model comes from: `source`, or the directory around it; of an export, if its header names that run's weights."""
    run = next((one for one in (source, source.parent) if (one / MANIFEST).exists()), None)
    if run is None or path in (run, run / "model"):
        return run
    erased = Manifest.read(run).erased
    return run if erased and erased.weights_sha256 == weights_in_header(path) else None


def weights_in_header(path: Path) -> str | None:
    """The hash of the denoiser that an export was made of, as its header has it."""
    file = find_pipeline(path).denoiser.files[0] if path.is_dir() else TensorFile.open(path)
    if FORMAT in file.metadata:
        return read_delta(path).origin.result_sha256
    return file.metadata.get(f"{OWN}weights_sha256")


def files_of(path: Path) -> dict[str, Path | bytes]:
    """The files that are uploaded, by their names in the repository.

    Raises:
        UserError: a directory that holds no whole model, or other weights than its run's; a file that is damaged.
    """
    if path.is_file():
        TensorFile.open(path)
        return {path.name: path}
    model = find_pipeline(path)
    model.check_weights()
    files = {file.relative_to(model.directory): file for file in model.directory.rglob("*") if file.is_file()}
    return {
        name.as_posix(): file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)
    }


def format_of(path: Path) -> str:
    """Which of `settings.OUTPUT_FORMATS` a model is in."""
    if path.is_dir():
        return "diffusers"
    metadata = TensorFile.open(path).metadata
    if FORMAT in metadata:
        return "delta"
    return "unet-only" if metadata.get(f"{SPEC}implementation") == DIFFUSERS else "single-file"


def commit_message(run: Path | None, path: Path) -> str:
    """Recipe, concept and seed."""
    erased = Manifest.read(run).erased if run else None
    if not erased:
        return f"{path.name}, by sd_scissorhands"
    return f"{', '.join(erased.concepts)} erased by sd_scissorhands ({erased.recipe}, seed {erased.seed})"
