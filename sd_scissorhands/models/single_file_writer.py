"""A whole pipeline as one file of the LDM layout, or its UNet within a user's own file; read back before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..settings import UserError
from .keys import EMA, OPEN_CLIP, UNET, XL_OPEN_CLIP, Blocks, Place, canonical, text_layouts, unet_places, vae_places
from .source import Part, Source
from .tensor_files import DTYPES, TORCH, Piece, Stored

OTHER = "name a file of the same family as {model}"


@dataclass(frozen=True)
class Placed:
    """A part of a pipeline and where its tensors go."""

    part: Part
    places: dict[str, Place]

    def by_key(self) -> dict[str, list[str]]:
        """The tensors that stand at every key; three where query, key and value are joined."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.places, key=lambda name: self.places[name].third or 0):
            found.setdefault(self.places[name].key, []).append(name)
        return found

    def shape(self, key: str, names: list[str]) -> tuple[int, ...]:
        """The shape of what stands at a key."""
        return self.places[names[0]].shape_of(self.part.shape(names[0]))


def place_all(source: Source, *, unet_only: bool = False) -> list[Placed]:
    """Every part of a pipeline with its places, or the UNet alone.

    Raises:
        UserError: a part that is built as none of the LDM layout is.
    """
    if "unet" not in source.parts:
        raise UserError(
            f"{source.directory} has a transformer, and a single file is written of models with a UNet alone: "
            "choose diffusers, unet-only (the transformer alone) or delta"
        )
    unet, vae = source.parts["unet"], source.parts["vae"]
    placed = [Placed(unet, unet_places(unet.keys, Blocks.of_config(source.config("unet"))))]
    if unet_only:
        return placed
    layouts = text_layouts(xl="text_encoder_2" in source.parts, open_clip=is_open_clip(source))
    texts = [Placed(source.parts[name], places(source.parts[name].keys)) for name, places in layouts.items()]
    return [*placed, Placed(vae, vae_places(vae.keys)), *texts]


def is_open_clip(source: Source) -> bool:
    """Whether the only text encoder is OpenCLIP's, as in Stable Diffusion 2; it has another activation than OpenAI's."""
    return source.config("text_encoder").get("hidden_act") != "quick_gelu"


def pieces_of(placed: Placed, dtype: torch.dtype | None, base: Stored | None = None) -> dict[str, Piece]:
    """What is to be written of one part, by its key: in `dtype`, else as in the base, else as it lies in its file."""

    def one(key: str, names: list[str]) -> Piece:
        shape = placed.shape(key, names)
        kept = dtype or (TORCH[base.entries[key]["dtype"]] if base else placed.part.dtype(names[0]))

        def make() -> torch.Tensor:
            return torch.cat([placed.places[name].turned(placed.part.cast(name, kept)) for name in names])

        return Piece.of(shape, kept, lambda: make().reshape(shape))

    return {key: one(key, names) for key, names in placed.by_key().items()}


# ---------------------------------------------------------------- a user's own file


def open_base(path: Path, placed: Placed, model: Path) -> Stored:
    """A user's file, whose UNet can be replaced by this one.

    Raises:
        UserError: a pickle, a damaged file, one of another layout or family, or one with a second copy of the UNet.
    """
    base = Stored.open(path)
    own = {key for key in base.entries if key.startswith(UNET)}
    if not own:
        raise UserError(f"--base {path} has no {UNET}* tensors: name a whole model in the layout of A1111 and ComfyUI")
    if any(key.startswith(EMA) for key in base.entries):
        raise UserError(
            f"--base {path} holds a second copy of its UNet ({EMA}*), in which the concept would survive: "
            "name a pruned file, without it"
        )
    wanted = placed.by_key()
    other = sorted(own ^ wanted.keys())
    if other:
        whose = "has" if other[0] in own else "lacks"
        raise UserError(f"--base {path} is another kind of model, it {whose} {other[0]}: {OTHER.format(model=model)}")
    for key, names in wanted.items():
        if base.shape(key) != placed.shape(key, names):
            shapes = f"{list(base.shape(key))} there, {list(placed.shape(key, names))} here"
            raise UserError(f"--base {path} is another kind of model, {key} is {shapes}: {OTHER.format(model=model)}")
        if (code := base.entries[key]["dtype"]) not in TORCH:
            raise UserError(f"--base {path} holds {key} as {code}: name a file in {', '.join(DTYPES)}")
    return base


def with_base(base: Stored, placed: Placed, dtype: torch.dtype | None) -> dict[str, Piece]:
    """The user's file with this UNet; each of its tensors in the precision that the file had there, unless one is named."""
    return {key: base.piece(key) for key in base.entries} | pieces_of(placed, dtype, base)


# ---------------------------------------------------------------- reading back


def check_written(path: Path, source: Source, placed: list[Placed], base: Stored | None) -> None:
    """Read a file through diffusers' own converters: every tensor must come back; and the base's others, byte by byte.

    Raises:
        UserError: something does not.
    """
    from diffusers.loaders import single_file_utils as theirs

    written = Stored.open(path)
    held = {key: written.tensor(key) for key in written.entries}
    configs = {one.part.name: source.config(one.part.name) for one in placed}
    for one in placed:
        config = configs[one.part.name]
        if one.part.name == "unet":
            layers = Blocks.of_config(config).layers
            back = theirs.convert_ldm_unet_checkpoint(held, {**config, "layers_per_block": layers})
        elif one.part.name == "vae":
            back = theirs.convert_ldm_vae_checkpoint(held, config)
        elif any(key.startswith(tuple(theirs.LDM_CLIP_PREFIX_TO_REMOVE)) for key in one.by_key()):
            back = theirs.convert_ldm_clip_checkpoint(held)
        else:
            shape = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
            prefix = XL_OPEN_CLIP if one.part.name == "text_encoder_2" else OPEN_CLIP
            back = theirs.convert_open_clip_checkpoint(shape, held, prefix)
        _check_same(path, one, back)
    for key in (base.entries.keys() - placed[0].by_key().keys()) if base else ():
        if not all(a == b for a, b in zip(base.raw(key), written.raw(key), strict=True)):  # type: ignore[union-attr]
            raise UserError(f"{path} was not written as it should be ({key} differs from the base's): check the disk")


def _check_same(path: Path, placed: Placed, back: Mapping[str, Any]) -> None:
    found = {canonical(placed.part.name, name): tensor for name, tensor in back.items()}
    missing = sorted(found.keys() ^ placed.places.keys(), key=str)
    wrong = missing or [
        name
        for name in placed.places
        if not torch.equal(found[name], placed.part.cast(name, found[name].dtype).reshape(found[name].shape))
    ]
    if wrong:
        raise UserError(f"{path} does not read back as it should ({placed.part.name}.{wrong[0]}): check the disk")
