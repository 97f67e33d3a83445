"""CLIP out of transformers: embeddings of pictures and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..disk import hash_files
from ..errors import UserError, reason
from ..files import check_regular, hash_file, read_object
from ..machine import resolve_device
from ..models.config_bounds import check_bounds
from ..models.hub import fetch
from ..models.pretrained import WEIGHTS, check_safetensors, check_whole
from ..naming import may_be_on_hub

BATCH = 32  # pictures through the model at once
FILES = ("config.json", WEIGHTS, "preprocessor_config.json", "*token*", "vocab.json", "merges.txt")
TIE = 1e-6  # cosines that are nearer than this are equal: float32 and the batch size move the last digits


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model in float32. Every embedding comes back on the CPU with length 1."""

    name: str  # as the user wrote it
    sha256: str  # of the weights file
    config_sha256: str  # of everything else that it is loaded from
    model: Any
    tokenizer: Any
    processor: Any
    device: str

    @property
    def facts(self) -> dict[str, str]:
        """What a result says of it: "clip", its name, and the hashes of its weights file and of its other files."""
        return {"clip": self.name, "sha256": self.sha256, "config_sha256": self.config_sha256}

    @torch.no_grad()
    def pictures(self, pixels: np.ndarray) -> Tensor:
        """Embeddings of pictures of any size, through the model's own resizing and centre crop.

        Args:
            pixels: (B, h, w, 3) uint8 RGB.

        Returns:
            (B, d) float32, unit length.

        Raises:
            ValueError: another shape or dtype.
        """
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise ValueError(f"pictures of {pixels.dtype} {pixels.shape}: they must be (B, h, w, 3) uint8")

        def embed(some: np.ndarray) -> Any:
            ready = self.processor(images=list(some), input_data_format="channels_last", return_tensors="pt")
            return self.model.get_image_features(pixel_values=ready["pixel_values"].to(self.device))

        return self._batched(pixels, embed)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, cut at the model's length: (n, d) float32, unit length."""
        length = self.model.config.text_config.max_position_embeddings

        def embed(some: Sequence[str]) -> Any:
            """The model's answer to some texts."""
            ready = self.tokenizer(list(some), padding=True, truncation=True, max_length=length, return_tensors="pt")
            ids, mask = ready["input_ids"].to(self.device), ready["attention_mask"].to(self.device)
            return self.model.get_text_features(input_ids=ids, attention_mask=mask)

        return self._batched(texts, embed)

    def _batched(self, items: Any, embed: Callable[[Any], Any]) -> Tensor:
        """Embeddings batch by batch; transformers 5 answers with an object that holds them, transformers 4 with a tensor."""
        found = [embed(items[at : at + BATCH]) for at in range(0, len(items), BATCH)]
        tensors = [one if isinstance(one, Tensor) else one.pooler_output for one in found]
        if not tensors:
            return torch.empty(0, self.model.config.projection_dim)
        return F.normalize(torch.cat(tensors).float(), dim=1).cpu()


# ---------------------------------------------------------------- opening


def open_clip(source: str, device: str) -> Clip:
    """Load a CLIP model from a directory or the hub, safetensors only, and try it once.

    Args:
        source: a directory that transformers' save_pretrained wrote, or a hub id (owner/name).
        device: "auto" or torch's name of one.

    Raises:
        UserError: it cannot be had, is no CLIP model, is pickled, damaged or at odds with its config.json, or answers
            nonsense.
    """
    device = resolve_device(device)
    directory = _locate(source)
    _check(source, directory)
    others = sorted({file for pattern in FILES for file in directory.glob(pattern)} - {directory / WEIGHTS})
    clip = Clip(source, hash_file(directory / WEIGHTS), hash_files(others), *_load(source, directory), device)
    clip.model.to(device)
    _try(clip)
    return clip


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"--clip {source} is a file: name the directory of a CLIP model (with config.json) or a hub id")
    if not may_be_on_hub(source):
        raise UserError(f"--clip {source} does not exist: name the directory of a CLIP model or a hub id (owner/name)")
    return fetch(source, None, list(FILES), flag="--clip")


def _check(source: str, directory: Path) -> None:
    """What can be known without loading anything."""
    config = directory / "config.json"
    check_regular(directory)
    try:
        values = read_object(config)
    except UserError:
        raise UserError(
            f"--clip {source}: {config} is missing or damaged: name a directory that CLIPModel.save_pretrained wrote"
        ) from None
    check_bounds(config, values)
    family = values.get("model_type")
    if family != "clip":
        raise UserError(f"--clip {source} is a {family} model: name a CLIP model, e.g. openai/clip-vit-large-patch14")
    check_safetensors(f"--clip {source}", directory)
    if not any((directory / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"--clip {source} has no tokenizer.json: save its CLIPTokenizer beside the model")


def _load(source: str, directory: Path) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor; torchvision is not needed for any."""
    import transformers

    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    try:
        loaded: Any = transformers.CLIPModel.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(directory, local_files_only=True)
        processor = processor.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever the three raise; the first line names the file
        raise UserError(
            f"--clip {source} cannot be loaded ({reason(error)}): download or save it again, or name another"
        ) from None
    model, report = loaded
    check_whole(f"--clip {source}", report)
    return model.float().eval().requires_grad_(False), tokenizer, processor


def _try(clip: Clip) -> None:
    """One picture and two texts: a tokenizer or image processor of another model, or a NaN, shows here and not later."""
    try:
        picture, texts = clip.pictures(np.zeros((1, 8, 8, 3), np.uint8)), clip.texts(["a photo", "random noise"])
    except Exception as error:
        raise UserError(
            f"--clip {clip.name}: its parts do not fit together ({reason(error)}): save model, tokenizer and image processor of one model"
        ) from None
    if not all(tensor.isfinite().all() for tensor in (picture, texts, *clip.model.state_dict().values())):
        raise UserError(f"--clip {clip.name} holds NaN or infinite values: download it again, or name another")
    if torch.allclose(texts[0], texts[1], rtol=0, atol=TIE):
        raise UserError(f"--clip {clip.name} cannot tell two texts apart: save its own tokenizer beside it")
