"""What of a model may leave this machine: the files that belong to it, without paths of this machine in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..settings import UserError
from .pipeline_directory import PipelineDirectory, weight_file_names
from .single_file_reader import markers
from .tensor_files import read_header

CARDS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
VOCABULARIES = ("vocab.json", "merges.txt", "tokenizer.json")  # in which a path is a word among others
CONFIGS = (  # of a part
    "config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "spiece.model", *VOCABULARIES,
)  # fmt: skip
ORIGINS = ("_name_or_path", "name_or_path")  # keys under which libraries write where a part was loaded from
ROOTS = "home|Users|root|mnt|media|data|tmp|var|srv|opt|work|workspace|content|kaggle|scratch|private|Volumes"
LOCAL_PATH = re.compile(rf"(?<![\w:/.~-])(?:file:///|/(?:{ROOTS})/|~/|[A-Za-z]:\\)[^\s\"'<>|)]+")


def files_of_model(model: PipelineDirectory) -> tuple[dict[str, Path], list[str]]:
    """The files that a pipeline consists of, by name, and the names of what else lies in its directory.

    Raises:
        UserError: one of the files is a link, which may lead anywhere.
    """
    own = {model.directory / name for name in ("model_index.json", *markers(), *CARDS)}
    for name, kind in model.index.items():
        if isinstance(kind, list) and any(kind) and Path(name).name == name:
            own |= set(_files_of_part(model, name))
    files = {file.relative_to(model.directory).as_posix(): file for file in sorted(own) if file.is_file()}
    for name, file in files.items():
        if any((model.directory / one).is_symlink() for one in (Path(name), *Path(name).parents[:-1])):
            raise UserError(f"{file} is a link, and links are not uploaded: copy the model with export --to diffusers")
    lying = (file for file in sorted(model.directory.rglob("*")) if file.is_symlink() or file.is_file())
    return files, [file.relative_to(model.directory).as_posix() for file in lying if file not in own]


def _files_of_part(model: PipelineDirectory, name: str) -> Iterator[Path]:
    """A part's configs, and the weights that are meant of it."""
    folder = model.directory / name
    yield from (folder / one for one in CONFIGS)
    if name in model.component_names:
        yield from model.weight_files(name)
        yield from (folder / weight_file_names(name, variant)[1] for variant in {model.variant, None})  # of shards
    else:
        yield folder / "model.safetensors"  # as of a safety checker


def without_paths(name: str, file: Path) -> Path | bytes:
    """A file as it may be read by others: where a library wrote its place into a config, without that.

    Raises:
        UserError: another path of this machine is in it.
    """
    if file.name in VOCABULARIES or file.suffix.lower() not in (".json", ".md", ".txt", ".safetensors"):
        return file
    if file.suffix.lower() == ".safetensors":
        check_text(name, "\n".join((read_header(file)[0].get("__metadata__") or {}).values()))
        return file
    text = file.read_text(errors="replace")
    if not local_paths(text):
        return file
    if file.suffix.lower() == ".json":
        text = json.dumps(_without_origins(json.loads(text)), indent=2) + "\n"
    check_text(name, text)
    return text.encode()


def check_text(name: str, text: str) -> None:
    """Raises UserError for a text that names a path of this machine."""
    if found := local_paths(text):
        raise UserError(f"{name} names a path of this machine ({found[0][:100]}): take it out, then upload")


def local_paths(text: str) -> list[str]:
    """The absolute paths in a text, as far as they are those of a machine, and the user's home."""
    home = str(Path.home())
    unescaped = text.replace("\\/", "/").replace("\\\\", "\\")
    return LOCAL_PATH.findall(unescaped) + [home] * (len(home) > 1 and home != "/root" and home in unescaped)


def _without_origins(value: Any) -> Any:
    """JSON without the places that parts were loaded from."""
    if isinstance(value, dict):
        return {
            key: _without_origins(one)
            for key, one in value.items()
            if not (key in ORIGINS and isinstance(one, str) and local_paths(one))
        }
    return [_without_origins(one) for one in value] if isinstance(value, list) else value
