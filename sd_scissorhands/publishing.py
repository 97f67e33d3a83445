"""Uploading a model to the hub: a run's, a diffusers directory or an exported file, with its card."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from .errors import UserError
from .models.addon import change_in
from .models.delta import FORMAT, read_delta
from .models.hub import Repo
from .models.locate import find_pipeline
from .models.modelspec import DIFFUSERS, OWN, SPEC
from .models.shareable import check_text, files_of_model, without_paths
from .models.tensor_files import TensorFile
from .report import card_text
from .results.manifest import MANIFEST, Manifest
from .run import Progress, silent

CARD = "README.md"


def publish(
    path: Path,
    repo: Repo,
    *,
    source: Path | None = None,
    progress: Progress = silent,
    on_skipped: Callable[[str], None] = lambda line: None,
) -> str:
    """Upload a model to the hub in one commit, without paths of this machine; whatever happens, it stays whole here.

    Args:
        path: run directory, whose model goes as it is; diffusers directory; or exported file.
        source: what `path` was exported from: a run's card describes it. None: nothing else.
        on_skipped: called with a line on what lies in the model's directory and is no part of it.

    Returns:
        The repository's address.

    Raises:
        UserError: not whole, or the upload failed; the message names the model and how to repeat.
    """
    run, (files, strays) = run_behind(path, source or path), files_of(path)
    if strays:
        on_skipped(f"no part of the model, not uploaded: {', '.join(strays[:3])}{' and more' * (len(strays) > 3)}")
    if run:
        card = card_text(run, repo=repo.name, file=path.name, to=format_of(path))
        check_text(CARD, card)
        files[CARD] = card.encode(errors="replace")
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


def files_of(path: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """The files that are uploaded, by their names in the repository, and the names of those that are not the model's.

    Raises:
        UserError: a directory that holds no whole model, or other weights than its run's; a file that is damaged; a
            path of this machine in what would be uploaded.
    """
    if path.is_file():
        TensorFile.open(path)
        return {path.name: without_paths(path.name, path)}, []
    model = find_pipeline(path)
    model.check_weights()
    files, strays = files_of_model(model)
    rewritten = model.manifest is not None  # its card is, see `publish`
    return {
        name: file if name == CARD and rewritten else without_paths(name, file) for name, file in files.items()
    }, strays


def format_of(path: Path) -> str:
    """Which of `settings.OUTPUT_FORMATS` a model is in."""
    if path.is_dir():
        return "diffusers"
    metadata = TensorFile.open(path).metadata
    if change := change_in(metadata):
        return "delta" if change == "a delta" else "lycoris"
    return "unet-only" if metadata.get(f"{SPEC}implementation") == DIFFUSERS else "single-file"


def commit_message(run: Path | None, path: Path) -> str:
    """Recipe, concept and seed."""
    erased = Manifest.read(run).erased if run else None
    if not erased:
        return f"{path.name}, by sd_scissorhands"
    return f"{', '.join(erased.concepts)} erased by sd_scissorhands ({erased.recipe}, seed {erased.seed})"
