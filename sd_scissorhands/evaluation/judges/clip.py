"""A judge of any concept in words, by CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts import general_captions
from ...disk import hash_text
from ..clip import TIE, Clip, open_clip
from ..metrics.clip_score import score
from . import JUDGES
from .base import Features, Judge, JudgeRequest, Record

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
WITHOUT = "none"  # --clip none: no CLIP at all
CLIP_TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a painting of {}")
EMPTY = ("random noise", "a blank image", "a blurry meaningless texture")


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
    download = (
        f"{DEFAULT_CLIP} is a download of 1.7 GB (its model.safetensors), once; --clip DIRECTORY names one that is here"
    )

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
            "candidates_sha256": hash_text(json.dumps(self.candidates)),
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
