"""An add-on: what an erasure changed, as a LyCORIS file that the loaders of ComfyUI and A1111 lay over the base.

Every changed layer of the UNet has one name, `lora_unet_` and diffusers' own with _ for every dot (of SDXL the original
one, as kohya's scripts have it), and after it

    .diff               the weight's change, whole, in its own shape
    .diff_b             the bias's

or, with a rank, for weights alone, whose best approximation of that rank is up times down:

    .lora_up.weight     (out, rank), of a convolution (out, rank, 1, 1)
    .lora_down.weight   (rank, in), of a convolution (rank, in, height, width)
    .alpha              the rank, so that the product counts once

`lycoris.modules.full` and `.locon` of KohakuBlueleaf/LyCORIS are the source of the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import hash_file
from ..parsing import parse_json
from .component import Component
from .delta import FORMAT, REMEDY, Origin
from .keys import UNET, Blocks, ldm_locations
from .modelspec import HASH, OWN
from .pipeline_directory import PipelineDirectory
from .tensor_files import DTYPES, TensorFile, TensorToWrite, cast

RANK, WHOLE = OWN + "rank", "whole"  # the metadata that marks an add-on: its rank, or that it holds all of the change
RESULT = OWN + "result_dtype"  # the metadata of what the sum is rounded to, as programs do that hold the model in it
WEIGHT, BIAS = ".diff", ".diff_b"
UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
MOST_LOST = 0.05  # of the change's energy; at rank 16 esd loses .03 on the embedded model, the default .3
ADD_ON = "an add-on"
BACK = "at a strength below 1, or left out, the concept is back"


@dataclass
class Fit:
    """How near the base comes to the erased model with an add-on over it."""

    tensors: int = 0
    equal: int = 0  # of them, bit for bit
    energy: float = 0.0  # sum of squares of the change
    missed: float = 0.0  # sum of squares of what remains

    def add(self, before: Tensor, after: Tensor, made: Tensor) -> None:
        """Count one tensor: the base's, the erased model's, and what the add-on makes of it."""
        self.tensors, self.equal = self.tensors + 1, self.equal + torch.equal(made, after)
        self.energy += (after - before).double().square().sum().item()
        self.missed += (made - after).double().square().sum().item()

    @property
    def lost(self) -> float:
        """The share of the change's energy that the add-on lacks."""
        return self.missed / self.energy if self.energy else 0.0


def change_in(metadata: Mapping[str, str]) -> str | None:
    """What a file is that changes a model and is none, by its header: a delta or an add-on; None: neither."""
    return "a delta" if FORMAT in metadata else ADD_ON if RANK in metadata else None


# ---------------------------------------------------------------- names


def layer_names(model: PipelineDirectory) -> dict[str, str]:
    """An add-on's name of every layer of the UNet, by diffusers'.

    Raises:
        UserError: a model with a transformer, whose add-ons have other names.
    """
    check_unet(model)
    unet, names = model.config("unet"), list(model.denoiser.keys)
    if "text_encoder_2" in model.components:
        found = ldm_locations({"unet": names}, xl=True, open_clip=False, blocks=Blocks.of_config(unet))["unet"]
        keys = {name: location.key.removeprefix(UNET) for name, location in found.items()}
    else:
        keys = {name: name for name in names}
    return {_layer(name): "lora_unet_" + _layer(key).replace(".", "_") for name, key in keys.items()}


def check_unet(model: PipelineDirectory) -> None:
    """Raises UserError for a model with a transformer."""
    if model.family.part != "unet":
        raise UserError(
            f"{model.directory} has a transformer, and an add-on is written of models with a UNet alone: "
            "choose diffusers, unet-only (the transformer alone) or delta"
        )


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


# ---------------------------------------------------------------- making


def make_addon(
    model: PipelineDirectory,
    base: Component,
    rank: int | None,
    dtype: torch.dtype | None,
    tick: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, TensorToWrite], Fit]:
    """The tensors of an add-on, by key, and how near it comes; two tensors of a model are in memory at a time.

    Args:
        base: the UNet that the model was made from.
        rank: of every layer's change; None: the whole of it.
        dtype: None: as the erased model has each tensor.
        tick: called with 1 after every tensor of the model.

    Raises:
        UserError: a transformer, a change that the precision cannot hold, or one that loses more than `MOST_LOST`.
    """
    erased, layers, result = model.denoiser, layer_names(model), result_dtype(model.denoiser)
    tensors, fit = dict[str, TensorToWrite](), Fit()
    for name in erased.keys:
        before, after = base.tensor(name).float(), erased.tensor(name).float()
        found, precision = dict[str, Tensor](), dtype or erased.dtype(name)
        if not torch.equal(before, after):
            found = {end: cast(name, one, precision) for end, one in _parts(name, after - before, rank).items()}
        fit.add(before, after, _laid_over(before, change_of(name, found), result))
        for end, one in found.items():
            made = partial(_difference, erased, base, name) if rank is None else partial(torch.clone, one)
            tensors[layers[_layer(name)] + end] = TensorToWrite.of(tuple(one.shape), precision, made)
        tick(1)
    if rank is None:
        tensors |= _still(tensors, model, layers, dtype)
    _check_fit(model, fit, rank)
    return tensors, fit


def _parts(name: str, change: Tensor, rank: int | None) -> dict[str, Tensor]:
    """What stands in the file for one tensor's change, by the end of its key; nothing of a vector where there is a rank."""
    if rank is None:
        return {BIAS if name.endswith(".bias") else WEIGHT: change}
    if change.dim() < 2:
        return {}
    up, down = nearest(change, rank)
    return {UP: up, DOWN: down, ALPHA: torch.tensor(float(up.shape[1]))}


