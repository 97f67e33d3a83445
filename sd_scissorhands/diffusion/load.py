"""Opening a pipeline with every check made before the expensive ones, and knowing afterwards what was opened."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..run import atomic, fetch, read_tensors, share
from ..settings import UserError
from ..tiny import MODEL_DIR

SUPPORTED = ("StableDiffusionPipeline",)
WORLD_FILE = "world.json"  # marks the embedded model and what was made from it
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True)
class Opened:
    """A loaded pipeline and what it is."""

    pipeline: Any
    name: str  # as the user wrote it
    directory: Path  # where its files lie
    weights: str  # sha256 of the UNet's loaded tensors, see `hash_tensors`
    world: dict[str, Any] | None  # the embedded world's facts; None for every other model

    @property
    def profile(self) -> str:
        """Which of `settings.PROFILES` fits."""
        return "tiny" if self.world else "sd"

    @property
    def identity(self) -> dict[str, str]:
        """What a run's manifest says of its base model."""
        return {"model": self.name, "weights_sha256": self.weights}


def open_pipeline(
    model: str, *, revision: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Opened:
    """Load a Stable Diffusion pipeline from the embedded model, a directory, or the hub.

    The weights that were loaded are compared with those in the files, tensor by tensor, by hash: a model that diffusers
    would fill up with random weights and a warning is refused.

    Raises:
        UserError: no such model, not a supported pipeline, pickled or damaged weights, NaN, or weights that are not
            those of the files.
    """
    directory = locate(model, revision)
    check_directory(directory)
    pipeline = _load(directory, dtype)
    file, _ = read_tensors(weight_file(directory, "unet"))
    same = file.keys() == pipeline.unet.state_dict().keys()
    if same:
        check_finite(pipeline.unet, directory)
        weights = hash_tensors(pipeline.unet.state_dict().items())
        same = weights == hash_tensors((name, tensor.to(dtype)) for name, tensor in file.items())
    if not same:
        raise UserError(f"{directory}/unet was not loaded as it is on disk: its config.json does not fit its weights")
    del file
    world = directory / WORLD_FILE
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return Opened(pipeline, model, directory, weights, json.loads(world.read_text()) if world.exists() else None)


def originals(opened: Opened) -> dict[str, Tensor]:
    """The UNet's weights as they are in the file, float32 on the CPU."""
    file, _ = read_tensors(weight_file(opened.directory, "unet"))
    return {name: tensor.float() for name, tensor in file.items()}


@torch.no_grad()
def restore(opened: Opened, frozen: set[str]) -> None:
    """Put back the UNet's weights of these names as they are in the file: whoever thinned them has rounded them."""
    file = originals(opened)
    for name, parameter in opened.pipeline.unet.named_parameters():
        if name in frozen:
            parameter.data = file[name].to(parameter.device)


def save_pipeline(opened: Opened, directory: Path) -> None:
    """The whole pipeline as safetensors in `directory`, written under a temporary name and renamed."""
    with atomic(directory) as folder:
        opened.pipeline.save_pretrained(folder, safe_serialization=True)
        if opened.world:
            shutil.copyfile(opened.directory / WORLD_FILE, folder / WORLD_FILE)
        share(folder)


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
    wanted = ["model_index.json", WORLD_FILE, "tokenizer/*", "scheduler/*"]
    wanted += [f"{part}/{name}" for part, stem in WEIGHTS.items() for name in ("config.json", f"{stem}.safetensors")]
    return fetch(model, revision, wanted)


def check_directory(directory: Path) -> None:
    """Check layout, family and file sizes without loading anything.

    Raises:
        UserError: what is wrong with which file.
    """
    index = directory / "model_index.json"
    try:
        family = json.loads(index.read_text()).get("_class_name")
    except FileNotFoundError:
        raise UserError(f"{directory} is no diffusers pipeline: it has no model_index.json") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error}") from None
    if family not in SUPPORTED:
        raise UserError(f"{directory} is a {family}: supported is {', '.join(SUPPORTED)}")
    for part in WEIGHTS:
        check_safetensors(weight_file(directory, part))


def weight_file(directory: Path, part: str) -> Path:
    """The safetensors file of one part of a pipeline.

    Raises:
        UserError: there is none, or only a pickle.
    """
    file = directory / part / f"{WEIGHTS[part]}.safetensors"
    if file.exists():
        return file
    if any((directory / part).glob("*.bin")):
        raise UserError(
            f"{directory / part} holds only pickled weights (.bin), which are never loaded: save it with safe_serialization=True"
        )
    raise UserError(f"{file} is missing: the model directory is incomplete")


def check_safetensors(file: Path) -> None:
    """Compare a file's size with what its header promises.

    Raises:
        UserError: truncated or not safetensors.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length < file.stat().st_size else None
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")  # type: ignore[union-attr]
        whole = file.stat().st_size == 8 + length + end
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        whole = False
    if not whole:
        raise UserError(f"{file} is truncated or no safetensors file: download it again")


def _load(directory: Path, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionPipeline

    try:
        return StableDiffusionPipeline.from_pretrained(
            directory, torch_dtype=dtype, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            use_safetensors=True, local_files_only=True,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"{directory} cannot be loaded by diffusers: {str(error).strip().splitlines()[0]}") from error


def check_finite(module: nn.Module, where: Path) -> None:
    """Raises UserError naming the first parameter that holds a NaN or an infinity."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"{where}: the UNet's {name} holds NaN or infinite values: this checkpoint is broken, use another"
            )


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, shapes and float32 values, in the order of the names.

    Half precision is exact in float32, so a model has the same hash as stored in fp16 and as loaded in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
