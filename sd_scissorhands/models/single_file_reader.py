"""A single file in the layout of A1111 and ComfyUI as a pipeline directory: converted once, and kept in the cache of HF_HOME."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..disk import atomic, share, write_json
from ..settings import UserError
from .files import CONVERTED, WORLD_FILE, check_configs, read_index, read_weights
from .hub import fetch
from .keys import EMA, OPEN_CLIP, UNET, VAE, Blocks, Place, canonical, text_layouts, unet_places, vae_places
from .tensor_files import TORCH, Stored, check_no_pickle

CONFIGS = ("model_index.json", WORLD_FILE, "*/*.json", "*/*.txt", "*/*.model")  # of a pipeline, all that is no weight
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
TEXTS = {SD: ("cond_stage_model.",), SDXL: ("conditioner.embedders.0.", "conditioner.embedders.1.")}
SD2 = {  # the names of their tensors are the same, what they predict is not
    "stable-diffusion-v2-768-v": "stabilityai/stable-diffusion-2-1",
    "stable-diffusion-v2-512": "stabilityai/stable-diffusion-2-1-base",
}
FUSE = "a LoRA, no model: fuse it into its base (fuse_lora, save_pretrained) first"
NOT_READ = "single files are read of Stable Diffusion 1, 2 and SDXL, name its diffusers directory or hub id"
OTHERS = {  # a part of a tensor's name: what a file is that has it
    "lora": FUSE,
    "hada_w1": FUSE,
    "joint_blocks.": f"an SD 3 model: {NOT_READ}",
    "double_blocks.": f"a FLUX model: {NOT_READ}",
    "control_model.": "a ControlNet, no model: name a whole model",
}


def directory_of(path: Path, config: Path | None = None, named: str | None = None) -> Path:
    """The pipeline directory of a single file, made now or before.

    A file converted before is taken as it is, unless another config is named now.

    Args:
        config: a pipeline directory for its configs and tokenizer; None: that of the file's family, from the hub's cache
            or the hub.
        named: what the user calls it.

    Raises:
        UserError: a pickle, damaged, of no or another family, or not to be converted; no config to be had.
    """
    check_no_pickle(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"--model {path} is a file that does not end with .safetensors: name one that does, or a diffusers directory"
        )
    folder = _folder(path)
    if _serves(folder, config):
        return folder
    file = Stored.open(path)
    kind, name = kind_of(file), named or _usual_config(file)
    config = config or _fetched(path, name)
    with _alone(folder):
        if not _serves(folder, config):  # else another process has converted it, meanwhile
            _convert(file, kind, config, name, folder)
    return folder


def converted(path: Path) -> Path | None:
    """The directory that a single file was converted into before; None if it was not."""
    folder = _folder(path)
    return folder if _serves(folder, None) else None


def _serves(folder: Path, config: Path | None) -> bool:
    """Whether a file was converted there, with this config if one is named."""
    try:
        told = json.loads((folder / CONVERTED).read_text())
        return config is None or told["config_sha256"] == _hash_of_configs(config)
    except (OSError, ValueError, KeyError, TypeError):
        return False


# ---------------------------------------------------------------- what kind of file


def kind_of(file: Stored) -> str:
    """The class of the pipeline that a file holds.

    Raises:
        UserError: it holds none, or one that is not read here.
    """

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in file.entries)

    for sign, what in OTHERS.items():
        if any(sign in key for key in file.entries):
            raise UserError(f"--model {file.path} is {what}")
    kind = SDXL if has("conditioner.") else SD
    held = {"UNet": has(UNET), "VAE": has(VAE), "text encoder": all(map(has, TEXTS[kind]))}
    if not held["UNet"]:
        raise UserError(f"--model {file.path} is {_without_unet(file)}: name a whole model")
    if lacks := [part for part, there in held.items() if not there]:
        raise UserError(
            f"--model {file.path} has no {' and no '.join(lacks)}: name a whole model, with UNet, VAE and text encoder"
        )
    if file.entries.get(first := f"{UNET}input_blocks.0.0.weight", {}).get("shape", [])[1:2] != [4]:
        raise UserError(
            f"--model {file.path} was made for inpainting or another task: {first} does not take the 4 channels of a picture"
        )
    return kind


def _without_unet(file: Stored) -> str:
    if file.entries.keys() & {"input_blocks.0.0.weight", "conv_in.weight"}:
        return "a UNet alone"
    if "decoder.conv_in.weight" in file.entries or any(key.startswith(VAE) for key in file.entries):
        return "a VAE alone"
    return f"no model ({UNET}* is missing)"


def ema_in(file: Stored) -> str:
    """Whether a file's UNet is a moving average: that of `model.diffusion_model.*` is taken, which is none where `model_ema.*` is, too."""
    return "beside, not used" if any(key.startswith(f"{EMA}diffusion_model") for key in file.entries) else "unknown"


# ---------------------------------------------------------------- configs


def _usual_config(file: Stored) -> str | None:
    """The hub id of the pipeline whose configs fit a file, as diffusers knows it; None where the file does not tell."""
    from diffusers.loaders import single_file_utils as theirs

    shapes = {key: SimpleNamespace(shape=file.shape(key)) for key in file.entries}
    kind = theirs.infer_diffusers_model_type(shapes)
    if kind == "v2":
        return SD2.get(file.metadata.get("modelspec.architecture", ""))
    return (
        theirs.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
        if kind in ("v1", "xl_base")
        else None
    )


