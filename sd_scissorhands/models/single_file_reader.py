"""A single file in the layout of A1111 and ComfyUI as a pipeline directory: converted once, and cached under HF_HOME."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..disk import atomic, share, write_json
from ..domains import DOMAINS, domain_of
from ..files import check_regular, read_object
from ..naming import model_flag
from ..settings import UserError
from .hub import fetch
from .keys import EMA, OPEN_CLIP, UNET, VAE, KeyLocation, ldm_locations
from .pipeline_directory import CONVERTED, ONE_FILE, SAFETY, UNUSED, PipelineDirectory
from .tensor_files import FLOATS, TensorFile, check_no_pickle, hash_file

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


def convert(path: Path, config: PipelineDirectory | None = None, config_name: str | None = None) -> PipelineDirectory:
    """The pipeline directory of a single file, made now or before.

    A file that was converted before is taken as it is, unless another config is named now.

    Args:
        config: a pipeline for its configs and tokenizer; None: that of the file's family, from the hub's cache or the hub.
        config_name: as the user wrote it.

    Raises:
        UserError: a pickle, damaged, of no or another family, or not to be converted; no config to be had.
    """
    check_no_pickle(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"--model {path} is a file that does not end with .safetensors: name one that does, or a diffusers directory"
        )
    if converted := converted_directory(path, config):
        return converted
    file, folder = TensorFile.open(path), _cache_directory(path)
    pipeline_class, config_name = pipeline_class_of(file), config_name or _usual_config(file)
    config = config or _fetch_config(path, config_name)
    with _lock(folder):
        if not converted_directory(path, config):  # else another process has converted it, meanwhile
            _convert(file, pipeline_class, config, config_name, folder)
    return PipelineDirectory(folder)


def converted_directory(path: Path, config: PipelineDirectory | None = None) -> PipelineDirectory | None:
    """The directory that a single file was converted into before, with this config if one is named; None if it was not."""
    folder = _cache_directory(path)
    try:
        facts = read_object(folder / CONVERTED)
        same = config is None or facts["config_sha256"] == _hash_of_configs(config.directory)
        return PipelineDirectory(folder) if same else None
    except (OSError, UserError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------- what kind of file


def pipeline_class_of(file: TensorFile) -> str:
    """The class of the pipeline that a file holds.

    Raises:
        UserError: it holds none, or one that is not read here.
    """

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in file.entries)

    for mark, what in OTHERS.items():
        if any(mark in key for key in file.entries):
            raise UserError(f"--model {file.path} is {what}")
    pipeline_class = SDXL if has("conditioner.") else SD
    held = {"UNet": has(UNET), "VAE": has(VAE), "text encoder": all(map(has, TEXTS[pipeline_class]))}
    if not held["UNet"]:
        raise UserError(f"--model {file.path} is {_without_unet(file)}: name a whole model")
    if lacks := [component for component, there in held.items() if not there]:
        raise UserError(
            f"--model {file.path} has no {' and no '.join(lacks)}: name a whole model, with UNet, VAE and text encoder"
        )
    if file.entries.get(first := f"{UNET}input_blocks.0.0.weight", {}).get("shape", [])[1:2] != [4]:
        raise UserError(
            f"--model {file.path} was made for inpainting or another task: {first} does not take the 4 channels of a picture"
        )
    return pipeline_class


def _without_unet(file: TensorFile) -> str:
    if file.entries.keys() & {"input_blocks.0.0.weight", "conv_in.weight"}:
        return "a UNet alone"
    if "decoder.conv_in.weight" in file.entries or any(key.startswith(VAE) for key in file.entries):
        return "a VAE alone"
    return f"no model ({UNET}* is missing)"


# ---------------------------------------------------------------- configs


def markers() -> list[str]:
    """The files that mark pipelines as those of a domain."""
    return [domain.marker for _, domain in DOMAINS if domain.marker]


def config_patterns() -> list[str]:
    """All files of a pipeline that are no weights."""
    return ["model_index.json", *markers(), "*/*.json", "*/*.txt", "*/*.model"]


def _usual_config(file: TensorFile) -> str | None:
    """The hub id of the pipeline whose configs fit a file, as diffusers knows it; None where the file leaves it open."""
    from diffusers.loaders import single_file_utils

    shapes = {key: SimpleNamespace(shape=file.shape(key)) for key in file.entries}
    kind = single_file_utils.infer_diffusers_model_type(shapes)
    if kind == "v2":
        return SD2.get(file.metadata.get("modelspec.architecture", ""))
    if kind not in ("v1", "xl_base"):
        return None
    return single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]


def _fetch_config(path: Path, name: str | None) -> PipelineDirectory:
    needs = f"--model {path} is a single file and needs the configs and tokenizer of its family: add --model-config DIRECTORY"
    if name is None:
        raise UserError(needs)
    try:
        with model_flag():
            config = PipelineDirectory(fetch(name, None, config_patterns()))
            config.check_configs()
    except UserError as error:
        raise UserError(f"{needs} ({error})") from None
    return config


def _check_config(file: TensorFile, pipeline_class: str, config: PipelineDirectory) -> None:
    """Raises UserError unless a pipeline is of a file's family and predicts what the file's metadata names."""
    config.check_configs()
    if (found := config.index["_class_name"]) != pipeline_class:
        raise UserError(
            f"--model-config {config.directory} is a {found}, and --model {file.path} a {pipeline_class}: name one of the same family"
        )
    is_v = "v_pred" in file.entries or file.metadata.get("modelspec.prediction_type") == "v"
    if is_v and config.config("scheduler").get("prediction_type") != "v_prediction":
        raise UserError(
            f"--model {file.path} predicts v, and {config.directory} does not: add --model-config of a model that does"
        )


def _hash_of_configs(config: Path) -> str:
    check_regular(config)
    digest = hashlib.sha256()
    found = {file for pattern in config_patterns() for file in config.glob(pattern) if ".index." not in file.name}
    for file in sorted(found):
        digest.update(f"{file.relative_to(config)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


# ---------------------------------------------------------------- conversion


def _convert(
    file: TensorFile, pipeline_class: str, config: PipelineDirectory, config_name: str | None, folder: Path
) -> None:
    """Let diffusers convert a file, and compare the result with it before it takes its name."""
    _check_config(file, pipeline_class, config)
    pipeline = _load(file, pipeline_class, config.directory)
    with atomic(folder) as new:
        pipeline.save_pretrained(new, safe_serialization=True, max_shard_size=ONE_FILE)
        del pipeline
        _check_converted(file, new, pipeline_class)
        if marker := domain_of(config.directory).marker:
            shutil.copyfile(config.directory / marker, new / marker)
        has_ema = any(key.startswith(f"{EMA}diffusion_model") for key in file.entries)
        facts = {
            "file": str(file.path), "sha256": _sha256(file.path), "config": config_name,
            "config_sha256": _hash_of_configs(config.directory), "ema": "beside, not used" if has_ema else "unknown",
        }  # fmt: skip
        write_json(new / CONVERTED, facts)
        share(new)


def _load(file: TensorFile, pipeline_class: str, config: Path) -> Any:
    import diffusers

    unused = UNUSED | (SAFETY if pipeline_class == SD else dict(add_watermarker=False))
    try:
        pipeline = getattr(diffusers, pipeline_class).from_single_file(
            str(file.path), config=str(config), local_files_only=True, torch_dtype=_dtype(file), **unused
        )
        for part in pipeline.components.values():
            if isinstance(part, nn.Module) and (lost := [name for name, one in part.named_parameters() if one.is_meta]):
                raise ValueError(f"{lost[0]} was given no value")
        return pipeline
    except Exception as error:  # of many kinds: a tensor that is missing, or of another shape than in the configs
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"--model {file.path} cannot be converted with the configs of {config} ({reason}): it lacks weights, or needs another --model-config"
        ) from None


def _dtype(file: TensorFile) -> torch.dtype:
    """The one precision of a file's weights, or float32, which holds all that it mixes."""
    weights = (UNET, VAE, *TEXTS[SD], *TEXTS[SDXL])
    codes = {entry["dtype"] for key, entry in file.entries.items() if key.startswith(weights)} - {"I64", "I32"}
    return FLOATS.get(next(iter(codes)), torch.float32) if len(codes) == 1 else torch.float32


