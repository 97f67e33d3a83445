"""What can be erased: presets out of prompts/, the words of the embedded world, and free text with an anchor."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .settings import UserError
from .tiny import world

FREE_TEMPLATES = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a painting of {}", "a drawing of {}", "a close-up of {}",
    "{}, highly detailed", "{} in a city", "{} in nature", "{} at night", "a black and white photo of {}",
)  # fmt: skip
GENERIC = ("something", "an object", "a thing", "")


@dataclass(frozen=True)
class Concept:
    """A concept, the words that name it, and what takes its place.

    `pairs` are (forget prompt, neutral twin); the twin is the same sentence with the anchor in the concept's place.
    """

    name: str
    title: str
    kind: str
    summary: str
    explicit: bool  # its pictures are shown blurred
    anchor: str  # what takes its place, in a word
    pairs: tuple[tuple[str, str], ...]
    neighbours: tuple[str, ...]  # near the concept, and to be kept
    labels: tuple[str, ...]  # NudeNet labels that show it
    words: tuple[str, ...] = ()  # what the pairs call it, its own name first
    templates: tuple[str, ...] = ()  # sentences with "{}" where the concept goes
    paraphrases: tuple[str, ...] = ()  # other names, which no pair uses
    generic: tuple[str, ...] = ("",)  # what says less in the concept's place, "" for nothing at all

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """Every prompt of the pairs -> its template, with "{}" in the concept's place, and the word that fills it."""
        return {t.replace("{}", word): (t, word) for word in self.words for t in self.templates}

    @property
    def vague(self) -> tuple[str, ...]:
        """Prompts that leave open what the concept would say: every template with a generic word, and the empty prompt."""
        filled = (" ".join(t.replace("{}", word).split()) for word in self.generic for t in self.templates)
        return tuple(dict.fromkeys([*filled, ""]))


def prompts_dir() -> Path:
    """Where the presets lie: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "prompts"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "prompts"


def presets() -> list[Concept]:
    """Every preset, by name."""
    return [_read(file) for file in sorted(prompts_dir().glob("*.toml"))]


def resolve(text: str, anchor: str | None, *, in_world: bool, beside: frozenset[str] = frozenset()) -> Concept:
    """The concept that a user's word means.

    Args:
        text: a preset's name, a word of the embedded world, or free text.
        anchor: what takes its place; None leaves it to the preset or the world.
        in_world: the model is the embedded one, whose vocabulary knows nothing else.
        beside: what else is erased in the same run; the world takes no anchor from it.

    Raises:
        UserError: a word that the model cannot know, or free text without an anchor.
    """
    text = text.strip()
    if not text:
        raise UserError("--concept is empty: name a preset (sdscissor concepts) or the text to erase")
    if in_world:
        return of_world(text.lower(), anchor, beside=beside)
    file = prompts_dir() / f"{text}.toml"
    if "/" not in text and file.exists():
        return _read(file, anchor)
    if anchor is None:
        raise UserError(
            f"--concept {text!r} is no preset (see sdscissor concepts): for free text add --anchor TEXT, what takes its place"
        )
    pairs = tuple((template.format(text), template.format(anchor)) for template in FREE_TEMPLATES)
    summary = f"The text {text!r}."
    return Concept(text, text, "text", summary, False, anchor, pairs, (), (), (text,), FREE_TEMPLATES, (), GENERIC)


def _read(file: Path, anchor: str | None = None) -> Concept:
    data = tomllib.loads(file.read_text())
    pairs = tuple(
        (template.format(word), template.format(anchor or twin))
        for word, twin in data["words"].items()
        for template in data["templates"]
    )
    return Concept(
        file.stem, data["title"], data["kind"], data["summary"], data["explicit"], anchor or next(iter(data["words"].values())),
        pairs, tuple(data["neighbours"]), tuple(data["labels"]), tuple(data["words"]), tuple(data["templates"]),
        tuple(data["paraphrases"]), tuple(data["generic"]),
    )  # fmt: skip


def general_captions() -> list[str]:
    """The package's own diverse captions."""
    return (prompts_dir() / "general.txt").read_text().splitlines()


