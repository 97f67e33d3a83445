"""A single file in the layout of A1111 and ComfyUI as a pipeline directory: converted once, and cached under HF_HOME."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..classic import write_classic_names, write_classic_tokenizer
from ..disk import atomic, share, write_json
from ..domains import DOMAINS, domain_of
from ..errors import UserError, reason
from ..files import check_regular, read_object
from ..naming import model_flag
from ..places import shortened
from .hub import fetch
from .keys import BUFFERS, EMA, OPEN_CLIP, UNET, VAE, KeyLocation, ldm_locations
from .pipeline_copy import copy_configs, without_origin
from .pipeline_directory import CONVERTED, ONE_FILE, SAFETY, UNUSED, PipelineDirectory, weight_file_names
from .prediction import Prediction
from .tensor_files import FLOATS, TensorFile, check_no_pickle, hash_file, write_tensor_file

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
TEXTS = {SD: ("cond_stage_model.",), SDXL: ("conditioner.embedders.0.", "conditioner.embedders.1.")}
SD2 = {  # the names of their tensors are the same, what they predict is not
    "stable-diffusion-v2-768-v": "stabilityai/stable-diffusion-2-1",
    "stable-diffusion-v2-512": "stabilityai/stable-diffusion-2-1-base",
}
LAYOUT = 2  # of what is written: a directory of a former one is made anew
FUSE = "a LoRA, no model: fuse it into its base (fuse_lora, save_pretrained) first"
NOT_READ = "single files are read of Stable Diffusion 1, 2 and SDXL, name its diffusers directory or hub id"
OLD_TEXT = re.compile(  # a text encoder's names in other releases of transformers, and so in old files
    r"((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)((?:embeddings|encoder|final_layer_norm)\..+)"
)
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
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"--model {path} is a file that does not end with .safetensors: name one that does, or a diffusers directory"
        )
    if converted := converted_directory(path, config):
        return converted
    file, folder, named = TensorFile.open(path), _folder_of(path), config is not None
    pipeline_class, config_name = pipeline_class_of(file), config_name or _usual_config(file)
    config = config or _fetch_config(path, config_name)
    with lock(folder):
        if not converted_directory(path, config):  # else another process has converted it, meanwhile
            _check_config(file, pipeline_class, config, named=named)
            _convert(file, pipeline_class, config, config_name, folder)
    return PipelineDirectory(folder)


def converted_directory(path: Path, config: PipelineDirectory | None = None) -> PipelineDirectory | None:
    """The directory that a single file was converted into before, with this config if one is named; None if it was not."""
    folder = _folder_of(path)
    try:
        facts = read_object(folder / CONVERTED)
        if facts["layout"] != LAYOUT:
            return None
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
        return "a UNet alone, which eval, attack, export and diff take as --unet beside its base as --model"
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


def _check_config(file: TensorFile, pipeline_class: str, config: PipelineDirectory, *, named: bool) -> None:
    """Raises UserError unless a pipeline is of a file's family and, if it was named, predicts what the file says."""
    config.check_configs()
    if (found := config.index["_class_name"]) != pipeline_class:
        raise UserError(
            f"--model-config {config.directory} is a {found}, and --model {file.path} a {pipeline_class}: name one of the same family"
        )
    own = Prediction.of_scheduler(config.config("scheduler"))
    if named and Prediction.of_file(file).velocity and not own.velocity:
        raise UserError(
            f"--model {file.path} predicts v, and {config.directory} does not: add --model-config of a model that does"
        )
    for text, prefix in zip(config.family.texts, TEXTS[pipeline_class], strict=True):
        shapes = [
            file.shape(key) for key in file.entries if key.startswith(prefix) and key.endswith("token_embedding.weight")
        ]
        if (known := config.config(text).get("vocab_size")) and shapes and shapes[0][0] != known:
            raise UserError(
                f"--model {file.path} embeds {shapes[0][0]} tokens, and {config.directory / text} {known}: it was trained with "
                "tokens of its own, add --model-config of the diffusers directory that it was made from"
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
    with _usual_names(file, folder) as (file, path):
        pipeline = _load(file, path, pipeline_class, config.directory)
    with atomic(folder) as new:
        pipeline.scheduler = Prediction.of_file(file).scheduler(pipeline.scheduler)
        pipeline.save_pretrained(new, safe_serialization=True, max_shard_size=ONE_FILE)
        del pipeline
        _make_classic(PipelineDirectory(new), config)
        _check_converted(file, new, pipeline_class)
        if marker := domain_of(config.directory).marker:
            shutil.copyfile(config.directory / marker, new / marker)
        has_ema = any(key.startswith(f"{EMA}diffusion_model") for key in file.entries)
        facts = {
            "file": str(file.path), "sha256": _sha256(file.path), "config": config_name,
            "config_sha256": _hash_of_configs(config.directory), "layout": LAYOUT, "ema": "beside, not used" if has_ema else "unknown",
        }  # fmt: skip
        write_json(new / CONVERTED, facts)
        share(new)


@contextmanager
def _usual_names(file: TensorFile, folder: Path) -> Iterator[tuple[TensorFile, Path]]:
    """A file with the names that diffusers reads, its own and its text encoder's, and where it lies: written anew if it has others."""
    names = {key: f"{found[1]}text_model.{found[2]}" for key in file.entries if (found := OLD_TEXT.fullmatch(key))}
    if not names and file.path.suffix == ".safetensors":
        yield file, file.path
        return
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        path = Path(scratch) / "renamed.safetensors"
        copies = {names.get(key, key): file.copied(key) for key in file.entries}
        write_tensor_file(path, copies, file.metadata, hash_key="renamed_sha256")
        yield replace(TensorFile.open(path), path=file.path), path


def _make_classic(new: PipelineDirectory, config: PipelineDirectory) -> None:
    """Configs and tokenizers as they are where they come from, and names that all releases of transformers read."""
    without_origin(new.directory / "model_index.json")
    for name in new.parts:
        folder = new.directory / name
        if name.startswith("tokenizer"):
            shutil.rmtree(folder)
        if name != "scheduler":  # which the file may have a say in
            copy_configs(config.directory / name, folder)
        if name.startswith("tokenizer"):
            write_classic_tokenizer(folder)
        if name.startswith("text_encoder"):
            write_classic_names(folder / weight_file_names(name)[0])


def _load(file: TensorFile, path: Path, pipeline_class: str, config: Path) -> Any:
    import diffusers

    unused = UNUSED | (SAFETY if pipeline_class == SD else dict(add_watermarker=False))
    try:
        pipeline = getattr(diffusers, pipeline_class).from_single_file(
            str(path), config=str(config), local_files_only=True, torch_dtype=_dtype(file), **unused
        )
        for part in pipeline.components.values():
            if isinstance(part, nn.Module) and (lost := [name for name, one in part.named_parameters() if one.is_meta]):
                raise ValueError(f"{lost[0]} was given no value")
        return pipeline
    except Exception as error:  # of many kinds: a tensor that is missing, or of another shape than in the configs
        raise UserError(
            f"--model {file.path} cannot be converted with the configs of {config} ({reason(error)[:200]}): it lacks weights, or needs another --model-config"
        ) from None


def _dtype(file: TensorFile) -> torch.dtype:
    """The one precision of a file's weights, or float32, which holds all that it mixes."""
    weights = (UNET, VAE, *TEXTS[SD], *TEXTS[SDXL])
    held = (key for key in file.entries if key.startswith(weights) and not key.endswith(BUFFERS))
    codes = {file.entries[key]["dtype"] for key in held} - {"I64", "I32"}
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


def _folder_of(path: Path) -> Path:
    return cache_directory(path.stem, _sha256(path))


def cache_directory(stem: str, sha256: str) -> Path:
    """Where a pipeline that is made of a file goes, by the file's name and a hash."""
    from huggingface_hub import constants

    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in stem)
    return Path(constants.HF_HOME) / "sd_scissorhands" / f"{shortened(name, 60)}-{sha256[:12]}"


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


def lock(folder: Path) -> AbstractContextManager[Any]:
    """Within it no other process makes the same directory."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock")).acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder.parent}: {error.strerror}; name another cache in HF_HOME") from None