def _fetched(path: Path, name: str | None) -> Path:
    lacks = f"--model {path} is a single file and needs the configs and tokenizer of its family: add --model-config DIRECTORY"
    if name is None:
        raise UserError(lacks)
    try:
        directory = fetch(name, None, list(CONFIGS))
        check_configs(directory)
    except UserError as error:
        raise UserError(f"{lacks} ({str(error).replace('--model ', '', 1)})") from None
    return directory


def _check_config(file: Stored, kind: str, config: Path) -> None:
    """Raises UserError unless a pipeline is of a file's family and predicts what the file says that it does."""
    check_configs(config)
    if (found := read_index(config)["_class_name"]) != kind:
        raise UserError(
            f"--model-config {config} is a {found}, and --model {file.path} a {kind}: name one of the same family"
        )
    scheduler = json.loads((config / "scheduler" / "scheduler_config.json").read_text())
    is_v = "v_pred" in file.entries or file.metadata.get("modelspec.prediction_type") == "v"
    if is_v and scheduler.get("prediction_type") != "v_prediction":
        raise UserError(
            f"--model {file.path} predicts v, and {config} does not: add --model-config of a model that does"
        )


def _hash_of_configs(config: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted({file for pattern in CONFIGS for file in config.glob(pattern) if ".index." not in file.name}):
        digest.update(f"{file.relative_to(config)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


# ---------------------------------------------------------------- conversion


def _convert(file: Stored, kind: str, config: Path, name: str | None, folder: Path) -> None:
    """Let diffusers convert a file, and hold the result against it before it counts."""
    _check_config(file, kind, config)
    pipeline = _read(file, kind, config)
    with atomic(folder) as new:
        pipeline.save_pretrained(new, safe_serialization=True)
        del pipeline
        _check_whole(file, new, kind)
        if (config / WORLD_FILE).exists():
            shutil.copyfile(config / WORLD_FILE, new / WORLD_FILE)
        facts = {
            "file": str(file.path),
            "sha256": _sha256(file.path),
            "config": name,
            "config_sha256": _hash_of_configs(config),
        }
        write_json(new / CONVERTED, facts | {"ema": ema_in(file)})
        share(new)


def _read(file: Stored, kind: str, config: Path) -> Any:
    import diffusers

    unused: dict[str, Any] = dict(feature_extractor=None, image_encoder=None)
    unused |= dict(safety_checker=None, requires_safety_checker=False) if kind == SD else dict(add_watermarker=False)
    try:
        pipeline = getattr(diffusers, kind).from_single_file(
            str(file.path), config=str(config), local_files_only=True, torch_dtype=_dtype(file), **unused
        )
        for part in pipeline.components.values():
            if isinstance(part, nn.Module) and (lost := [name for name, one in part.named_parameters() if one.is_meta]):
                raise ValueError(f"{lost[0]} was given no value")
        return pipeline
    except Exception as error:  # of many kinds: a tensor that is missing, or of another shape than the configs say
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"--model {file.path} cannot be converted with the configs of {config} ({reason}): it lacks weights, or needs another --model-config"
        ) from None


def _dtype(file: Stored) -> torch.dtype:
    """The one precision of a file's weights, or float32, which holds all that it mixes."""
    weights = (UNET, VAE, *TEXTS[SD], *TEXTS[SDXL])
    codes = {entry["dtype"] for key, entry in file.entries.items() if key.startswith(weights)} - {"I64", "I32"}
    return TORCH.get(next(iter(codes)), torch.float32) if len(codes) == 1 else torch.float32


def _check_whole(file: Stored, folder: Path, kind: str) -> None:
    """Hold every tensor of a converted pipeline against the file, and see that no weight of the file's UNet is left over.

    Raises:
        UserError: something was made up, changed or left out.
    """
    open_clip = any(key.startswith(OPEN_CLIP) for key in file.entries)
    layouts = {"vae": vae_places, **text_layouts(xl=kind == SDXL, open_clip=open_clip)}
    for part in ("unet", *layouts):
        tensors = {own: tensor for name, tensor in read_weights(folder, part).items() if (own := canonical(part, name))}
        places = layouts[part](tensors) if part in layouts else unet_places(tensors, Blocks.of_names(tensors))
        wrong = _differing(file, tensors, places)
        if part == "unet" and not wrong:
            wrong = {key for key in file.entries if key.startswith(UNET)} - {place.key for place in places.values()}
        if wrong:
            raise UserError(
                f"--model {file.path} cannot be converted: {sorted(wrong)[0]} is missing there, or has no place in {part}"
            )


def _differing(file: Stored, tensors: Mapping[str, torch.Tensor], places: Mapping[str, Place]) -> set[str]:
    """The names of tensors that are not in the file as they are here."""
    wrong = set()
    for name, tensor in tensors.items():
        key = places[name].key
        if key not in file.entries or not torch.equal(places[name].read(file.tensor(key)).to(tensor.dtype), tensor):
            wrong.add(key)
    return wrong


# ---------------------------------------------------------------- the cache


def _folder(path: Path) -> Path:
    from huggingface_hub import constants

    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in path.stem)[:60]
    return Path(constants.HF_HOME) / "sd_scissorhands" / f"{name}-{_sha256(path)[:12]}"


def _sha256(path: Path) -> str:
    """Of a file, which is read once as long as it stays what it is."""
    try:
        told = path.stat()
        return _read_sha256(path.resolve(), told.st_size, told.st_mtime_ns)
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error.strerror}") from None


@lru_cache
def _read_sha256(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for part in iter(partial(stream.read, 1 << 24), b""):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other process converts the same file."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder.parent}: {error.strerror}; name another cache in HF_HOME") from None
    try:
        yield
    finally:
        lock.release()
