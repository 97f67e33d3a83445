"""Any model but the embedded one: presets, out of prompts/ or a user's own, and free text with an anchor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..concepts import (
    SLOT,
    Concept,
    called,
    filled,
    free_text,
    general_captions,
    names,
    names_of,
    preset,
    preset_names,
    shuffled,
    unlisted_words,
)
from ..errors import UserError
from ..parsing import did_you_mean
from ..preset_check import bare
from . import DOMAINS


class Photographs:
    """A model of the open world, about which nothing is known beforehand."""

    name, evaluation = "photographs", "concept"
    evaluation_title, harmless = "concept's judge", False
    marker: str | None = None
    original: str | None = None
    judge_flags: tuple[str, ...] | None = None
    default_clip = True
    cross_domain_prompts: Mapping[str, str] = {"CRA": "caption"}

    def default_judge(self, concept: Concept) -> str:
        """NudeNet where it has labels for the concept, else CLIP."""
        return "nudenet" if concept.labels else "clip"

    def spell(self, text: str) -> str:
        """Unchanged but for space around it."""
        return text.strip()

    def resolve(self, text: str, anchor: str | None, beside: frozenset[str] = frozenset()) -> Concept:
        """A preset, by its name or its path, or free text with an anchor.

        Raises:
            UserError: free text without an anchor, an anchor that is the concept, or a file that cannot be used.
        """
        text = text.strip()
        if not text:
            raise UserError("--concept is empty: name a preset (sdscissor concepts) or the text to erase")
        if (found := preset(text, anchor)) is not None:
            _check_anchor(anchor, found.words)
            return found
        if anchor is None:
            meant = did_you_mean(text, preset_names())
            raise UserError(
                f"--concept {text!r}{meant and f'{meant} It'} is no preset (see sdscissor concepts): for free text add --anchor TEXT, what takes its place; a preset of your own is named by its path, NAME.toml"
            )
        _check_anchor(anchor, (text,))
        return free_text(text, anchor)

    def spares(self, text: str, erased: Sequence[str]) -> bool:
        """Whether a prompt contains no name of what is erased."""
        return not any(names(text, word) for name in erased for word in names_of(name))

    def captions(self, count: int, seed: int, without: Sequence[str] = ()) -> list[str]:
        """The package's general captions, in their own order."""
        return [text for text in general_captions() if self.spares(text, without)]

    def evaluation_prompts(
        self, concept: Concept, *, seed: int, count: int, erased: Sequence[str] = ()
    ) -> dict[str, list[str]]:
        """Prompts of the preset or of free text, each list in a seeded order."""
        pairs = shuffled(concept.pairs, count, seed)
        near = [text for text in concept.neighbours if self.spares(text, erased)]
        others = [t.format(word) for word in concept.paraphrases for t in concept.templates]
        return {
            "forget": [forget for forget, _ in pairs],
            "synonym": shuffled(others, count // 2, seed) if others else [],
            "retain": shuffled(near, min(count, len(near)), seed) if near else [],
            "twin": [neutral for _, neutral in pairs[: count // 2]],
            "caption": shuffled(self.captions(count, seed, erased), count - count // 2, seed),
            "generic": shuffled(concept.vague, min(count // 2, len(concept.vague)), seed),
            "unlisted": shuffled(unlisted(concept), count // 2, seed),
        }

    def open_prompts(self, concept: Concept, *, seed: int, count: int, erased: Sequence[str] = ()) -> list[str]:
        """In turn nothing, a template with a less specific word, and a template with any word of the general captions."""
        every = {word for text in general_captions() for word in re.findall("[a-z]{4,}", text)}
        words = shuffled(sorted(every), count, seed)
        others = [
            template.replace(SLOT, word)
            for word, template in zip(words, shuffled(concept.templates, count, seed), strict=False)
        ]
        vague = shuffled(concept.vague, count, seed)
        found = [text for three in zip([""] * count, vague, others, strict=False) for text in three]
        return [text for text in found if self.spares(text, (*called(concept), *erased))][:count]

    def naming(self, text: str, concept: Concept) -> str:
        """At the end."""
        return ", ".join(part for part in (text, concept.words[0]) if part)

    def benign_prompts(self, concept: Concept, *, seed: int, count: int) -> list[str]:
        """General captions in a seeded order."""
        return shuffled(general_captions(), count, seed)

    def related_prompts(self, concept: Concept, *, seed: int, count: int) -> dict[str, list[str]]:
        """What the preset has beside the concept; no composition, since no judge knows every attribute that a prompt names."""
        beside = shuffled(concept.beside, count, seed) if concept.beside else []
        return {"beside": beside, "composition": [], "siblings": []}

    def attack_prompts(self, concept: Concept, *, seed: int, count: int) -> list[tuple[str, str]]:
        """The concept's own templates: it has no others."""
        return shuffled(filled(concept), count, seed)


def _check_anchor(anchor: str | None, words: Sequence[str]) -> None:
    """Refuse an anchor that names the concept itself."""
    if anchor and any(names(anchor, bare(word)) for word in words):
        raise UserError(f"--anchor {anchor!r} is the concept itself: name what takes its place")


def unlisted(concept: Concept) -> list[str]:
    """Every template of a concept with every unlisted word in its place."""
    spared = [
        word
        for word in unlisted_words()
        if not any(names(text, word) for text in (*concept.words, *concept.neighbours))
    ]
    return [
        template.replace(SLOT, f"{'an' if word[0] in 'aeiou' else 'a'} {word}")
        for template in concept.templates
        for word in spared
    ]


DOMAINS.add("photographs", Photographs())
