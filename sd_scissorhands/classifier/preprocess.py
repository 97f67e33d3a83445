"""Pictures as a model takes them, by its preprocessor_config.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..settings import UserError

PREPROCESSING = "preprocessor_config.json"
SQUARE = ("ViT", "DeiT", "Beit", "Pvt", "Siglip")  # a size given as one number means height and width
SHORT_SIDE = ("ConvNext", "CLIP", "Bit", "MobileNetV1", "MobileNetV2")  # here it means the shorter side
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # where a file asks for normalisation and names none: ViT's


def prepare(image: Image.Image, config: dict[str, Any], channels: int) -> Tensor:
    """A picture as a model takes it: resized, cut, scaled and normalised by preprocessor_config.json.

    The same as transformers' processors on PIL for the types in `SQUARE` and `SHORT_SIDE`, to rounding.

    Args:
        channels: 1 (grey) or 3.

    Returns:
        (channels, h, w) float32.

    Raises:
        UserError: a type of preprocessing that is unknown here.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    if not kind.startswith(SQUARE + SHORT_SIDE):
        raise UserError(
            f"{PREPROCESSING} asks for {kind}, which is unknown here: prepare the pictures and give floats as .npz"
        )
    image = image.convert("L" if channels == 1 else "RGB")
    if config.get("do_resize", True) and "size" in config:
        image = _resize(image, config, kind)
    if config.get("do_center_crop", kind.startswith(("CLIP", "Bit", "DeiT", "MobileNet"))) and "crop_size" in config:
        crop = config["crop_size"]
        image = _cut(image, *((crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])))
    pixels = torch.from_numpy(np.array(image, np.float32)).reshape(image.height, image.width, channels).permute(2, 0, 1)
    if config.get("do_rescale", True):
        pixels = pixels * config.get("rescale_factor", 1 / 255)
    if config.get("do_normalize", True):
        mean, std = (
            torch.tensor(config.get(key) or value) for key, value in (("image_mean", MEAN), ("image_std", STD))
        )
        pixels = (pixels - mean[:channels].view(-1, 1, 1)) / std[:channels].view(-1, 1, 1)
    return pixels.contiguous()


def _resize(image: Image.Image, config: dict[str, Any], kind: str) -> Image.Image:
    size, method = (
        config["size"],
        Image.Resampling(config.get("resample", 3 if kind.startswith(("ConvNext", "CLIP", "Bit")) else 2)),
    )
    if isinstance(size, int):
        size = {"shortest_edge": size} if kind.startswith(SHORT_SIDE) else {"height": size, "width": size}
    if "shortest_edge" not in size:
        return image.resize((size["width"], size["height"]), method)
    side = size["shortest_edge"]
    if not kind.startswith("ConvNext"):
        return image.resize(_with_short_side(image, side), method)
    if side >= 384:
        return image.resize((side, side), method)
    return _cut(
        image.resize(_with_short_side(image, int(side / config.get("crop_pct", 224 / 256))), method), side, side
    )


def _with_short_side(image: Image.Image, side: int) -> tuple[int, int]:
    """(width, height) with the shorter one `side` and the other in proportion, cut to a whole number."""
    if image.width <= image.height:
        return side, int(side * image.height / image.width)
    return int(side * image.width / image.height), side


def _cut(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of a picture; black where it is too small."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
