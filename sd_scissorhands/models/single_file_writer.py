"""A whole pipeline as one file of the LDM layout, or its UNet within a user's own file; read back before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..settings import UserError
from .keys import (
    EMA,
    LAST_BLOCK,
    OPEN_CLIP,
    UNET,
    UNUSED_BLOCK,
    XL_OPEN_CLIP,
    Blocks,
    KeyLocation,
    canonical,
    ldm_locations,
)
from .pipeline_directory import Component, PipelineDirectory
from .prediction import MARKERS
from .tensor_files import DTYPES, FLOATS, TensorFile, TensorToWrite


@dataclass(frozen=True)
class LocatedComponent:
    """A component of a pipeline and where its tensors go in a file."""

    component: Component
    locations: dict[str, KeyLocation]  # by canonical name

    def by_key(self) -> dict[str, list[str]]:
        """The canonical names of the tensors at every key; three where query, key and value are joined."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.locations, key=lambda name: self.locations[name].qkv_index or 0):
            found.setdefault(self.locations[name].key, []).append(name)
        return found

    def shape(self, names: list[str]) -> tuple[int, ...]:
        """The shape of what stands at the key of these names."""
        return self.locations[names[0]].ldm_shape(self.component.shape(names[0]))


def locate_components(model: PipelineDirectory, *, unet_only: bool = False) -> list[LocatedComponent]:
    """Every component of a pipeline with its locations, the UNet first; or the UNet alone.

    Raises:
        UserError: a component that is built as none of the LDM layout is.
    """
    if "unet" not in model.components:
        raise UserError(
            f"{model.directory} has a transformer, and a single file is written of models with a UNet alone: "
            "choose diffusers, unet-only (the transformer alone) or delta"
        )
    if not unet_only:
        _check_vocabulary(model)
    chosen = {name: one for name, one in model.components.items() if name == "unet" or not unet_only}
    locations = ldm_locations(
        {name: component.keys for name, component in chosen.items()},
        xl="text_encoder_2" in model.components,
        open_clip=model.config("text_encoder").get("hidden_act") != "quick_gelu",  # which OpenAI's has
        blocks=Blocks.of_config(model.config("unet")),
    )
    return [LocatedComponent(chosen[name], found) for name, found in locations.items()]


def _check_vocabulary(model: PipelineDirectory) -> None:
    """Raises UserError for a text encoder with tokens of its own: a single file holds no tokenizer, no stock config fits it."""
    for text in model.family.texts:
        if added := model.added_tokens(text):
            raise UserError(
                f"{model.directory / model.tokenizer_of(text)} has tokens of its own ({', '.join(added[:3])}), which a single file "
                "cannot hold: choose diffusers, or --base FILE, whose UNet alone is replaced"
            )


def under_own_names(component: Component) -> LocatedComponent:
    """A component whose tensors keep the names that they have in its file."""
    return LocatedComponent(component, {name: KeyLocation(key) for name, key in component.keys.items()})


def tensors_to_write(
    located: LocatedComponent, dtype: torch.dtype | None, base: TensorFile | None = None
) -> dict[str, TensorToWrite]:
    """The tensors of one component by key: in `dtype`, else as in the base, else as in the component's file."""
    component = located.component

    def one(key: str, names: list[str]) -> TensorToWrite:
        if not component.tensor(names[0]).is_floating_point():
            return component.file(names[0]).copied(component.keys[names[0]])
        shape, transposed = located.shape(names), located.locations[names[0]].transposed
        precision = dtype or (FLOATS[base.entries[key]["dtype"]] if base else component.dtype(names[0]))

        def make() -> torch.Tensor:
            tensors = (component.cast(name, precision) for name in names)
            return torch.cat([tensor.T if transposed else tensor for tensor in tensors]).reshape(shape)

        return TensorToWrite.of(shape, precision, make)

    return {key: one(key, names) for key, names in located.by_key().items()}


