"""The embedded model's world of drawn shapes: a closed vocabulary, captions without end, and a judge that knows them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from string import ascii_lowercase

import numpy as np

from ..concepts import SLOT, Concept, names_of, preset, shuffled, unlisted_words
from ..errors import UserError
from ..parsing import choose, did_you_mean
from ..preset_check import bare, names_file
from ..tiny import world
from . import DOMAINS

BOUND = "a {pattern} {colour} {shape} on a {background} background"  # names an attribute of every category


class Canvas:
    """The embedded model, or one that was made from it."""

    name, evaluation = "canvas", "canvas"
    evaluation_title, harmless = "embedded world", True
    marker: str | None = "world.json"
    original: str | None = "tiny"
    judge_flags: tuple[str, ...] | None = ("--canvas",)
    default_clip = False
    cross_domain_prompts: Mapping[str, str] = {"CRA": "retain", "CRA_forget": "forget"}

    def default_judge(self, concept: Concept) -> str:
        """The world's own."""
        return "canvas"

    def spell(self, text: str) -> str:
        """In lower case, as the world's words are; a path is left as it is."""
        return text.strip() if names_file(text) else text.strip().lower()

    def resolve(self, text: str, anchor: str | None, beside: frozenset[str] = frozenset()) -> Concept:
        """A word of the world, see `world_concept`, or a file of such words, see `of_file`."""
        if not text.strip():
            raise UserError("--concept is empty: name a preset (sdscissor concepts) or the text to erase")
        if names_file(text):
            return of_file(text.strip(), anchor)
        return world_concept(self.spell(text), anchor, beside=frozenset(map(in_world, beside)))

    def spares(self, text: str, erased: Sequence[str]) -> bool:
        """Whether a prompt names something else in every category of what is erased: what is left open may be filled with it."""
        named = world.read(text)
        return all(named.get(str(world.category_of(name)), name) != name for name in map(in_world, erased))

    def captions(self, count: int, seed: int, without: Sequence[str] = ()) -> list[str]:
        """Captions of the world, synonyms and generic words included, that name none of `without`."""
        rng, found, lost = np.random.default_rng(seed), list[str](), set(map(in_world, without))
        while len(found) < count:
            text = world.caption(world.sample(rng), rng)
            if not lost & set(world.read(text).values()):
                found.append(text)
        return found

    def evaluation_prompts(
        self, concept: Concept, *, seed: int, count: int, erased: Sequence[str] = ()
    ) -> dict[str, list[str]]:
        """No forget prompt is among those that the erasure learns from. Retain prompts name a sibling: another concept of the
        same category. Synonym prompts use the world's other words for the concept, twins its anchor. Generic prompts leave
        the concept's category open, every sixth is empty. Unlisted prompts have a word in the concept's place that is
        not of the world.
        """
        name = in_world(concept.words[0])
        lost = {name, *map(in_world, erased)}
        category, rng = str(world.category_of(name)), np.random.default_rng([seed, 2_000_003])
        seen = {forget for forget, _ in concept.pairs}
        others = [c for c in world.CATEGORIES[category] if c not in lost]
        synonyms = world.CATEGORIES[category][name][1:]

        def caption(subject: str, spoken: str | None = None) -> str:
            """A random caption that names the subject, or `spoken` in its place."""
            while True:
                text = world.caption(world.sample(rng).replace(subject), rng, synonyms=0, generic=0)
                if subject in text.split() and text not in seen and not (lost - {subject}) & set(text.split()):
                    return " ".join(spoken if spoken and w == subject else w for w in text.split())

        forget = [caption(name) for _ in range(count)]
        return {
            "forget": forget,
            "synonym": [caption(name, str(rng.choice(synonyms))) for _ in range(count // 2)],
            "retain": [caption(str(rng.choice(others))) for _ in range(count)],
            "twin": [
                " ".join(concept.anchor if w == name else w for w in text.split()) for text in forget[: count // 2]
            ],
            "caption": self.captions(count - count // 2, seed + 5, tuple(lost)),
            "generic": [open_caption(category, lost, rng) if n % 6 else "" for n in range(count // 2)],
            "unlisted": [caption(name, word) for word in shuffled(unlisted_words(), count // 2, seed)],
        }

    def open_prompts(self, concept: Concept, *, seed: int, count: int, erased: Sequence[str] = ()) -> list[str]:
        """A third is empty, a third leaves the concept's category open, a third has a made-up word in the concept's place."""
        rng, name = np.random.default_rng([seed, 3_000_017]), in_world(concept.words[0])
        category, lost = str(world.category_of(name)), {name, *map(in_world, erased)}

        def made_up() -> str:
            word = "".join(rng.choice(list(ascii_lowercase), rng.integers(3, 9)))
            return str(rng.choice(concept.templates)).replace(SLOT, word)

        kinds = (lambda: "", lambda: open_caption(category, lost, rng), made_up)
        found = [kinds[n % 3]() for n in range(3 * count)]
        return [text for text in found if not lost & set(text.split())][:count]

    def naming(self, text: str, concept: Concept) -> str:
        """In place of a generic or made-up word where the concept is a shape, else before all others."""
        words, known = text.split(), {*world.words(), ","} - set(world.GENERIC_NOUNS)
        free, name = [at for at, word in enumerate(words) if word not in known], in_world(concept.words[0])
        if not free or concept.kind != "shape":
            return f"a {name} {text or 'shape'}"
        return " ".join([*words[: free[0]], name, *words[free[0] + 1 :]])

    def benign_prompts(self, concept: Concept, *, seed: int, count: int) -> list[str]:
        """Captions that do not name the concept."""
        return self.captions(count, seed + 11, concept.words[:1])

    def related_prompts(self, concept: Concept, *, seed: int, count: int) -> dict[str, list[str]]:
        """Captions of other attributes; every combination in one sentence that names all four, but those that the erasure learns from."""
        name, seen = in_world(concept.words[0]), {text for pair in concept.pairs for text in pair}
        category, rng = str(world.category_of(name)), np.random.default_rng([seed, 4_000_037])
        every = (dict(zip(world.CATEGORIES, one, strict=True)) for one in product(*world.CATEGORIES.values()))
        texts = [text for one in every if (text := BOUND.format(**one)) not in seen]
        own = [text for text in texts if name in text.split()]
        siblings = [text for text in texts if name not in text.split()]
        beside = concept.beside or [open_caption(category, {name}, rng) for _ in range(count)]
        kinds = {"beside": beside, "composition": own, "siblings": siblings}
        return {kind: shuffled(some, count, seed) for kind, some in kinds.items()}

    def attack_prompts(self, concept: Concept, *, seed: int, count: int) -> list[tuple[str, str]]:
        """Prompts that no erasure learns from."""
        plain = self.evaluation_prompts(concept, seed=seed + 50, count=count)["forget"]
        name = in_world(concept.words[0])
        return [(" ".join(SLOT if word == name else word for word in text.split()), text) for text in plain]


def open_caption(category: str, lost: set[str], rng: np.random.Generator) -> str:
    """A caption that names nothing of a category, and none of the lost concepts."""
    while True:
        text = world.caption(world.sample(rng), rng, synonyms=0, generic=float(category == "shape"))
        if category not in (named := world.read(text)) and not lost & set(named.values()):
            return text


def in_world(name: str) -> str:
    """The world's concept that a name means, or the words of the file that it is a path of; any other name is left as it is."""
    words = names_of(name) if names_file(name) else (name,)
    return next((concept for word in words if (concept := world.concept_of(bare(word)))), name)


def of_file(path: str, anchor: str | None = None) -> Concept:
    """A preset of one's own as the world has it: its words, which must name one concept, without their articles.

    Raises:
        UserError: words that do not, replacements of another category, or a prompt with a word that the model cannot read;
            and see `concepts.preset`.
    """
    found = preset(path, anchor)
    assert found is not None  # of a path
    name = in_world(found.words[0])
    category = str(world.category_of(name))
    instead = {world.read(neutral).get(category) for _, neutral in found.pairs}
    if world.category_of(name) is None or {*map(in_world, found.words)} != {name} or instead & {None, name}:
        raise UserError(
            f"--concept {path}: words: on the embedded model all must name the same word of its world, and their replacements "
            'others of its kind, such as "a heart" = "a triangle"'
        )
    foreign = tuple(text for _, texts in found.translations for text in texts)
    for key in ("templates", "generic", "neighbours", "beside", "translations"):
        spoken = (
            " ".join(foreign if key == "translations" else getattr(found, key))
            .replace(SLOT, " ")
            .replace(",", " ")
            .split()
        )
        if strange := sorted({*spoken} - {*world.words()}):
            raise UserError(
                f"--concept {path}: {key}: {strange[0]!r} is not of the embedded model's world: use words of its captions"
            )
    articles = dict.fromkeys(word.removesuffix(bare(word)) for word in found.words)
    return dataclasses.replace(
        found, kind=category, anchor=in_world(found.anchor), words=tuple(dict.fromkeys(map(bare, found.words))),
        templates=tuple(text.replace(SLOT, article + SLOT) for text in found.templates for article in articles),
        paraphrases=tuple(map(bare, found.paraphrases)), generic=tuple(map(bare, found.generic)),
    )  # fmt: skip


@cache
def world_concept(word: str, anchor: str | None = None, beside: frozenset[str] = frozenset()) -> Concept:
    """A concept of the embedded world: 400 captions that name it by its own name, each with its neutral prompt.

    Only the concept's own name is used, never a synonym: what the erasure does to "disc" when "circle" was erased is
    for the evaluation to find out.

    Raises:
        UserError: a word or an anchor that is not of the world.
    """
    concept = world.concept_of(word)
    if concept is None:
        known = ", ".join(c for concepts in world.CATEGORIES.values() for c in concepts)
        meant = did_you_mean(
            word, [name for every in world.CATEGORIES.values() for names in every.values() for name in names]
        )
        raise UserError(
            f"--concept {word!r} is not of the embedded model's world{meant + ' C' if meant else ': c'}hoose one of {known}"
        )
    taken = {concept, *(world.concept_of(other) for other in beside)}
    category = str(world.category_of(concept))
    siblings = [world.ANCHORS[concept], *world.CATEGORIES[category]]
    anchor = anchor or next((c for c in siblings if c not in taken), world.ANCHORS[concept])
    if world.category_of(anchor) != category or world.concept_of(anchor) == concept:
        others = choose(anchor, [name for name in world.CATEGORIES[category] if name != concept])
        raise UserError(f"--anchor {anchor!r} must be another {category} of the embedded world{others}")
    rng = np.random.default_rng(7)
    pairs: dict[str, str] = {}
    while len(pairs) < 400:
        text = world.caption(world.sample(rng).replace(concept), rng, synonyms=0, generic=0)
        if concept in text.split():
            pairs[text] = " ".join(anchor if w == concept else w for w in text.split())
    near = tuple(
        f"a {c} shape" if category != "shape" else f"a {c}" for c in world.CATEGORIES[category] if c != concept
    )
    summary = f"The {category} {concept!r} of the embedded world."
    templates = dict.fromkeys(" ".join("{}" if w == concept else w for w in text.split()) for text in pairs)
    return Concept(
        concept, concept.capitalize(), category, summary, False, anchor, tuple(pairs.items()), near, (),
        (concept,), tuple(templates), world.CATEGORIES[category][concept][1:],
        world.GENERIC_NOUNS if category == "shape" else ("",),
    )  # fmt: skip


DOMAINS.add("canvas", Canvas())