def _check_converted(file: TensorFile, folder: Path, pipeline_class: str) -> None:
    """Compare every tensor of a converted pipeline with the file; no weight of the file's UNet may be left over.

    Raises:
        UserError: something was made up, changed or left out.
    """
    components = PipelineDirectory(folder).components
    open_clip = any(key.startswith(OPEN_CLIP) for key in file.entries)
    keys = {name: component.keys for name, component in components.items()}
    for name, locations in ldm_locations(keys, xl=pipeline_class == SDXL, open_clip=open_clip).items():
        tensor = components[name].tensor
        wrong = {one.key for own, one in locations.items() if not _same(file, one, tensor(own))}
        if name == "unet" and not wrong:
            wrong = {key for key in file.entries if key.startswith(UNET)} - {one.key for one in locations.values()}
        if wrong:
            raise UserError(
                f"--model {file.path} cannot be converted: {min(wrong)} is missing there, or has no place in {name}"
            )


def _same(file: TensorFile, location: KeyLocation, tensor: torch.Tensor) -> bool:
    """Whether a file holds a tensor."""
    key = location.key
    return key in file.entries and torch.equal(location.read(file.tensor(key)).to(tensor.dtype), tensor)


# ---------------------------------------------------------------- the cache


def _cache_directory(path: Path) -> Path:
    from huggingface_hub import constants

    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in path.stem)[:60]
    return Path(constants.HF_HOME) / "sd_scissorhands" / f"{name}-{_sha256(path)[:12]}"


def _sha256(path: Path) -> str:
    """Of a file, which is read once as long as it stays what it is."""
    try:
        found = path.stat()
        return _read_sha256(path.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error.strerror}") from None


@lru_cache
def _read_sha256(path: Path, size: int, changed: int) -> str:
    return hash_file(path)


def _lock(folder: Path) -> AbstractContextManager[Any]:
    """Within it no other process converts the same file."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock")).acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder.parent}: {error.strerror}; name another cache in HF_HOME") from None