def nearest(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors of the nearest matrix of a rank, each with half of the size: (out, in, ...) -> (out, r, ...), (r, in, ...).

    A convolution counts as a matrix (out, in * height * width). r is at most the change's own rank. By the eigenvectors of the
    smaller Gram matrix, in float64 (Eckart and Young, 1936).
    """
    matrix = change.flatten(1).double()
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)  # ascending
    most = squares[-1].clamp(min=torch.finfo(torch.float64).tiny)
    chosen = (squares[-rank:] > most * 1e-14).nonzero().view(-1) + max(len(squares) - rank, 0)
    vectors, halves = vectors[:, chosen], squares[chosen].pow(0.25)
    if wide:
        up, down = vectors * halves, (vectors / halves).T @ matrix
    else:
        up, down = matrix @ (vectors / halves), (vectors * halves).T
    ones = (1,) * (change.dim() - 2)
    return up.float().reshape(len(up), -1, *ones), down.float().reshape(-1, *change.shape[1:])


def change_of(name: str, parts: Mapping[str, Tensor]) -> Tensor | None:
    """A tensor's change, float32, from what stands in a file for it, by the end of its key; None: it has none."""
    whole = parts.get(BIAS if name.endswith(".bias") else WEIGHT)
    if whole is not None:
        return whole.float()
    if UP not in parts or name.endswith(".bias"):
        return None
    up, down = parts[UP].float(), parts[DOWN].float()
    product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
    return product * (parts[ALPHA].float() / up.shape[1])


def result_dtype(erased: Component) -> torch.dtype:
    """The precision of all of the erased model's tensors; float32 where they have several."""
    found = {erased.dtype(name) for name in erased.keys}
    return found.pop() if len(found) == 1 else torch.float32


def _laid_over(before: Tensor, change: Tensor | None, result: torch.dtype) -> Tensor:
    return before if change is None else (before + change.to(before.device)).to(result).float()


def _difference(erased: Component, base: Component, name: str) -> Tensor:
    return erased.tensor(name).float() - base.tensor(name).float()


def _still(
    tensors: Mapping[str, TensorToWrite], model: PipelineDirectory, layers: Mapping[str, str], dtype: torch.dtype | None
) -> dict[str, TensorToWrite]:
    """Zeros for the weights that did not change beside a bias that did: A1111 takes no layer without a weight."""
    names = (
        f"{layer}.weight" for layer, key in layers.items() if key + BIAS in tensors and key + WEIGHT not in tensors
    )
    shapes = {name: model.denoiser.shape(name) for name in names}
    return {
        layers[_layer(name)] + WEIGHT: TensorToWrite.of(
            shape, dtype or model.denoiser.dtype(name), partial(torch.zeros, shape)
        )
        for name, shape in shapes.items()
    }


def _check_fit(model: PipelineDirectory, fit: Fit, rank: int | None) -> None:
    if not fit.energy:
        raise UserError(f"{model.directory} has the weights of its base: there is nothing to add")
    if fit.lost <= MOST_LOST:
        return
    much = f"{fit.lost:.1%} of the change's energy, {MOST_LOST:.0%} at most: the concept would be back"
    if rank is None:
        raise UserError(f"this precision loses {much}; choose --dtype float32")
    raise UserError(f"--rank {rank} loses {much}; raise it, or leave it out for the whole change")


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class AddOn:
    """An add-on as read; its tensors are loaded when it is laid over a model."""

    file: TensorFile
    origin: Origin
    result: torch.dtype

    @classmethod
    def read(cls, path: Path) -> AddOn:
        """An add-on of ours, its tensors checked by their hash.

        Raises:
            UserError: missing or damaged, or not ours.
        """
        file = TensorFile.open(path)
        about = {key.removeprefix(OWN): text for key, text in file.metadata.items()}
        if file.metadata.get(HASH) != f"0x{hash_file(path, file.start)}":
            raise UserError(f"{path} holds other tensors than its header says: {REMEDY}")
        try:
            concepts, seed = tuple(map(str, parse_json(about["concepts"]))), int(about["seed"])
            result = DTYPES[file.metadata[RESULT]]
            origin = Origin(
                about["base"], about["base_sha256"], about["weights_sha256"], about["recipe"], concepts, seed
            )
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path} has a header that makes no sense: {REMEDY}") from None
        return cls(file, origin, result)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor], model: PipelineDirectory) -> int:
        """Lay it over a UNet's float32 weights, in place; returns how many of them changed.

        Raises:
            UserError: a key that no layer has, or a change of another shape.
        """
        layers, changed, left = layer_names(model), 0, set(self.file.entries)
        for name, tensor in weights.items():
            key = layers[_layer(name)]
            ends = [end for end in (WEIGHT, BIAS, UP, DOWN, ALPHA) if key + end in self.file.entries]
            left -= {key + end for end in ends}
            try:
                change = change_of(name, {end: self.file.tensor(key + end) for end in ends})
            except (KeyError, RuntimeError):  # a factor is missing or does not fit the other
                raise UserError(f"{self.file.path} holds no whole change of {key}: {REMEDY}") from None
            if change is None:
                continue
            if change.shape != tensor.shape:
                raise UserError(
                    f"{self.file.path} holds {key} as {list(change.shape)}, the UNet as {list(tensor.shape)}"
                )
            made = _laid_over(tensor, change, self.result)
            changed += int((made != tensor).sum())
            tensor.copy_(made)
        if left:
            raise UserError(f"{self.file.path} holds {min(left)}, which no layer of the UNet is called: {REMEDY}")
        return changed
