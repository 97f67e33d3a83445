"""safetensors files tensor by tensor: read lazily, and written without holding more than one tensor in memory."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk import share
from ..errors import reason
from ..files import open_file
from ..parsing import parse_json
from ..settings import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FLOATS = {CODES[dtype]: dtype for dtype in DTYPES.values()}  # the types that can be cast to one another
NO_HASH = "0x" + 64 * "0"
PICKLES = (b"PK\x03\x04", b"\x80")  # how torch.save's files begin, now and formerly
CHUNK = 1 << 24  # bytes
MOST_HEADER = 100_000_000  # bytes of a header; safetensors' own limit
UNFUSED = (".lora_A.", ".lora_B.", ".lora_magnitude", ".lora.up.", ".lora.down.", ".lora_layer.", ".base_layer.")
CONVERT = (  # holds nothing that a shell would change between double quotes
    "import os, sys, torch, safetensors.torch as s; "
    "torch.serialization.add_safe_globals([(dict, 'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint')]); "
    "[s.save_file({k: v.clone().contiguous() for k, v in w.get('state_dict', w).items() if torch.is_tensor(v)}, "
    "os.path.splitext(f)[0].replace('/pytorch_model', '/model') + '.safetensors', {'format': 'pt'}) "
    "for f in sys.argv[1:] for w in [torch.load(f, map_location='cpu', weights_only=True)]]"
)


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that `write_tensor_file` writes; its bytes are loaded when its turn comes."""

    code: str  # safetensors' name of the dtype
    shape: tuple[int, ...]
    size: int  # bytes
    load: Callable[[], Iterator[Any]]  # its bytes, in chunks

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]) -> TensorToWrite:
        """From a function that makes the tensor."""

        def load() -> Iterator[Any]:
            tensor = make().to(dtype)
            if tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} where {tuple(shape)} was announced")
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

        return cls(CODES[dtype], tuple(shape), torch.Size(shape).numel() * dtype.itemsize, load)

    def tensor(self) -> Tensor:
        """What is written, in float32; of one of the `FLOATS`."""
        raw = bytearray(b"".join(self.load()))
        return torch.frombuffer(raw, dtype=FLOATS[self.code]).reshape(self.shape).float()


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file that is open; `tensor` reads one tensor at a time."""

    path: Path
    metadata: dict[str, str]
    entries: dict[str, dict[str, Any]]  # the header's, by key: dtype, shape, data_offsets
    start: int  # of the first tensor's bytes
    handle: Any

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read a file's header; safetensors checks that it is sound.

        Raises:
            UserError: missing, truncated or damaged, or a pickle.
        """
        check_no_pickle(path)
        header, start = read_header(path)
        try:
            handle = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({reason(error)}): get it again") from None
        return cls(path, header.pop("__metadata__", None) or {}, header, start, handle)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self.entries[key]["shape"])

    def tensor(self, key: str) -> Tensor:
        """One tensor, lazily: its pages are read from the file when they are used."""
        return self.handle.get_tensor(key)

    def raw(self, key: str) -> Iterator[bytes]:
        """The bytes of one tensor, in chunks."""
        begin, end = self.entries[key]["data_offsets"]
        with self.path.open("rb") as file:
            file.seek(self.start + begin)
            for done in range(begin, end, CHUNK):
                yield file.read(min(CHUNK, end - done))

    def copied(self, key: str) -> TensorToWrite:
        """One tensor as it is, to be written elsewhere byte by byte."""
        begin, end = self.entries[key]["data_offsets"]
        return TensorToWrite(self.entries[key]["dtype"], self.shape(key), end - begin, lambda: self.raw(key))


# ---------------------------------------------------------------- checks


def check_no_pickle(path: Path) -> None:
    """Refuse a pickle by its first bytes, whatever its name, with the line that converts it.

    Raises:
        UserError: it is one.
    """
    try:
        with open_file(path) as file:
            begin = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not begin.startswith(PICKLES) or begin[8:] == b"{":  # the length of a safetensors header can begin so too
        return
    line = conversion_command(shlex.quote(str(path)))
    raise UserError(f"{path} is a pickle, which can run code and is never loaded: convert it with {line}")


def conversion_command(files: str) -> str:
    """The shell line that writes the tensors of pickles beside them as safetensors, and runs nothing that these hold.

    torch loads them with `weights_only`; the class that old checkpoints of Stable Diffusion name becomes a dict.

    Args:
        files: as the shell is to read them.
    """
    return f'python -c "{CONVERT}" {files}'


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and where it ends; the file must be as long as the header promises.

    Raises:
        UserError: truncated or not safetensors, or a LoRA that is not fused.
    """
    try:
        with open_file(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length)) if length < min(path.stat().st_size, MOST_HEADER) else {}
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        whole = path.stat().st_size == 8 + length + end
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        whole = False
    if not whole:
        raise UserError(f"{path} is truncated or no safetensors file: download it again")
    if any(mark in f".{name}." for name in header for mark in UNFUSED):
        raise UserError(
            f"{path} holds a LoRA beside the weights: fuse_lora, unload_lora_weights and save_pretrained first"
        )
    return header, 8 + length


# ---------------------------------------------------------------- writing


def write_tensor_file(
    path: Path,
    tensors: Mapping[str, TensorToWrite],
    metadata: Mapping[str, str],
    *,
    hash_key: str,
    tick: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a safetensors file tensor by tensor; each is loaded once and freed.

    The bytes depend on nothing but tensors and metadata: large elements come first, as safetensors lays them, so
    that each tensor is aligned, then the names' order. The hash is entered when all is written.

    Args:
        path: a temporary name; see `disk.atomic`.
        metadata: of the header, without `hash_key`.
        hash_key: under which the header names the sha256 of all bytes after it.
        tick: called with 1 after every tensor.
    """
    order = sorted(tensors, key=lambda name: (-_element_size(tensors[name]), name))
    at, entries = 0, {}
    for name in order:
        one = tensors[name]
        entries[name] = {"dtype": one.code, "shape": list(one.shape), "data_offsets": [at, at + one.size]}
        at += one.size
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(_header({**metadata, hash_key: NO_HASH}, entries))
        for name in order:
            for chunk in tensors[name].load():
                digest.update(chunk)
                file.write(chunk)
            tick(1)
        file.seek(0)
        file.write(_header({**metadata, hash_key: "0x" + digest.hexdigest()}, entries))
        file.flush()
        os.fsync(file.fileno())
    share(path)


def _element_size(tensor: TensorToWrite) -> int:
    count = torch.Size(tensor.shape).numel()
    return tensor.size // count if count else 8


def _header(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in another precision; integers stay what they are.

    Raises:
        UserError: a value that the precision cannot hold, or that is NaN or infinite already.
    """
    if not tensor.is_floating_point():
        return tensor
    made = tensor.to(dtype or tensor.dtype)
    if torch.isfinite(made).all():
        return made
    if torch.isfinite(tensor).all():
        most, kind = tensor.abs().max().item(), str(dtype).removeprefix("torch.")
        raise UserError(f"{name} holds {most:.4g}, which {kind} cannot: choose --dtype bfloat16 or float32")
    raise UserError(f"{name} holds NaN or infinite values: this checkpoint is broken")


# ---------------------------------------------------------------- hashes


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, shapes and float32 values, in the order of the names.

    Half precision is exact in float32, so a model has the same hash as stored in fp16 and as loaded in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def hash_file(path: Path, start: int = 0) -> str:
    """sha256 of a file's bytes from `start` on."""
    with open_file(path) as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()
