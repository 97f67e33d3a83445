"""CLIP out of transformers: embeddings of pictures and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..machine import resolve_device
from ..settings import UserError

BATCH = 32  # pictures through the model at once
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "preprocessor_config.json", "*token*", "vocab.json", "merges.txt")
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
WITHOUT = "none"  # --clip none: no CLIP at all


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model in float32, ready to be asked. Every embedding comes back on the CPU with length 1."""

    name: str  # as the user wrote it
    sha256: str  # of the weights file
    model: Any
    tokenizer: Any
    processor: Any
    device: str

    @property
    def facts(self) -> dict[str, str]:
        """What a result says of it: "clip", its name, and "sha256", of its weights file."""
        return {"clip": self.name, "sha256": self.sha256}

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
        found = [self._pictures(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
        return torch.cat(found) if found else torch.empty(0, self.model.config.projection_dim)

    def _pictures(self, pixels: np.ndarray) -> Tensor:
        ready = self.processor(images=list(pixels), input_data_format="channels_last", return_tensors="pt")
        return _unit(self.model.get_image_features(pixel_values=ready["pixel_values"].to(self.device)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, cut at the model's length: (n, d) float32, unit length."""
        found = [self._texts(list(texts[at : at + BATCH])) for at in range(0, len(texts), BATCH)]
        return torch.cat(found) if found else torch.empty(0, self.model.config.projection_dim)

    def _texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        ready = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = ready["input_ids"].to(self.device), ready["attention_mask"].to(self.device)
        return _unit(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def _unit(found: Any) -> Tensor:
    """transformers 5 answers with an object that holds the projected embedding, transformers 4 with the tensor alone."""
    return F.normalize((found if isinstance(found, Tensor) else found.pooler_output).float(), dim=1).cpu()


# ---------------------------------------------------------------- opening


def open_clip(source: str, device: str) -> Clip:
    """Load a CLIP model from a directory or the hub, safetensors only, and try it once.

    Args:
        source: a directory that transformers' save_pretrained wrote, or a hub id (owner/name).
        device: "auto" or torch's name of one.

    Raises:
        UserError: it cannot be had, is no CLIP model, is pickled, damaged or not what its config.json says, or answers
            nonsense.
    """
    device = resolve_device(device)
    directory = _locate(source)
    _check(source, directory)
    with (directory / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    clip = Clip(source, sha256, *_load(source, directory), device)
    clip.model.to(device)
    _try(clip)
    return clip


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"--clip {source} is a file: name the directory of a CLIP model (with config.json) or a hub id")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"--clip {source} does not exist: name the directory of a CLIP model or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES)))
    except Exception as error:  # huggingface_hub raises a dozen kinds; the first line says which
        raise UserError(
            f"--clip {source} cannot be had from the hub ({_reason(error)}): check the id and the network, or name a local directory"
        ) from None


def _check(source: str, directory: Path) -> None:
    """What can be known without loading anything."""
    config = directory / "config.json"
    try:
        family = json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"--clip {source}: {config} is missing or damaged: name a directory that CLIPModel.save_pretrained wrote"
        ) from None
    if family != "clip":
        raise UserError(f"--clip {source} is a {family} model: name a CLIP model, e.g. openai/clip-vit-large-patch14")
    if not (directory / WEIGHTS).exists():
        raise UserError(
            f"--clip {source} has no {WEIGHTS} (pickled .bin weights are never loaded): save it with safe_serialization=True, or name another"
        )
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
    except Exception as error:  # whatever the three raise; the first line says which file
        raise UserError(
            f"--clip {source} cannot be loaded ({_reason(error)}): download or save it again, or name another"
        ) from None
    model, told = loaded
    if lacking := sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in told[kind]):
        raise UserError(
            f"--clip {source} is incomplete: {WEIGHTS} does not hold {lacking[0]} as config.json says ({len(lacking)} tensors in all); download it again"
        )
    return model.float().eval().requires_grad_(False), tokenizer, processor


def _try(clip: Clip) -> None:
    """One picture and two texts: a tokenizer or image processor of another model, or a NaN, shows here and not later."""
    try:
        picture, texts = clip.pictures(np.zeros((1, 8, 8, 3), np.uint8)), clip.texts(["a photo", "random noise"])
    except Exception as error:
        raise UserError(
            f"--clip {clip.name}: its parts do not fit together ({_reason(error)}): save model, tokenizer and image processor of one model"
        ) from None
    if not all(tensor.isfinite().all() for tensor in (picture, texts, *clip.model.state_dict().values())):
        raise UserError(f"--clip {clip.name} holds NaN or infinite values: download it again, or name another")
    if torch.allclose(texts[0], texts[1], rtol=0, atol=1e-6):
        raise UserError(f"--clip {clip.name} cannot tell two texts apart: save its own tokenizer beside it")


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
