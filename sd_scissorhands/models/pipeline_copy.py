"""A pipeline directory made of another one: everything is copied byte for byte but what changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import share
from ..domains import domain_of
from ..settings import UserError
from .pipeline_directory import Component, PipelineDirectory, weight_file_names
from .tensor_files import TensorToWrite, cast, write_tensor_file

CONFIGS = (".json", ".txt", ".model")  # the endings of configs and of what tokenizers consist of
PT = {"format": "pt"}  # without which transformers reads no file
SUM = "sdscissor.hash_sha256"  # in a header: the hash of the tensors
LISTED = 3  # names of files in a sentence
SAFETY = ("safety_checker", "feature_extractor")  # of which diffusers takes both or none


def copy_pipeline(files: PipelineDirectory, folder: Path, *, without: tuple[str, ...]) -> str | None:
    """Copy a pipeline's parts byte for byte: of weights those that its variant means, in their files and shards.

    Copied are the folders that model_index.json names, and in them configs, tokenizers and safetensors. The index loses
    the path that it may hold, and a part that cannot be carried over.

    Args:
        without: parts whose weights are left to `write_component`; their configs are copied.

    Returns:
        One sentence about what of the pipeline's parts was not carried over; None where everything was.
    """
    folder.mkdir()
    index, left_out = dict(files.index), list[str]()
    index.pop("_name_or_path", None)
    lost = {name: why for name in files.parts if (why := _obstacle(files, name))}
    if lost.keys() & set(SAFETY):
        lost |= {name: lost.get(name, "goes with the other") for name in SAFETY if name in files.parts}
    for name in files.parts:
        if name in lost:
            index[name] = [None, None]
            left_out.append(f"{name} ({lost[name]})")
        else:
            left_out += _copy_part(files, name, folder / name, weights=name not in without)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if marker := domain_of(files.directory).marker:
        shutil.copyfile(files.directory / marker, folder / marker)
    share(folder)
    more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
    return f"not carried over from the base: {', '.join(left_out[:LISTED])}{more}" if left_out else None


def _obstacle(files: PipelineDirectory, name: str) -> str | None:
    """Why a part of a pipeline cannot be copied; None if it can."""
    if not (files.directory / name).is_dir():
        return "missing"
    try:
        if name in files.networks:
            files.weight_files(name)
    except UserError:
        return "no safetensors"
    return None


def _copy_part(files: PipelineDirectory, name: str, to: Path, *, weights: bool) -> list[str]:
    """Copy a part's configs, and its weights; returns the names of the files that stay behind."""
    chosen = set(files.weight_files(name, index=True)) if name in files.networks else set()
    copy_configs(files.directory / name, to)
    for file in chosen if weights else ():
        shutil.copyfile(file, to / file.name)
    others = {file for file in (files.directory / name).iterdir() if file.is_file() and not _is_config(file)} - chosen
    return sorted(f"{name}/{file.name}" for file in others)


def copy_configs(folder: Path, to: Path) -> None:
    """Copy a part's configs, or what its tokenizer consists of, byte for byte."""
    to.mkdir(exist_ok=True)
    for file in filter(_is_config, folder.iterdir()):
        shutil.copyfile(file, to / file.name)


def _is_config(file: Path) -> bool:
    name = file.name
    return file.suffix in CONFIGS and ".index." not in name and not name.startswith(".") and file.is_file()


def write_component(
    component: Component,
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] = PT,
    hash_key: str = SUM,
    tick: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Write a network's weights: in the files, shards and precision that it has, or in another precision and one plain file.

    Args:
        folder: the network's own, in the new pipeline.
        tensors: new values by canonical name; None: those of the files.
        dtype: None: each tensor's own in its file.

    Returns:
        The files.
    """

    def one(name: str) -> TensorToWrite:
        file, key, precision = component.file(name), component.keys[name], dtype or component.dtype(name)
        if not file.entries[key]["dtype"].startswith(("F", "BF")):
            return file.copied(key)

        def make() -> Tensor:
            return cast(f"{component.name}.{name}", tensors[name] if tensors else component.tensor(name), precision)

        return TensorToWrite.of(component.shape(name), precision, make)

    plain = weight_file_names(component.name)[0]
    names: dict[str, dict[str, TensorToWrite]] = {}
    for name, key in component.keys.items():
        file = plain if dtype else component.file(name).path.name
        names.setdefault(file, {})[key] = one(name)
    for file, entries in names.items():
        write_tensor_file(folder / file, entries, metadata, hash_key=hash_key, tick=tick)
    if component.index and not dtype:
        shutil.copyfile(component.index, folder / component.index.name)
    return [folder / file for file in names]


def without_origin(config: Path) -> None:
    """Take the path that it was loaded from out of a changed network's config."""
    values: dict[str, Any] = json.loads(config.read_text())
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n")
