"""Where a model's files lie, by the one string that names it: embedded, a directory, a single file, or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..domains import domain_of
from ..domains.base import Domain
from ..naming import Name
from ..settings import UserError
from ..tiny import MODEL_DIR
from .files import WORLD_FILE, check_configs, check_directory, file_names, parts_of
from .hub import fetch, is_offline, offline
from .single_file_reader import CONFIGS, converted, directory_of


class Place(NamedTuple):
    """A pipeline directory, and which of its weights are meant."""

    directory: Path
    variant: str | None = None


def locate(model: str, config: str | None = None) -> Place:
    """The directory of a model: on this machine, or fetched from the hub into its cache.

    Args:
        config: for a single file: a pipeline of its family, directory or hub id; None: inferred.

    Raises:
        UserError: a path that is not there, a single file that cannot be read, or a hub id that cannot be had.
    """
    return here(model, config) or _fetch(Name.parse(model))


def here(model: str, config: str | None = None) -> Place | None:
    """The directory of a model that is on this machine, a single file converted; None for a hub id (owner/name).

    Raises:
        UserError: a path that is not there, or a single file that cannot be read.
    """
    name = Name.parse(model)
    path = MODEL_DIR if name.place == "tiny" else Path(name.place).expanduser()
    if path.exists() and name.revision:
        raise UserError(f"--model {model} lies on this machine and has no revisions: leave out @{name.revision}")
    if path.is_file():
        if name.variant:
            raise UserError(f"--model {model} is a single file, which has no variants: leave out {name.variant}")
        return Place(_of_file(path, config))
    if config:
        raise UserError(f"--model-config {config} is for a single file, and --model {model} is none: leave it out")
    if path.exists():
        return Place(path, name.variant)
    if model.startswith((".", "/", "~")) or name.place.count("/") != 1:
        raise UserError(
            f"--model {model} does not exist: name a diffusers directory, a .safetensors file, a hub id (owner/name), or tiny"
        )
    return None


def domain_of_model(model: str, config: str | None = None) -> Domain:
    """The domain of a model that is on this machine; a hub id is of no special one.

    Raises:
        UserError: see `here`.
    """
    found = here(model, config)
    return domain_of(found.directory if found else None)


def at_hand(model: str) -> Place | None:
    """The whole directory of a model if nothing need be fetched or converted for it; None otherwise."""
    from huggingface_hub import snapshot_download

    name = Name.parse(model)
    try:
        if (file := Path(name.place).expanduser()).is_file():
            folder = converted(file)
            return Place(folder) if folder else None
        if there := here(model):
            return there
        found = Path(snapshot_download(name.place, revision=name.revision, local_files_only=True))
        check_directory(found, name.variant)  # the cache may hold a part of it
    except Exception:  # of a dozen kinds, all of which say that it is not here
        return None
    return Place(found, name.variant)


def convert_first(config: str | None, *models: str | None) -> None:
    """Convert the single files among some models with these configs: whoever opens them by name finds them converted.

    Raises:
        UserError: none is a single file, or see `locate`.
    """
    files = [model for model in models if model and Path(model).expanduser().is_file()]
    if config and not files:
        raise UserError(f"--model-config {config} is for single files, and no model here is one: leave it out")
    for model in files if config else ():
        locate(model, config)


def _of_file(path: Path, config: str | None) -> Path:
    """A single file as a directory."""
    return directory_of(path, _configs(config), config) if config else directory_of(path)


def _configs(config: str) -> Path:
    name = Name.parse(config)
    if Path(name.place).expanduser().is_file():
        raise UserError(f"--model-config {config} is a file: name a diffusers directory or a hub id")
    try:
        place = here(config)
        return place.directory if place else fetch(name.place, name.revision, list(CONFIGS))
    except UserError as error:
        raise UserError(str(error).replace("--model ", "--model-config ", 1)) from None


def _fetch(name: Name) -> Place:
    """The index and the configs first, so that what is not supported is not downloaded; then a variant, and without one the rest."""
    few = ["README.md", "model_index.json", WORLD_FILE, "*/config.json", "scheduler/*"]
    directory = fetch(name.place, name.revision, few)
    try:
        parts = parts_of(directory, check_configs(directory))
        if name.variant:
            fetch(name.place, name.revision, [one for part in parts for one in _patterns(part, name.variant)])
        plain = [part for part in parts if not (name.variant and any(_there(directory, part, name.variant)))]
        directory = fetch(
            name.place, name.revision, [*few, "tokenizer*/*", *(one for part in plain for one in _patterns(part))]
        )
        check_directory(directory, name.variant)
    except UserError as error:
        raise UserError(_of_hub(str(error), directory, name)) from None
    return Place(directory, name.variant)


def _patterns(part: str, variant: str | None = None) -> list[str]:
    one, index, shards = file_names(part, variant)
    return [f"{part}/{name}" for name in (one, index, *shards)]


def _there(directory: Path, part: str, variant: str) -> list[Path]:
    return [file for pattern in _patterns(part, variant) for file in directory.glob(pattern)]


def _of_hub(said: str, directory: Path, name: Name) -> str:
    """What is wrong with fetched files, with the hub's name instead of the cache's."""
    told = said.replace(str(directory), str(name))
    if is_offline() and ("is missing" in said or "has no" in said):
        return f"{told}; {offline(name.place)}"
    return f"{told} on the hub" if said.endswith("is incomplete") else told