def with_last_text_block(tensors: dict[str, TensorToWrite]) -> dict[str, TensorToWrite]:
    """A file's tensors with the last block of Stable Diffusion 2's text encoder, which no diffusers pipeline has.

    No picture depends on it, but programs that build all 24 blocks leave it uninitialised where it is missing: it is
    the one before it once more.
    """
    last = {key: one for key, one in tensors.items() if key.startswith(LAST_BLOCK)}
    copied = {key.replace(LAST_BLOCK, UNUSED_BLOCK): one for key, one in last.items()}
    return copied | tensors


def open_base(path: Path, unet: LocatedComponent, model: Path) -> TensorFile:
    """A user's file, whose UNet can be replaced by this one.

    Raises:
        UserError: a pickle, a damaged file, one of another layout or family, or one with a second copy of the UNet.
    """

    def other_kind(what: str) -> UserError:
        return UserError(f"--base {path} is another kind of model, {what}: name a file of the same family as {model}")

    base = TensorFile.open(path)
    own, needed = {key for key in base.entries if key.startswith(UNET)}, unet.by_key()
    if not own:
        raise UserError(f"--base {path} has no {UNET}* tensors: name a whole model in the layout of A1111 and ComfyUI")
    if any(key.startswith(EMA) for key in base.entries):
        raise UserError(
            f"--base {path} holds a second copy of its UNet ({EMA}*), in which the concept would survive: "
            "name a pruned file, without it"
        )
    if other := sorted(own ^ needed.keys()):
        raise other_kind(f"it {'has' if other[0] in own else 'lacks'} {other[0]}")
    for key, names in needed.items():
        if base.shape(key) != unet.shape(names):
            raise other_kind(f"{key} is {list(base.shape(key))} there, {list(unet.shape(names))} here")
        if (code := base.entries[key]["dtype"]) not in FLOATS:
            raise UserError(f"--base {path} holds {key} as {code}: name a file in {', '.join(DTYPES)}")
    return base


# ---------------------------------------------------------------- reading back


def check_written(
    path: Path, model: PipelineDirectory, located: list[LocatedComponent], base: TensorFile | None
) -> None:
    """Read a file through diffusers' own converters: every tensor must come back; and the base's others, byte by byte.

    Raises:
        UserError: something does not.
    """
    written = TensorFile.open(path)
    tensors = {key: written.tensor(key) for key in written.entries}
    for one in located:
        name, config = one.component.name, model.config(one.component.name)
        back = {canonical(name, key): tensor for key, tensor in _converted_back(one, config, tensors).items()}
        wrong = sorted(back.keys() ^ one.locations.keys(), key=str) or [
            own
            for own in one.locations
            if not torch.equal(back[own], one.component.cast(own, back[own].dtype).reshape(back[own].shape))
        ]
        if wrong:
            raise UserError(f"{path} does not read back as it should ({name}.{wrong[0]}): check the disk")
    for key in (base.entries.keys() - located[0].by_key().keys() - set(MARKERS)) if base else ():
        if not all(a == b for a, b in zip(base.raw(key), written.raw(key), strict=True)):  # type: ignore[union-attr]
            raise UserError(f"{path} was not written as it should be ({key} differs from the base's): check the disk")


def _converted_back(
    located: LocatedComponent, config: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A component's tensors by diffusers' names, as diffusers' own converters read them out of an LDM file's."""
    from diffusers.loaders import single_file_utils

    name = located.component.name
    if name == "unet":
        layers = Blocks.of_config(config).layers
        return single_file_utils.convert_ldm_unet_checkpoint(tensors, {**config, "layers_per_block": layers})
    if name == "vae":
        return single_file_utils.convert_ldm_vae_checkpoint(tensors, config)
    if any(key.startswith(tuple(single_file_utils.LDM_CLIP_PREFIX_TO_REMOVE)) for key in located.by_key()):
        return single_file_utils.convert_ldm_clip_checkpoint(tensors)
    network = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    prefix = XL_OPEN_CLIP if name == "text_encoder_2" else OPEN_CLIP
    return single_file_utils.convert_open_clip_checkpoint(network, tensors, prefix)
