"""A model with the denoiser of another file: `--model BASE --unet FILE`, as a pipeline directory in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..disk import atomic, write_json
from ..errors import UserError
from ..files import hash_file, read_object
from .addon import change_in
from .cache import cache_directory, lock
from .keys import UNET, Blocks, ldm_locations
from .locate import find_pipeline
from .pipeline_directory import CONVERTED, PipelineDirectory, weight_file_names
from .tensor_files import TensorFile, write_tensor_file

FACTS = "composed.json"  # in the directory: of what it is made
# Before a denoiser's names, in other programs' files.
PREFIXES = ("", "unet.", "transformer.", UNET, "diffusion_model.")


def with_unet(base: str, unet: str) -> str:
    """The name of a pipeline whose denoiser has a file's weights, under diffusers' names or the original ones; the rest is the base's.

    The directory's name has a hash of the file and of all that is the base's, so that another content is another model.

    Raises:
        UserError: no such base or file, or tensors that the base's denoiser does not have by name and shape.
    """
    files = find_pipeline(base)
    path = Path(unet).expanduser()
    chosen, tensors = _chosen(TensorFile.open(path), files), _tensors(files)
    digest = _digest(path, files)
    folder, facts = cache_directory(path.stem, digest), {"base": str(files.directory.resolve()), "file": path.name}
    facts |= {"from_file": str(len(chosen)), "of": str(len(tensors)), "sha256": digest}
    with lock(folder):
        if not _same(folder, facts):
            with atomic(folder) as new:
                _link(files, new)
                part = new / files.family.part
                write = {name: (chosen.get(name) or one) for name, one in tensors.items()}
                copies = {name: file.copied(key) for name, (file, key) in write.items()}
                write_tensor_file(part / weight_file_names(part.name)[0], copies, {"format": "pt"}, hash_key="sha256")
                write_json(new / FACTS, facts)
    return str(folder) + (f":{files.variant}" if files.variant else "")


def origin_of(model: str) -> str | None:
    """What a composed model is made of, in a sentence; None for any other."""
    facts = Path(model.rpartition(":")[0] if not Path(model).exists() else model) / FACTS
    if not facts.exists():
        return None
    found = read_object(facts)
    rest = "" if found["from_file"] == found["of"] else "; the file has no others, and they are the base's"
    return f"{found['file']}: {found['from_file']} of {found['of']} tensors{rest}"


Stored = tuple[TensorFile, str]  # a file and its key for a tensor


def _tensors(files: PipelineDirectory) -> dict[str, Stored]:
    """The denoiser's tensors in its files, by name."""
    opened = map(TensorFile.open, files.weight_files(files.family.part))
    return {key: (file, key) for file in opened for key in file.entries}


def _chosen(file: TensorFile, files: PipelineDirectory) -> dict[str, Stored]:
    """A file's tensors by the base's names, each of which the base has in the same shape."""
    if change := change_in(file.metadata):
        raise UserError(f"--unet {file.path} is {change}: make its model with sdscissor apply")
    own, part = _tensors(files), files.family.called
    names = max(_namings(file, files, own), key=lambda names: len(names.keys() & own.keys()))
    if not names.keys() & own.keys():
        raise UserError(
            f"--unet {file.path} holds no weights of {part} of {files.directory}: name the base that it was made from"
        )
    for name, key in names.items():
        if name not in own:
            raise UserError(
                f"--unet {file.path} holds {key}, which {part} of {files.directory} has not: name the base that it was made from"
            )
        here, there = file.shape(key), own[name][0].shape(own[name][1])
        if here != there:
            raise UserError(f"--unet {file.path} holds {key} as {list(here)}, and {part} of {files.directory} has {list(there)}: name the base that it was made from")  # fmt: skip
    return {name: (file, key) for name, key in names.items()}


def _namings(file: TensorFile, files: PipelineDirectory, own: Mapping[str, Stored]) -> Iterator[dict[str, str]]:
    """A file's keys by what their names in the base may be: diffusers' names and the original ones, after every prefix."""
    original: dict[str, str] = {}
    if files.family.part == "unet":
        places = ldm_locations({"unet": own}, xl=False, open_clip=False, blocks=Blocks.of_config(files.config("unet")))
        original = {place.key.removeprefix(UNET): name for name, place in places["unet"].items()}
    for prefix in PREFIXES:
        keys = {key.removeprefix(prefix): key for key in file.entries if key.startswith(prefix)}
        yield keys
        yield {original.get(name, name): key for name, key in keys.items()}


def _digest(path: Path, files: PipelineDirectory) -> str:
    """sha256 of a file and of everything of the base but its denoiser's weights."""
    digest = hashlib.sha256(hash_file(path).encode())
    weights = {file.resolve() for file in files.weight_files(files.family.part)}
    for file in sorted([*files.directory.glob("*"), *files.directory.glob("*/*")]):
        if file.is_file() and file.resolve() not in weights:
            digest.update(f"{file.relative_to(files.directory)} {hash_file(file)}".encode())
    for file in sorted(weights):
        digest.update(hash_file(file).encode())  # of which tensors may be left
    return digest.hexdigest()


def _same(folder: Path, facts: Mapping[str, str]) -> bool:
    """Whether a directory is made of this, and nothing that it leads to has moved."""
    try:
        return read_object(folder / FACTS) == facts and all(one.exists() for one in folder.iterdir())
    except (OSError, UserError):
        return False


def _link(files: PipelineDirectory, new: Path) -> None:
    """Everything of a base but its denoiser's weights: links to where it is."""
    part = files.directory / files.family.part
    (new / part.name).mkdir(parents=True)
    for one in (*files.directory.iterdir(), part / "config.json"):
        if one.name not in (part.name, CONVERTED, FACTS) and not one.name.startswith("."):
            (new / one.relative_to(files.directory)).symlink_to(one.resolve())
