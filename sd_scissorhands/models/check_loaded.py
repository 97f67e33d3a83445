"""Every part of a loaded pipeline held against its files: names, shapes and values of tensors, and what tokenizers know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .component import Component
from .keys import canonical
from .pipeline_directory import PipelineDirectory

PROMPT = "a photo of a cat"


def check_loaded(pipeline: Any, files: PipelineDirectory) -> None:
    """Compare every network and tokenizer of a pipeline with its files: libraries make up what these lack, with a warning.

    Raises:
        UserError: naming the first file and tensor that differ, or are not finite; or the tokenizer.
    """
    for name in files.component_names:
        _check_network(getattr(pipeline, name), files.component(name), files)
        if name in files.family.texts:
            tokenizer = files.tokenizer_of(name)
            _check_tokenizer(getattr(pipeline, tokenizer), getattr(pipeline, name), tokenizer, name, files)


def misfit(files: PipelineDirectory) -> str | None:
    """The first tensor whose shape is not what its part's config.json asks for, which libraries refuse without a name; None if none is."""
    import diffusers
    import transformers

    for name in files.component_names:
        component, folder = files.component(name), files.directory / name
        library, kind = files.index[name]
        made_of = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
        with torch.device("meta"):
            if library == "diffusers":
                module = made_of.from_config(made_of.load_config(folder))
            else:
                module = made_of(made_of.config_class.from_pretrained(folder, local_files_only=True))
        for key, tensor in module.state_dict().items():
            own = canonical(name, key)
            if own in component.keys and (shape := component.shape(own)) != tuple(tensor.shape):
                return (
                    f"{component.file(own).path} has {own} of {list(shape)}, config.json asks for {list(tensor.shape)}"
                )
    return None


def _check_network(module: nn.Module, component: Component, files: PipelineDirectory) -> None:
    """Raises UserError unless a network holds its files' tensors and no others."""
    name, where = component.name, files.directory / component.name
    loaded = {own: one for key, one in module.state_dict().items() if (own := canonical(name, key))}
    places = {one.data_ptr() for own, one in loaded.items() if own in component.keys and not one.is_meta}
    doubt = f"{where} was not loaded as it is on disk: its config.json does not fit its weights"
    for own, tensor in loaded.items():
        tied = not tensor.is_meta and tensor.data_ptr() in places  # T5 has its embedding under two names
        if own not in component.keys and not tied:
            raise UserError(f"{doubt}, {component.files[0].path.name} lacks {own}; get it again")
    known, finite = {own.split(".")[0] for own in loaded}, _finite(loaded.values())
    for own, key in component.keys.items():
        if own not in loaded:
            if (
                name == files.family.part or own.split(".")[0] in known
            ):  # else of a larger model, as a CLIP's vision tower
                raise UserError(
                    f"{doubt}, which have no place for {key} of {component.file(own).path.name}; get it again"
                )
        elif not finite and not torch.isfinite(loaded[own]).all():
            raise UserError(
                f"{component.file(own).path}: {files.family.called if name == files.family.part else name}'s {own} "
                "holds NaN or infinite values: this checkpoint is broken, use another"
            )
        elif not _same(loaded[own], component.tensor(own)):
            raise UserError(
                f"{doubt}, {key} of {component.file(own).path.name} has another shape or other values; get it again"
            )


def _finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating number of some tensors is NaN or infinite: their greatest sizes alone are looked at."""
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    sizes = torch._foreach_norm(floating, ord=torch.inf)
    return bool(torch.stack([size.float() for size in sizes]).isfinite().all()) if sizes else True


def _same(loaded: Tensor, stored: Tensor) -> bool:
    """Whether a tensor is the stored one, in the precision that it was loaded in."""
    return loaded.numel() == stored.numel() and torch.equal(loaded, stored.to(loaded.dtype).reshape(loaded.shape))


def _check_tokenizer(tokenizer: Any, encoder: Any, name: str, text: str, files: PipelineDirectory) -> None:
    """Raises UserError for a tokenizer with more tokens than its encoder embeds, or that does not give a prompt back."""
    where, rows = files.directory / name, encoder.get_input_embeddings().weight.shape[0]
    if (tokens := max(tokenizer.get_vocab().values(), default=-1) + 1) > rows:
        raise UserError(
            f"{where} has {tokens} tokens, and {text} embeds {rows}: save the text encoder with the tokens that were added "
            "(resize_token_embeddings), or the tokenizer without them"
        )
    back = tokenizer.decode(tokenizer(PROMPT).input_ids)  # with special tokens: a word of it may pad as well
    if "".join(PROMPT.split()) not in "".join(back.lower().split()):
        raise UserError(f"{where} reads {PROMPT!r} as {back[:40]!r}: its files are damaged or missing, get them again")
