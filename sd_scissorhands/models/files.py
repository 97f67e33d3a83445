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
from ..domains import DOMAINS
from ..settings import UserError
from .tensor_files import conversion_command, read_header

CONVERTED = "converted.json"  # in a directory that was made of a single file: of which, and how
NON_EMA = "non_ema"  # the variant that stands beside a moving average
# Components that a pipeline may have and ours never use; a safety checker have Stable Diffusion 1 and 2 alone.
UNUSED: dict[str, Any] = dict(feature_extractor=None, image_encoder=None)
SAFETY: dict[str, Any] = dict(safety_checker=None, requires_safety_checker=False)


# ---------------------------------------------------------------- what kind of pipeline


def check_directory(directory: Path, variant: str | None = None) -> None:
    """Check layout, family, configs and file sizes without loading anything.

    Raises:
        UserError: what is wrong with which file.
    """
    components = components_of(directory, check_configs(directory))
    found = sorted(set().union(*(variants_of(directory, component) for component in components)))
    if variant and variant not in found:
        remedy = f"choose {', '.join(found)}" if found else "leave it out"
        raise UserError(f"{directory} has no variant {variant}: {remedy}")
    for component in components:
        for file in weight_files(directory, component, variant):
            read_header(file)


def check_configs(directory: Path) -> type[Family]:
    """The family of a pipeline directory, by its model_index.json.

    Raises:
        UserError: not a pipeline, or one that is not supported.
    """
    name = read_index(directory).get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{directory} is a {name}: supported is {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    configs = {
        component: read_config(directory, component) for component in (*components_of(directory, family), "scheduler")
    }
    for component, config in configs.items():
        if config.get("quantization_config"):
            raise UserError(f"{directory / component} is quantised: erase from the weights that it was quantised from")
    if objection := family.objection(configs):
        raise UserError(f"{directory} cannot be used: {objection}; supported is text to image by {', '.join(FAMILIES)}")
    return family


def read_index(directory: Path) -> dict[str, Any]:
    """A pipeline's model_index.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    index = directory / "model_index.json"
    if index.exists():
        return read_json(index)
    if (directory / "pytorch_lora_weights.safetensors").exists():
        raise UserError(f"{directory} is a LoRA, no model: fuse it into its base (fuse_lora, save_pretrained) first")
    raise UserError(f"{directory} is no diffusers pipeline: it has no model_index.json")


def read_config(directory: Path, component: str) -> dict[str, Any]:
    """The config of a component or the scheduler; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = directory / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    return read_json(file) if file.exists() else {}


def components_of(directory: Path, family: type[Family]) -> list[str]:
    """The components of a pipeline that hold weights, the denoiser first.

    Raises:
        UserError: one that the family needs is left out.
    """
    index, components = read_index(directory), [family.part, "vae", *family.texts]
    absent = [name for name in components if index.get(name) in (None, [None, None])]
    if needed := [name for name in absent if name not in family.optional]:
        raise UserError(f"{directory} has no {needed[0]}: the model directory is incomplete")
    return [name for name in components if name not in absent]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return values


def markers() -> list[str]:
    """The files that mark pipelines as those of a domain."""
    return [domain.marker for _, domain in DOMAINS if domain.marker]


# ---------------------------------------------------------------- weights


def file_names(component: str, variant: str | None = None) -> tuple[str, str, tuple[str, ...]]:
    """How a component's weights are named: one file, the index of several, and the patterns of these, now and formerly."""
    stem = _stem(component)
    if not variant:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json", (f"{stem}-?????-of-?????.safetensors",)
    shards = (f"{stem}.{variant}-?????-of-?????.safetensors", f"{stem}-?????-of-?????.{variant}.safetensors")
    return f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json", shards


def _stem(component: str) -> str:
    return "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"


def variants_of(directory: Path, component: str) -> set[str]:
    """The variants of a component's weights that lie in a pipeline directory."""
    stem = re.escape(_stem(component))
    form = re.compile(rf"{stem}\.(?:safetensors\.index\.([\w-]+)\.json|([\w-]+)\.safetensors)")
    found = (form.fullmatch(file.name) for file in (directory / component).glob("*"))
    return {one[1] or one[2] for one in found if one and not re.search(r"-\d{5}-of-\d{5}$", one[2] or "")}


def weight_files(directory: Path, component: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component: one, or the shards that its index lists.

    A component that has no such variant is taken as it is without one, as diffusers does.

    Raises:
        UserError: there is none, or only a pickle or another variant, or a shard is missing.
    """
    folder = directory / component
    for which in dict.fromkeys((variant, None)):
        one, index, _ = file_names(component, which)
        if (folder / one).exists():
            return [folder / one]
        if (folder / index).exists():
            return _shards(folder / index)
    if found := sorted(variants_of(directory, component)):
        raise UserError(
            f"{folder} has its weights as {' and '.join(found)} alone: add --variant {found[0]}, or :{found[0]} to the name"
        )
    if any(folder.glob("*.bin")):
        line = conversion_command(f"{shlex.quote(str(directory))}/*/*.bin")
        raise UserError(
            f"{folder} holds only pickled weights (.bin), which can run code and are never loaded: convert them with {line}"
        )
    raise UserError(f"{folder / file_names(component)[0]} is missing: the model directory is incomplete")


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    names = sorted(set(listed.values())) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{index} is damaged: it lists no safetensors files beside it")
    shards = [index.with_name(name) for name in names]
    if missing := [shard for shard in shards if not shard.exists()]:
        raise UserError(f"{missing[0]} is missing: the model directory is incomplete")
    return shards


def read_weights(directory: Path, component: str, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of a component, on the CPU and as they are in its files."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory, component, variant):
        tensors |= read_tensors(file)[0]
    return tensors


# ---------------------------------------------------------------- a moving average


def ema_of(directory: Path, component: str, variant: str | None = None) -> str:
    """Whether the denoiser's weights are the moving average (EMA) of those that were trained.

    Returns:
        used; "beside, not used" where the file, or the model's name of its variant, says so; unknown for most, which say nothing.
    """
    if (directory / CONVERTED).exists():
        return str(read_json(directory / CONVERTED).get("ema", "unknown"))
    if variant == NON_EMA:
        return "beside, not used"
    return "used" if NON_EMA in variants_of(directory, component) else "unknown"
