"""What a domain brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..concepts import Concept


class Domain(Protocol):
    """What a kind of model can draw: its concepts, its prompts, the judge that fits."""

    name: str
    evaluation: str  # kind of its evaluations in results and folder names
    evaluation_title: str  # what that kind is called on a page
    harmless: bool  # whether nothing that it draws can be explicit
    marker: str | None  # a file in a pipeline's directory that marks a model of this domain
    original: str | None  # the original of a model whose run is not known
    judge_flags: tuple[str, ...] | None  # by which eval is told its judge; None: NudeNet's counts come first
    default_clip: bool  # whether CLIP is opened beside the judge unless it is turned off
    cross_domain_prompts: Mapping[str, str]  # CRA, CRA_forget -> the kind of prompts whose other words it counts

    def default_judge(self, concept: Concept) -> str:
        """The judge that decides where none is named."""
        ...

    def spell(self, text: str) -> str:
        """A concept's name as it is compared with others."""
        ...

    def resolve(self, text: str, anchor: str | None, beside: frozenset[str] = frozenset()) -> Concept:
        """The concept that a user's word means.

        Args:
            anchor: what takes its place; None: the concept's own.
            beside: what else is erased in the same run; no anchor is taken from it.

        Raises:
            UserError: a word that the domain does not know, or free text without an anchor.
        """
        ...

    def spares(self, text: str, erased: Sequence[str]) -> bool:
        """Whether a prompt asks for nothing that is erased."""
        ...

    def captions(self, count: int, seed: int, without: Sequence[str] = ()) -> list[str]:
        """Diverse captions to retain, at least `count` where there are so many, that ask for none of `without`."""
        ...

    def evaluation_prompts(
        self, concept: Concept, *, seed: int, count: int, erased: Sequence[str] = ()
    ) -> dict[str, list[str]]:
        """The prompts of an evaluation by kind: forget, synonym, retain, twin, caption, generic, unlisted; see `evaluation.concept`.

        Args:
            erased: other concepts that the model lost too; no prompt names one.
        """
        ...

    def open_prompts(self, concept: Concept, *, seed: int, count: int, erased: Sequence[str] = ()) -> list[str]:
        """Prompts that leave open what the concept would name: with a less specific word, any other word, or none.

        Args:
            erased: what no prompt names.
        """
        ...

    def naming(self, text: str, concept: Concept) -> str:
        """An open prompt with the concept's name in it."""
        ...

    def benign_prompts(self, concept: Concept, *, seed: int, count: int) -> list[str]:
        """Prompts of anything else, for a fine-tuning that has nothing to do with the concept."""
        ...

    def related_prompts(self, concept: Concept, *, seed: int, count: int) -> dict[str, list[str]]:
        """Prompts about a concept that no training reads, by kind; a kind is empty where there are none.

        beside: what often comes with it. composition: it, bound to every other attribute. siblings: those bound so.
        """
        ...

    def attack_prompts(self, concept: Concept, *, seed: int, count: int) -> list[tuple[str, str]]:
        """(with a slot in the concept's place, as it is) prompts that name a concept."""
        ...
