"""The files of a pipeline directory: found, fetched and checked before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..formats.stream import check_safetensors
from ..run import fetch, read_tensors
from ..settings import UserError
from ..tiny import MODEL_DIR
from .families import FAMILIES, Family

WORLD_FILE = "world.json"  # marks the embedded model and what was made from it
DIFFUSERS_STEM, TEXT_STEM = "diffusion_pytorch_model", "model"


def locate(model: str, revision: str | None = None) -> Path:
    """The directory of a model: embedded, local, or fetched from the hub into its cache.

    Raises:
        UserError: a path that is not there, a file, or a hub id that cannot be had.
    """
    return local_directory(model) or _fetch(model, revision)


def local_directory(model: str) -> Path | None:
    """The directory of a model that is on this machine; None for a hub id (owner/name).

    Raises:
        UserError: a path that is not there, or a file.
    """
    if model == "tiny":
        return MODEL_DIR
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"--model {model} is a file: name a diffusers directory (with model_index.json)")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"--model {model} does not exist: name a diffusers directory, a hub id (owner/name), or tiny")
    return None


def is_of_world(model: str) -> bool:
    """Whether a model is the embedded one or was made from it; a hub id is not.

    Raises:
        UserError: a path that is not there, or a file.
    """
    directory = local_directory(model)
    return directory is not None and (directory / WORLD_FILE).exists()


def _fetch(model: str, revision: str | None) -> Path:
    """The index and the configs first, so that what is not supported is not downloaded."""
    few = ["model_index.json", WORLD_FILE, "*/config.json", "scheduler/*"]
    directory = fetch(model, revision, few)
    family = check_configs(directory)
    wanted = [*few, "tokenizer*/*"]
    for part in parts_of(directory, family):
        names = (
            f"{stem_of(part)}{end}"
            for end in (".safetensors", ".safetensors.index.json", "-?????-of-?????.safetensors")
        )
        wanted += [f"{part}/{name}" for name in names]
    return fetch(model, revision, wanted)


# ---------------------------------------------------------------- what kind of pipeline


def check_directory(directory: Path) -> None:
    """Check layout, family, configs and file sizes without loading anything.

    Raises:
        UserError: what is wrong with which file.
    """
    family = check_configs(directory)
    for part in parts_of(directory, family):
        for file in weight_files(directory, part):
            check_safetensors(file)


def check_configs(directory: Path) -> type[Family]:
    """The family of a pipeline directory, by its model_index.json.

    Raises:
        UserError: not a pipeline, or one that is not supported.
    """
    index = read_index(directory)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{directory} is a {name}: supported is {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    parts = parts_of(directory, family)
    configs = {part: _json(directory / part / "config.json", {}) for part in parts}
    configs["scheduler"] = _json(directory / "scheduler" / "scheduler_config.json", {})
    for part, config in configs.items():
        if config.get("quantization_config"):
            raise UserError(f"{directory / part} is quantised: erase from the weights that it was quantised from")
    if objection := family.objection(configs):
        raise UserError(f"{directory} cannot be used: {objection}; supported is text to image by {', '.join(FAMILIES)}")
    return family


def read_index(directory: Path) -> dict[str, Any]:
    """A pipeline's model_index.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    index = directory / "model_index.json"
    if not index.exists():
        if (directory / "pytorch_lora_weights.safetensors").exists():
            raise UserError(
                f"{directory} is a LoRA, no model: fuse it into its base (fuse_lora, save_pretrained) first"
            )
        raise UserError(f"{directory} is no diffusers pipeline: it has no model_index.json")
    return _json(index)


def parts_of(directory: Path, family: type[Family]) -> list[str]:
    """The parts of a pipeline that hold weights, the denoiser first.

    Raises:
        UserError: a part that the family needs is left out.
    """
    index, parts = read_index(directory), [family.part, "vae", *family.texts]
    absent = [part for part in parts if index.get(part) in (None, [None, None])]
    if needed := [part for part in absent if part not in family.optional]:
        raise UserError(f"{directory} has no {needed[0]}: the model directory is incomplete")
    return [part for part in parts if part not in absent]


def _json(file: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object; `otherwise` where there is no file."""
    if otherwise is not None and not file.exists():
        return otherwise
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if not isinstance(told, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return told


# ---------------------------------------------------------------- weights


def stem_of(part: str) -> str:
    """How a part's weights are named."""
    return TEXT_STEM if part.startswith("text_encoder") else DIFFUSERS_STEM


def weight_files(directory: Path, part: str) -> list[Path]:
    """The safetensors files of one part of a pipeline: one, or the shards that its index lists.

    Raises:
        UserError: there is none, or only a pickle, or a shard is missing.
    """
    file = directory / part / f"{stem_of(part)}.safetensors"
    if file.exists():
        return [file]
    index = file.with_name(f"{file.name}.index.json")
    if index.exists():
        shards = [file.with_name(name) for name in _shards(index)]
        for shard in shards:
            if not shard.exists():
                raise UserError(f"{shard} is missing: the model directory is incomplete")
        return shards
    if any((directory / part).glob("*.bin")):
        raise UserError(
            f"{directory / part} holds only pickled weights (.bin), which are never loaded: save it with safe_serialization=True"
        )
    raise UserError(f"{file} is missing: the model directory is incomplete")


def _shards(index: Path) -> list[str]:
    listed = _json(index).get("weight_map")
    names = sorted(set(listed.values())) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{index} is damaged: it lists no safetensors files beside it")
    return names


def read_weights(directory: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part, on the CPU and as they are in its files."""
    found: dict[str, Tensor] = {}
    for file in weight_files(directory, part):
        found |= read_tensors(file)[0]
    return found
