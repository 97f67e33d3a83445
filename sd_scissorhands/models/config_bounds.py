"""Bounds of the numbers in configs, checked before anything is built of them: one digit too many may take all memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable

MOST_BLOCKS = 16  # numbers of a list, one a block
BOUNDS = {  # what a key is called, in any config -> smallest and largest whole number
    r"(transformer_)?layers_per_block|reverse_transformer_layers_per_block": (0, 32),
    r"(num|n)_(\w+_)?(layers?|blocks?)|depths?|layers": (0, 256),
    r"sample_size|image_size|crop_size|size|height|width|(short|long)est_edge|pos_embed_max_size": (1, 2048),
    r"patch_size|(in|out|latent|num)_channels|(num|n)_(\w+_)?heads|attention_head_dim|d_kv|norm_num_groups": (1, 2**14),
    r"block_out_channels|hidden_sizes?|intermediate_size|d_model|d_ff|\w*(attention|projection|embed)_dim": (1, 2**17),
    r"vocab_size|max_position_embeddings|num_train_timesteps": (1, 2**21),
    r"model_max_length": (1, 10**40),  # absurd where there is none; an encoder's own limit is what counts
}
TEXTS = r"_class_name|prediction_type|beta_schedule|timestep_spacing|model_type|addition_embed_type|\w+_processor_type"
LABELS = ("id2label", "label2id")  # their keys are anybody's words


def check_bounds(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for more than any model has, or holds something else than a number where one belongs.

    Args:
        file: that it was read from.

    Raises:
        UserError: naming the file, the key and what is allowed.
    """
    for key, value in _entries(config):
        if re.fullmatch(TEXTS, key) and not isinstance(value, str | None):
            raise UserError(f"{printable(file)} has {key} = {_short(value)}, which must be a text: get it again")
        for pattern, (least, most) in BOUNDS.items():
            if re.fullmatch(pattern, key) and not _fits(value, least, most):
                allowed = f"which must be a whole number from {least} to {most:,}"
                raise UserError(f"{printable(file)} has {key} = {_short(value)}, {allowed}: get it again")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, of configs inside a config too."""
    for key, value in config.items():
        if not isinstance(value, Mapping):
            yield key, value
        elif key not in LABELS:
            yield from _entries(value)


def _fits(value: Any, least: int, most: int) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_BLOCKS and all(_fits(one, least, most) for one in value)
    return value is None or (type(value) is int and least <= value <= most)


def _short(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 40 else f"{text[:40]}..."
