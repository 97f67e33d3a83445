"""Where a model's files lie, by the one string that names it: embedded, a directory, a single file, or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..domains import domain_of
from ..domains.base import Domain
from ..naming import Name, model_flag
from ..results.manifest import MANIFEST
from ..run import Run
from ..settings import UserError
from ..tiny import MODEL_DIR
from .files import check_configs, check_directory, components_of, file_names, markers
from .hub import fetch, is_offline, not_cached
from .pipeline_directory import PipelineDirectory
from .single_file_reader import config_patterns, convert, converted_directory


class ModelLocation(NamedTuple):
    """A pipeline directory, and which of its weights are meant."""

    directory: Path
    variant: str | None = None


def locate(model: str, config: str | None = None) -> ModelLocation:
    """The directory of a model: on this machine, or fetched from the hub into its cache.

    Args:
        config: for a single file: a pipeline of its family, directory or hub id; None: inferred.

    Raises:
        UserError: a path that does not exist, a single file that cannot be read, or a hub id that cannot be fetched.
    """
    return locate_here(model, config) or _fetch(Name.parse(model))


def locate_here(model: str, config: str | None = None) -> ModelLocation | None:
    """The directory of a model that is on this machine, a single file converted; None for a hub id (owner/name).

    Raises:
        UserError: a path that does not exist, or a single file that cannot be read.
    """
    name = Name.parse(model)
    path = MODEL_DIR if name.place == "tiny" else Path(name.place).expanduser()
    if path.exists() and name.revision:
        raise UserError(f"--model {model} lies on this machine and has no revisions: leave out @{name.revision}")
    if path.is_file():
        if name.variant:
            raise UserError(f"--model {model} is a single file, which has no variants: leave out {name.variant}")
        return ModelLocation(convert(path, _config_directory(config), config) if config else convert(path))
    if config:
        raise UserError(f"--model-config {config} is for a single file, and --model {model} is none: leave it out")
    if path.exists():
        return ModelLocation(path, name.variant)
    if model.startswith((".", "/", "~")) or name.place.count("/") != 1:
        raise UserError(
            f"--model {model} does not exist: name a diffusers directory, a .safetensors file, a hub id (owner/name), or tiny"
        )
    return None


def locate_without_work(model: str) -> ModelLocation | None:
    """The whole directory of a model if nothing need be fetched or converted for it; None otherwise."""
    from huggingface_hub import snapshot_download

    name = Name.parse(model)
    try:
        if (file := Path(name.place).expanduser()).is_file():
            folder = converted_directory(file)
            return ModelLocation(folder) if folder else None
        if found := locate_here(model):
            return found
        cached = Path(snapshot_download(name.place, revision=name.revision, local_files_only=True))
        check_directory(cached, name.variant)  # the cache may hold a part of it
    except Exception:  # of a dozen kinds, all of which mean that it is not here
        return None
    return ModelLocation(cached, name.variant)


def domain_of_model(model: str, config: str | None = None) -> Domain:
    """The domain of a model that is on this machine; a hub id is of no special one.

    Raises:
        UserError: see `locate_here`.
    """
    found = locate_here(model, config)
    return domain_of(found.directory if found else None)


def convert_single_files(config: str | None, *models: str | None) -> None:
    """Convert the single files among some models with these configs, so that their names alone find them from now on.

    Raises:
        UserError: none is a single file, or see `locate`.
    """
    files = [model for model in models if model and Path(model).expanduser().is_file()]
    if config and not files:
        raise UserError(f"--model-config {config} is for single files, and no model here is one: leave it out")
    for model in files if config else ():
        locate(model, config)


def find_pipeline(name: str | Path) -> PipelineDirectory:
    """The files of a model that a run directory or any other name of a model means.

    Raises:
        UserError: no such thing, not finished, or not whole.
    """
    path = Path(name)
    if (path / MANIFEST).exists():
        run = Run.read(path)
        if not run.manifest.of_erasure:
            raise UserError(f"{path} is no run of sdscissor erase: this is for diffusion models")
        if not run.done("model"):
            raise UserError(f"{path} is a run that has not ended: continue it with erase --resume")
        name = path / "model"
    with model_flag():
        location = locate(str(name))
    check_directory(*location)
    return PipelineDirectory(*location)


def _config_directory(config: str) -> Path:
    """The directory of the pipeline whose configs a single file is converted with."""
    name = Name.parse(config)
    if Path(name.place).expanduser().is_file():
        raise UserError(f"--model-config {config} is a file: name a diffusers directory or a hub id")
    with model_flag("--model-config"):
        found = locate_here(config)
        return found.directory if found else fetch(name.place, name.revision, config_patterns())


# ---------------------------------------------------------------- the hub


def _fetch(name: Name) -> ModelLocation:
    """The index and the configs first, so that what is not supported is not downloaded; then a variant, and without one the rest."""
    few = ["README.md", "model_index.json", *markers(), "*/config.json", "scheduler/*"]
    directory = fetch(name.place, name.revision, few)
    try:
        plain = components_of(directory, check_configs(directory))
        if name.variant:
            patterns = {component: _weight_patterns(component, name.variant) for component in plain}
            fetch(name.place, name.revision, [one for found in patterns.values() for one in found])
            plain = [one for one in plain if not any(any(directory.glob(pattern)) for pattern in patterns[one])]
        rest = [pattern for component in plain for pattern in _weight_patterns(component)]
        directory = fetch(name.place, name.revision, [*few, "tokenizer*/*", *rest])
        check_directory(directory, name.variant)
    except UserError as error:
        raise UserError(_with_hub_name(str(error), directory, name)) from None
    return ModelLocation(directory, name.variant)


def _weight_patterns(component: str, variant: str | None = None) -> list[str]:
    one, index, shards = file_names(component, variant)
    return [f"{component}/{name}" for name in (one, index, *shards)]


def _with_hub_name(message: str, directory: Path, name: Name) -> str:
    """An error about fetched files, with the hub's name instead of the cache's."""
    renamed = message.replace(str(directory), str(name))
    if is_offline() and ("is missing" in message or "has no" in message):
        return f"{renamed}; {not_cached(name.place)}"
    return f"{renamed} on the hub" if message.endswith("is incomplete") else renamed
