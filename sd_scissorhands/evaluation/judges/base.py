"""What a judge is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...concepts import Concept
    from ...domains.base import Domain

Record = dict[str, Any]  # one judge's answer about one picture, as JSON


@dataclass(frozen=True)
class Features:
    """Numbers that describe pictures, for distances between sets of them."""

    extract: Callable[[np.ndarray], Tensor]  # (B, h, w, 3) uint8 RGB -> (B, d) float32
    name: str
    sha256: str  # of the weights that they come from
    size: int | None = None  # pixels a side that other pictures are brought to; None: their own
    texts: Callable[[Sequence[str]], Tensor] | None = (
        None  # embeddings of prompts in the same space, for the CLIP score
    )

    @property
    def facts(self) -> dict[str, str]:
        """What identifies them."""
        return {"features": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is opened for."""

    concept: Concept
    domain: Domain
    threshold: float  # from which on the concept counts as seen
    source: str | None = None  # where the judge comes from, if a user brings it
    clip: str | None = None  # CLIP model, local or hub; None: the default where the domain wants one; "none" for none
    device: str = "auto"


class Judge:
    """Judges pictures, one JSON record each, and reads later what a record means; None where it cannot know."""

    summary: str  # of what it is, in a sentence
    threshold: float = 0.5  # from which on the concept counts as seen, unless another is given
    domain: str | None = None  # the only one whose pictures it knows
    download: str = ""  # what it takes to have it, in a few words
    second: str | None = None  # judge whose figures are shown beside its own, where that one can judge the same
    facts: dict[str, Any]  # "judge": its name, and whatever its answers depend on; goes into every result
    features: Features | None = None

    @classmethod
    def missing(cls, request: JudgeRequest) -> str:
        """Why it cannot judge this, to follow its name; nothing if it can."""
        return ""

    @classmethod
    def open(cls, request: JudgeRequest) -> Judge:
        """The judge for a concept."""
        raise NotImplementedError

    def look(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[Record]:
        """What each picture shows: pictures (B, h, w, 3) uint8 RGB, with the prompts they were drawn for."""
        raise NotImplementedError

    def sees(self, record: Record) -> bool:
        """Whether the concept is in the picture."""
        raise NotImplementedError

    def nothing(self, record: Record) -> bool | None:
        """Whether the judge can name nothing at all in it."""
        return None

    def shown(self, record: Record) -> str | None:
        """What the picture shows, of the concept's kind; the same name for the same thing."""
        return None

    def can_show(self, name: str) -> bool:
        """Whether `shown` has this name at all, so that it is no finding if it never gives it."""
        return True

    def right(self, record: Record, prompt: str) -> bool | None:
        """Whether the picture shows what its prompt names, of the concept's kind."""
        return None

    def others(self, record: Record, prompt: str) -> list[bool | None]:
        """Whether all else that a prompt names is drawn right: an answer a word, or one for the whole."""
        return []

    def answer(self, record: Record) -> str:
        """The record in a word or two."""
        return "seen" if self.sees(record) else "not seen"
