"""CLIP out of transformers: embeddings of pictures and texts, and a judge of any concept in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts import general_captions
from ...disk import hash_files
from ...errors import UserError, reason
from ...files import check_regular, read_object
from ...machine import resolve_device
from ...models.config_bounds import check_bounds
from ...models.hub import fetch
from ..metrics.clip_score import score
from . import JUDGES
from .base import Features, Judge, JudgeRequest, Record

BATCH = 32  # pictures through the model at once
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "preprocessor_config.json", "*token*", "vocab.json", "merges.txt")
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
WITHOUT = "none"  # --clip none: no CLIP at all
CLIP_TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a painting of {}")
EMPTY = ("random noise", "a blank image", "a blurry meaningless texture")
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
    with (directory / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    others = sorted({file for pattern in FILES for file in directory.glob(pattern)} - {directory / WEIGHTS})
    clip = Clip(source, sha256, hash_files(others), *_load(source, directory), device)
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
    except Exception as error:  # whatever the three raise; the first line names the file
        raise UserError(
            f"--clip {source} cannot be loaded ({reason(error)}): download or save it again, or name another"
        ) from None
    model, report = loaded
    if lacking := sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]):
        raise UserError(
            f"--clip {source} is incomplete: {WEIGHTS} does not hold {lacking[0]} as config.json has it ({len(lacking)} tensors in all); download it again"
        )
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


# ---------------------------------------------------------------- the judge


def _source(request: JudgeRequest) -> str | None:
    """Where CLIP is to come from; None for no CLIP."""
    if request.clip == WITHOUT or (request.clip is None and not request.domain.default_clip):
        return None
    return request.clip or DEFAULT_CLIP


class ConceptJudge(Judge):
    """Says by CLIP whether a concept is in a picture: a judge for everything that words can name.

    Zero-shot classification (Radford et al. 2021, section 3.1.4): the classes are the concept and what is near it, a
    class's embedding is the mean over `CLIP_TEMPLATES` and, for the concept, over every phrase that names it. A probability is
    relative to these classes, so another list of `others` gives another judge; the list is among the facts.
    """

    summary = "CLIP: any concept in words, among its neighbours"

    @classmethod
    def missing(cls, request: JudgeRequest) -> str:
        """Whether there is a CLIP model."""
        return "" if _source(request) else "needs a CLIP model: name a directory or a hub id with --clip"

    @classmethod
    def open(cls, request: JudgeRequest) -> ConceptJudge:
        """With the concept's own neighbours as the classes beside it."""
        concept = request.concept
        return cls(
            open_clip(str(_source(request)), request.device), concept=concept.name, texts=concept.words,
            others=(concept.anchor, *concept.neighbours[:16]), candidates=(*concept.neighbours, *general_captions()),
            threshold=request.threshold,
        )  # fmt: skip

    def __init__(
        self, clip: Clip, *, concept: str, texts: Sequence[str], others: Sequence[str], candidates: Sequence[str],
        threshold: float = 0.5,
    ):  # fmt: skip
        """Embed the classes and the candidates, once.

        Args:
            concept: the class's name in records.
            texts: phrases that name the concept.
            others: the anchor and the neighbours, a class each; those that name the concept themselves are left out.
            candidates: prompts among which a picture's own must come first for it to be right.
            threshold: probability of the concept from which `sees` is true.

        Raises:
            ValueError: no phrase that names the concept, no other class, or a threshold outside (0, 1).
        """
        named = {text.lower() for text in (concept, *texts)}
        others = [other for other in dict.fromkeys(others) if other.lower() not in named]
        if not texts or not others or not 0 < threshold < 1:
            raise ValueError("a ConceptJudge needs texts, others that are not the concept, and 0 < threshold < 1")
        self.clip, self.threshold = clip, threshold
        self.features = Features(clip.pictures, f"CLIP {clip.name}", clip.sha256, texts=clip.texts)
        self.candidates = tuple(dict.fromkeys(candidates))
        self.names = (concept, *others)
        self.facts = {
            "judge": "clip", **clip.facts, "concept": concept, "texts": list(texts), "others": others,
            "templates": list(CLIP_TEMPLATES), "empty": list(EMPTY), "threshold": threshold, "candidates": len(self.candidates),
            "candidates_sha256": hashlib.sha256(json.dumps(self.candidates).encode()).hexdigest(),
        }  # fmt: skip
        self._classes = torch.stack([self._class(texts), *(self._class([other]) for other in others)])  # (C, d)
        self._empty, self._candidates = clip.texts(EMPTY), clip.texts(self.candidates)  # (3, d), (N, d)
        self._scale = float(clip.model.logit_scale.exp())

    def _class(self, texts: Sequence[str]) -> Tensor:
        prompts = [template.format(text) for text in texts for template in CLIP_TEMPLATES]
        return F.normalize(self.clip.texts(prompts).mean(0), dim=0)

    def look(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[Record]:
        """Embed pictures (B, h, w, 3) uint8 RGB of any size, and `describe` them."""
        return self.describe(self.clip.pictures(pixels), prompts)

    def describe(self, pictures: Tensor, prompts: Sequence[str]) -> list[Record]:
        """One record a picture, from embeddings that are already there.

        Args:
            pictures: embeddings of the pictures, (B, d).
            prompts: what each was drawn for, B of them.

        Returns:
            probability: of the concept, among all classes. best: name of the likeliest class. score: CLIP score against
            the picture's own prompt. nothing: chance of the likeliest text of `EMPTY` against the own prompt, of these two.
            right: whether the own prompt comes first among the candidates (R-precision, Park et al. 2021; theirs are 99
            random captions drawn anew for each picture, here the list is fixed); None without candidates; a tie is right.

        Raises:
            ValueError: as many prompts as pictures are needed.
        """
        if len(pictures) != len(prompts):
            raise ValueError(f"{len(pictures)} pictures and {len(prompts)} prompts")
        if not len(pictures):
            return []
        own = self.clip.texts(prompts)  # (B, d)
        cosine = (pictures * own).sum(1)  # (B,)
        chances = (self._scale * pictures @ self._classes.T).softmax(1)  # (B, C)
        nothing = (self._scale * ((pictures @ self._empty.T).amax(1) - cosine)).sigmoid()
        columns = (chances[:, 0], chances.argmax(1), score(pictures, own), nothing)
        return [
            {
                "probability": round(chance, 6), "best": self.names[best], "score": round(score, 4),
                "nothing": round(empty, 6), "right": right,
            }
            for chance, best, score, empty, right in zip(
                *(column.tolist() for column in columns), self._first(pictures, cosine, prompts), strict=True
            )
        ]  # fmt: skip

    def _first(self, pictures: Tensor, cosine: Tensor, prompts: Sequence[str]) -> list[bool | None]:
        """Whether no other candidate is nearer than the own prompt."""
        if not self.candidates:
            return [None] * len(prompts)
        own = torch.tensor([[candidate == prompt for candidate in self.candidates] for prompt in prompts])  # (B, N)
        best = (pictures @ self._candidates.T).masked_fill(own, -2).amax(1)
        return (cosine >= best - TIE).tolist()

    def sees(self, record: Record) -> bool:
        """Whether the concept's probability reaches the threshold."""
        return record["probability"] >= self.threshold

    def nothing(self, record: Record) -> bool | None:
        """Whether words for an empty picture fit better than the picture's own prompt."""
        return record["nothing"] > 0.5

    def shown(self, record: Record) -> str:
        """The likeliest class: the concept, the anchor or a neighbour."""
        return record["best"]

    def right(self, record: Record, prompt: str) -> bool | None:
        """Whether the picture was nearest to its own prompt; `prompt` must be the one that `look` was given."""
        return record["right"]

    def others(self, record: Record, prompt: str) -> list[bool | None]:
        """As `right`: a prompt is one whole."""
        return [record["right"]]

    def answer(self, record: Record) -> str:
        """The likeliest class."""
        return record["best"]


JUDGES.add("clip", ConceptJudge)
