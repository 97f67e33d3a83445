"""Where a model's files lie, by the one string that names it: embedded, a directory, a single file, or on the hub."""

from __future__ import annotations

from pathlib import Path

from ..domains import domain_of
from ..domains.base import Domain
from ..errors import UserError
from ..lineage import run_of
from ..naming import Name, check_model, model_flag
from ..results.manifest import MANIFEST
from ..run import Run
from ..tiny import MODEL_DIR
from .hub import fetch, is_offline, not_cached
from .pipeline_directory import PipelineDirectory, config_patterns, markers, weight_file_names
from .single_file_reader import convert, converted_directory


def locate(model: str, config: str | None = None) -> PipelineDirectory:
    """The files of a model: on this machine, or fetched from the hub into its cache.

    Args:
        config: for a single file: a pipeline of its family, directory or hub id; None: inferred.

    Raises:
        UserError: a path that does not exist, a single file that cannot be read, or a hub id that cannot be fetched.
    """
    return locate_here(model, config) or _fetch(Name.parse(model))


def locate_here(model: str, config: str | None = None) -> PipelineDirectory | None:
    """The files of a model that is on this machine, a single file converted; None for a hub id (owner/name).

    Raises:
        UserError: a path that does not exist, or a single file that cannot be read.
    """
    name = Name.parse(model)
    path = MODEL_DIR if name.location == "tiny" else Path(name.location).expanduser()
    if path.exists() and name.revision:
        raise UserError(f"--model {model} lies on this machine and has no revisions: leave out @{name.revision}")
    if path.is_file():
        if name.variant:
            raise UserError(f"--model {model} is a single file, which has no variants: leave out {name.variant}")
        return convert(path, _config_directory(config) if config else None, config)
    if config:
        raise UserError(f"--model-config {config} is for a single file, and --model {model} is none: leave it out")
    if path.exists():
        return PipelineDirectory(path, name.variant or _variant_of_run(path))
    check_model(model)
    return None


def _variant_of_run(path: Path) -> str | None:
    """The variant of the base that a run's model was made from, if its files have that name as the base's have."""
    run = run_of(path)
    variant = run and run.source.model and Name.parse(run.source.model).variant
    return variant if variant and any(path.glob(f"*/*.{variant}*")) else None


def locate_without_work(model: str) -> PipelineDirectory | None:
    """The whole files of a model if nothing need be fetched or converted for it; None otherwise."""
    from huggingface_hub import snapshot_download

    name = Name.parse(model)
    try:
        if (file := Path(name.location).expanduser()).is_file():
            return converted_directory(file)
        if found := locate_here(model):
            return found
        cached = Path(snapshot_download(name.location, revision=name.revision, local_files_only=True))
        files = PipelineDirectory(cached, name.variant)
        files.check()  # the cache may hold a part of it
    except Exception:  # of a dozen kinds, all of which mean that it is not here
        return None
    return files


def domain_of_model(model: str, config: str | None = None) -> Domain:
    """The domain of a model that is on this machine; a hub id is of no special one.

    Raises:
        UserError: see `locate_here`.
    """
    found = locate_here(model, config)
    return domain_of(found.directory if found else None)


def profile_of_model(model: str, config: str | None = None) -> str:
    """Which of `recipes.PROFILES` fits a model that is on this machine; a hub id counts as large.

    Raises:
        UserError: see `locate_here`.
    """
    found = locate_here(model, config)
    return found.profile if found else "large"


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
        files = locate(str(name))
    files.check()
    return files


def _config_directory(config: str) -> PipelineDirectory:
    """The directory of the pipeline whose configs a single file is converted with."""
    name = Name.parse(config)
    if Path(name.location).expanduser().is_file():
        raise UserError(f"--model-config {config} is a file: name a diffusers directory or a hub id")
    with model_flag("--model-config"):
        return locate_here(config) or PipelineDirectory(fetch(name.location, name.revision, config_patterns()))


# ---------------------------------------------------------------- the hub


def _fetch(name: Name) -> PipelineDirectory:
    """The index and the configs first, so that what is not supported is not downloaded; then a variant, and without one the rest."""
    few = ["README.md", "model_index.json", *markers(), "*/config.json", "scheduler/*"]
    files = PipelineDirectory(fetch(name.location, name.revision, few), name.variant)
    try:
        files.check_configs()
        plain = list(dict.fromkeys([*files.component_names, *files.networks]))  # and what is only carried over
        if name.variant:
            patterns = {component: _weight_patterns(component, name.variant) for component in plain}
            fetch(name.location, name.revision, [one for found in patterns.values() for one in found])
            plain = [one for one in plain if not any(any(files.directory.glob(found)) for found in patterns[one])]
        rest = [pattern for component in plain for pattern in _weight_patterns(component)]
        fetch(name.location, name.revision, [*few, "tokenizer*/*", "feature_extractor/*", *rest])
        files.check()
    except UserError as error:
        raise UserError(_with_hub_name(str(error), files.directory, name)) from None
    return files


def _weight_patterns(component: str, variant: str | None = None) -> list[str]:
    one, index, shards = weight_file_names(component, variant)
    return [f"{component}/{name}" for name in (one, index, *shards)]


def _with_hub_name(message: str, directory: Path, name: Name) -> str:
    """An error about fetched files, with the hub's name instead of the cache's."""
    renamed = message.replace(str(directory), str(name))
    if is_offline() and ("is missing" in message or "has no" in message):
        return f"{renamed}; {not_cached(name.location)}"
    return f"{renamed} on the hub" if message.endswith("is incomplete") else renamed