def read_prompts(path: Path, flag: str) -> list[str]:
    """One prompt a line, blank lines skipped.

    Raises:
        UserError: unreadable or empty file.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path} cannot be read: {error}") from None
    if not (prompts := [line for line in lines if line]):
        raise UserError(f"{flag} {path} holds no prompt: write one a line")
    return prompts


# ---------------------------------------------------------------- the embedded world


@cache
def of_world(word: str, anchor: str | None = None, count: int = 400, beside: frozenset[str] = frozenset()) -> Concept:
    """A concept of the embedded world: `count` captions that name it by its own name, each with its twin.

    Only the concept's own name is used, never a synonym: what the erasure does to "disc" when "circle" was erased is
    for the evaluation to find out.

    Raises:
        UserError: a word or an anchor that is not of the world.
    """
    concept = world.concept_of(word)
    if concept is None:
        known = ", ".join(c for concepts in world.DOMAINS.values() for c in concepts)
        raise UserError(f"--concept {word!r} is not of the embedded model's world: choose one of {known}")
    taken = {concept, *(world.concept_of(other) for other in beside)}
    siblings = [world.ANCHORS[concept], *world.DOMAINS[str(world.domain_of(concept))]]
    anchor = anchor or next((c for c in siblings if c not in taken), world.ANCHORS[concept])
    if world.domain_of(anchor) != world.domain_of(concept) or world.concept_of(anchor) == concept:
        raise UserError(f"--anchor {anchor!r} must be another {world.domain_of(concept)} of the embedded world")
    rng = np.random.default_rng(7)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        text = world.caption(world.sample(rng).replace(concept), rng, synonyms=0, generic=0)
        if concept in text.split():
            pairs[text] = " ".join(anchor if w == concept else w for w in text.split())
    domain = str(world.domain_of(concept))
    near = tuple(f"a {c} shape" if domain != "shape" else f"a {c}" for c in world.DOMAINS[domain] if c != concept)
    summary = f"The {domain} {concept!r} of the embedded world."
    templates = dict.fromkeys(" ".join("{}" if w == concept else w for w in text.split()) for text in pairs)
    return Concept(
        concept, concept.capitalize(), domain, summary, False, anchor, tuple(pairs.items()), near, (),
        (concept,), tuple(templates), world.DOMAINS[domain][concept][1:],
        world.GENERIC_NOUNS if domain == "shape" else ("",),
    )  # fmt: skip


def world_captions(without: set[str], count: int, seed: int) -> list[str]:
    """Diverse captions of the embedded world, synonyms and generic words included, that name none of `without`."""
    rng = np.random.default_rng(seed)
    captions: list[str] = []
    while len(captions) < count:
        text = world.caption(world.sample(rng), rng)
        if not without & set(world.read(text).values()):
            captions.append(text)
    return captions


def together(concepts: Sequence[Concept], gone: Sequence[str] = ()) -> list[Concept]:
    """Concepts that are erased in one run, without the pairs whose twin names another of them or what is `gone` already.

    "A red circle" for "a red square" would keep red alive while red is erased.

    Raises:
        UserError: no pair of a concept is left, as when its anchor is erased too.
    """
    kept = []
    for concept in concepts:
        others = {word for name in gone for word in called(name)}
        others |= {word for other in concepts if other is not concept for word in other.words}
        pairs = tuple(pair for pair in concept.pairs if not any(_names(pair[1], word) for word in others))
        if not pairs:
            raise UserError(
                f"--concept {concept.name}: all that takes its place ({concept.anchor}) is erased too: choose another --anchor"
            )
        kept.append(dataclasses.replace(concept, pairs=pairs))
    return kept


def spares(text: str, erased: Sequence[str], *, in_world: bool) -> bool:
    """Whether a prompt asks for nothing that is erased.

    In the embedded world it must also say something in every domain of it: what is left open may be filled with it.
    """
    if not in_world:
        return not any(_names(text, word) for name in erased for word in called(name))
    named = world.read(text)
    return all(named.get(str(world.domain_of(name)), name) != name for name in erased)


@cache
def called(name: str) -> tuple[str, ...]:
    """What a concept is called in prompts: a preset by its words and paraphrases, any other by its name."""
    file = prompts_dir() / f"{name}.toml"
    if "/" in name or not file.exists():
        return (name,)
    preset = _read(file)
    return (name, *preset.words, *preset.paraphrases)


def _names(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word.lower())}\b", text.lower()) is not None
