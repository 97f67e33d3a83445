"""The files of a pipeline directory, checked before anything is loaded."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from torch import Tensor

from ..diffusion.families import FAMILIES, Family
from ..disk import read_tensors
from ..settings import UserError
from .tensor_files import check_safetensors, conversion

WORLD_FILE = "world.json"  # marks the embedded model and what was made from it
CONVERTED = "converted.json"  # in a directory that was made of a single file: of which, and how
NON_EMA = "non_ema"  # the variant that stands beside a moving average
DIFFUSERS_STEM, TEXT_STEM = "diffusion_pytorch_model", "model"


# ---------------------------------------------------------------- what kind of pipeline


def check_directory(directory: Path, variant: str | None = None) -> None:
    """Check layout, family, configs and file sizes without loading anything.

    Raises:
        UserError: what is wrong with which file.
    """
    parts = parts_of(directory, check_configs(directory))
    there = sorted(set().union(*(variants_of(directory, part) for part in parts)))
    if variant and variant not in there:
        remedy = f"choose {', '.join(there)}" if there else "leave it out"
        raise UserError(f"{directory} has no variant {variant}: {remedy}")
    for part in parts:
        for file in weight_files(directory, part, variant):
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


def file_names(part: str, variant: str | None = None) -> tuple[str, str, tuple[str, ...]]:
    """How the weights of a part are named: one file, the index of several, and the patterns of these, now and formerly."""
    stem = stem_of(part)
    if not variant:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json", (f"{stem}-?????-of-?????.safetensors",)
    shards = (f"{stem}.{variant}-?????-of-?????.safetensors", f"{stem}-?????-of-?????.{variant}.safetensors")
    return f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json", shards


def variants_of(directory: Path, part: str) -> set[str]:
    """The variants of a part's weights that lie in a pipeline directory."""
    stem = re.escape(stem_of(part))
    form = re.compile(rf"{stem}\.(?:safetensors\.index\.([\w-]+)\.json|([\w-]+)\.safetensors)")
    found = (form.fullmatch(file.name) for file in (directory / part).glob("*"))
    return {one[1] or one[2] for one in found if one and not re.search(r"-\d{5}-of-\d{5}$", one[2] or "")}


def weight_files(directory: Path, part: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one part of a pipeline: one, or the shards that its index lists.

    A part that has no such variant is taken as it is without one, as diffusers does.

    Raises:
        UserError: there is none, or only a pickle or another variant, or a shard is missing.
    """
    for wanted in dict.fromkeys((variant, None)):
        one, index, _ = file_names(part, wanted)
        if (directory / part / one).exists():
            return [directory / part / one]
        if (directory / part / index).exists():
            return _listed(directory / part / index)
    raise UserError(_why_none(directory, part))


def _why_none(directory: Path, part: str) -> str:
    if there := sorted(variants_of(directory, part)):
        return f"{directory / part} has its weights as {' and '.join(there)} alone: add --variant {there[0]}, or :{there[0]} to the name"
    if any((directory / part).glob("*.bin")):
        line = conversion(f"{shlex.quote(str(directory))}/*/*.bin")
        return f"{directory / part} holds only pickled weights (.bin), which can run code and are never loaded: convert them with {line}"
    return f"{directory / part / file_names(part)[0]} is missing: the model directory is incomplete"


def _listed(index: Path) -> list[Path]:
    shards = [index.with_name(name) for name in _shards(index)]
    for shard in shards:
        if not shard.exists():
            raise UserError(f"{shard} is missing: the model directory is incomplete")
    return shards


def _shards(index: Path) -> list[str]:
    listed = _json(index).get("weight_map")
    names = sorted(set(listed.values())) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{index} is damaged: it lists no safetensors files beside it")
    return names


def read_weights(directory: Path, part: str, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of a part, on the CPU and as they are in its files."""
    found: dict[str, Tensor] = {}
    for file in weight_files(directory, part, variant):
        found |= read_tensors(file)[0]
    return found


# ---------------------------------------------------------------- a moving average


def ema_of(directory: Path, part: str, variant: str | None = None) -> str:
    """Whether the denoiser's weights are the moving average (EMA) of those that were trained.

    Returns:
        used; "beside, not used" where the file, or the model's name of its variant, says so; unknown for most, which say nothing.
    """
    if (directory / CONVERTED).exists():
        return str(_json(directory / CONVERTED).get("ema", "unknown"))
    if variant == NON_EMA:
        return "beside, not used"
    return "used" if NON_EMA in variants_of(directory, part) else "unknown"
