"""The embedded model's world: drawings of one shape in one colour and fill on one background, with captions.

Everything here is numpy and deterministic in the generator that the caller passes. A drawing is described by a
`Drawing`; `draw` turns it into pixels, `caption` into words. `junk` makes pictures that show nothing of the world,
for the judge's "other" class.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np

SIZE = 32  # pixels a side
SUPERSAMPLE = 4  # every pixel averages SUPERSAMPLE x SUPERSAMPLE samples

# Category -> concept -> the words that name it; the first word is the concept's own name.
CATEGORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "circle": ("circle", "disc", "dot", "ball"),
        "square": ("square", "box", "block"),
        "triangle": ("triangle", "wedge", "pyramid"),
        "star": ("star", "pentagram", "asterisk"),
        "cross": ("cross", "plus", "crucifix"),
        "heart": ("heart", "valentine", "lovesign"),
        "ring": ("ring", "hoop", "donut"),
        "diamond": ("diamond", "rhombus", "lozenge"),
    },
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "green": ("green", "emerald", "jade"),
        "blue": ("blue", "azure", "cobalt"),
        "yellow": ("yellow", "golden", "lemon"),
        "purple": ("purple", "violet", "lilac"),
        "orange": ("orange", "tangerine", "amber"),
    },
    "pattern": {
        "plain": ("plain", "solid", "filled"),
        "striped": ("striped", "lined", "banded"),
        "dotted": ("dotted", "spotted", "speckled"),
    },
    "background": {
        "white": ("white", "snowy"),
        "black": ("black", "dark"),
        "grey": ("grey", "ashen"),
        "pink": ("pink", "rosy"),
    },
}

# What takes a concept's place when the user names no anchor: concrete, of the same category, and unlike it.
ANCHORS = {
    "circle": "square", "square": "circle", "triangle": "ring", "star": "square", "cross": "circle", "heart": "triangle",
    "ring": "diamond", "diamond": "circle", "red": "blue", "green": "purple", "blue": "orange", "yellow": "red",
    "purple": "green", "orange": "blue", "plain": "striped", "striped": "plain", "dotted": "plain", "white": "black",
    "black": "white", "grey": "pink", "pink": "grey",
}  # fmt: skip

GENERIC_NOUNS = ("shape", "figure", "object", "thing")
TEMPLATES = (
    "{noun}",
    "a {noun}",
    "a {colour} {noun}",
    "a {pattern} {noun}",
    "{colour} {pattern} {noun}",
    "a {pattern} {colour} {noun}",
    "a {colour} {noun} on {background}",
    "a {noun} on a {background} background",
    "a {colour} {noun} on a {background} background",
    "a {pattern} {noun} on a {background} background",
    "a {pattern} {colour} {noun} on a {background} background",
    "a drawing of a {pattern} {colour} {noun} on {background}",
    "a picture of a {colour} {noun}",
    "a picture of a {pattern} {noun} in {colour} on {background}",
    "one {colour} {noun} with {pattern} fill on a {background} background",
    "{noun} , {colour} , {pattern} , {background} background",
    "on a {background} background a {pattern} {colour} {noun}",
    "an image showing a {colour} {pattern} {noun} , {background} behind it",
)

INK = {
    "red": (220, 40, 40), "green": (40, 165, 70), "blue": (45, 85, 225), "yellow": (240, 215, 50),
    "purple": (150, 60, 190), "orange": (245, 130, 25),
}  # fmt: skip
PAPER = {"white": (250, 250, 250), "black": (18, 18, 18), "grey": (128, 128, 128), "pink": (250, 190, 205)}
ODD_INK = ((120, 75, 40), (20, 140, 150), (110, 120, 30), (240, 90, 190))
ODD_PAPER = ((60, 110, 60), (120, 60, 40), (60, 70, 140), (160, 200, 240), (200, 190, 90))


@dataclass(frozen=True)
class Drawing:
    """What a picture shows, in the world's own concept names (never synonyms)."""

    shape: str
    colour: str
    pattern: str
    background: str

    def replace(self, concept: str) -> Drawing:
        """The same drawing with `concept` in its category."""
        return dataclasses.replace(self, **{str(category_of(concept)): concept})


def category_of(word: str) -> str | None:
    """The category that a word of the world belongs to, synonyms included; None for any other word."""
    return next((d for d, concepts in CATEGORIES.items() for words in concepts.values() if word in words), None)


def concept_of(word: str) -> str | None:
    """The concept that a word of the world names ("disc" -> "circle"); None for any other word."""
    return next((c for concepts in CATEGORIES.values() for c, words in concepts.items() if word in words), None)


def words() -> list[str]:
    """Every word that a caption can hold, sorted; the tokenizer makes each one token."""
    named = {w for concepts in CATEGORIES.values() for names in concepts.values() for w in names}
    spelled = {w for template in TEMPLATES for w in template.split() if "{" not in w}
    return sorted(named | spelled | set(GENERIC_NOUNS))


def read(text: str) -> dict[str, str]:
    """What a caption names: category -> concept, for the categories that it mentions ("a jade disc" -> green, circle)."""
    named = {}
    for word in text.lower().replace(",", " ").split():
        category, concept = category_of(word), concept_of(word)
        if category and concept:
            named[category] = concept
    return named


def sample(rng: np.random.Generator) -> Drawing:
    """A drawing with every attribute drawn uniformly."""
    return Drawing(**{category: str(rng.choice(list(concepts))) for category, concepts in CATEGORIES.items()})


# ---------------------------------------------------------------- words


def caption(
    drawing: Drawing,
    rng: np.random.Generator,
    *,
    synonyms: float = 0.3,
    generic: float = 0.08,
    template: str | None = None,
) -> str:
    """A caption of a drawing.

    Args:
        synonyms: probability, per word, of a synonym in place of the concept's name.
        generic: probability that the shape is called "shape", "thing", ...
        template: one of `TEMPLATES`; drawn when None.
    """
    template = template or str(rng.choice(TEMPLATES))
    spoken = {}
    for category, concepts in CATEGORIES.items():
        names = concepts[getattr(drawing, category)]
        spoken[category] = str(rng.choice(names[1:])) if rng.random() < synonyms else names[0]
    noun = str(rng.choice(GENERIC_NOUNS)) if rng.random() < generic else spoken["shape"]
    return template.format(noun=noun, **spoken)


def held_out(text: str) -> bool:
    """Whether a caption is held out of training: a fixed tenth of all caption texts, by checksum."""
    return zlib.crc32(text.encode()) % 10 == 0


# ---------------------------------------------------------------- pixels


def draw(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Pixels of a drawing at a random place, size, tilt and pattern phase: (SIZE, SIZE, 3) uint8."""
    return _paint(drawing.shape, INK[drawing.colour], drawing.pattern, PAPER[drawing.background], rng)


def _paint(shape: str, ink, pattern: str, paper, rng: np.random.Generator) -> np.ndarray:
    x, y = _sample_grid()  # pixels, both (S, S)
    cx, cy = 15.5 + rng.uniform(-3, 3, size=2)
    radius, tilt = rng.uniform(9.0, 12.5), rng.uniform(-0.14, 0.14)
    dx, dy = (x - cx) / radius, -(y - cy) / radius
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    inside = _blob(u, v, rng) if shape == "blob" else _inside(shape, u, v)
    ink, paper = np.asarray(ink, float) * rng.uniform(0.94, 1.06), np.asarray(paper, float)
    colour = np.where(inside[..., None], _fill(pattern, x, y, ink, rng), paper)
    pixels = colour.reshape(SIZE, SUPERSAMPLE, SIZE, SUPERSAMPLE, 3).mean((1, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _sample_grid() -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(SIZE * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - 0.5
    x, y = np.meshgrid(at, at)
    return x, y


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points in shape coordinates (u right, v up, outer radius about 1) lie inside the shape."""
    r, au, av = np.hypot(u, v), np.abs(u), np.abs(v)
    if shape == "circle":
        return r <= 0.92
    if shape == "square":
        return np.maximum(au, av) <= 0.8
    if shape == "triangle":
        return (v >= -0.62) & (v <= 1 - 1.75 * au)
    if shape == "star":
        return _star(u, v)
    if shape == "cross":
        return ((au <= 0.27) & (av <= 0.95)) | ((av <= 0.27) & (au <= 0.95))
    if shape == "heart":
        p, q = 1.15 * u, 1.15 * v + 0.12
        return (p**2 + q**2 - 1) ** 3 <= p**2 * q**3
    if shape == "ring":
        return (r >= 0.52) & (r <= 0.98)
    if shape == "diamond":
        return au / 0.66 + av <= 1
    raise ValueError(f"no such shape: {shape}")


def _star(u: np.ndarray, v: np.ndarray, inner: float = 0.42) -> np.ndarray:
    """Five-pointed star: fold the angle onto one tip, then test against the edge from tip to notch."""
    sector = 2 * np.pi / 5
    folded = np.abs((np.arctan2(v, u) - np.pi / 2 + sector / 2) % sector - sector / 2)
    px, py = np.hypot(u, v) * np.cos(folded), np.hypot(u, v) * np.sin(folded)
    ex, ey = inner * np.cos(sector / 2) - 1, inner * np.sin(sector / 2)
    return ex * py - ey * (px - 1) >= 0


def _blob(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An irregular outline that is none of the shapes: a radius of low harmonics, or half of a shape."""
    if rng.random() < 0.35:
        angle = rng.uniform(0, 2 * np.pi)
        half = u * np.cos(angle) + v * np.sin(angle) >= rng.uniform(-0.15, 0.1)
        return half & _inside(str(rng.choice(["circle", "ring", "star", "cross", "heart"])), u, v)
    angle, radius = np.arctan2(v, u), 0.62
    for harmonic in (1, 2, 3, 5):
        radius = radius + rng.uniform(0.1, 0.24) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(u, v) <= radius


def _fill(pattern: str, x: np.ndarray, y: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ink at every sample, (S, S, 3): stripes are darkened bands, dots are whitened spots."""
    plain = np.broadcast_to(ink, (*x.shape, 3))
    px, py = rng.uniform(0, 6, size=2)
    if pattern == "plain":
        return plain
    if pattern == "striped":
        return np.where(((y + py) % 5 < 2.4)[..., None], ink * 0.4, plain)
    if pattern == "dotted":
        spots = np.hypot((x + px) % 6 - 3, (y + py) % 6 - 3) <= 1.5
        return np.where(spots[..., None], 255 - (255 - ink) * 0.25, plain)
    if pattern == "gradient":
        return plain * (0.25 + 0.75 * np.clip((y - 4) / 24, 0, 1))[..., None]
    raise ValueError(f"no such pattern: {pattern}")


OTHER = "other"
JUNK_KINDS = ("noise", "blank", "blob", "blend", "odd ink", "odd paper", "gradient fill")


def junk(rng: np.random.Generator, kind: str | None = None) -> tuple[np.ndarray, dict[str, str | None]]:
    """A picture outside the world, with what each head of the judge should say of it.

    Returns:
        Pixels (SIZE, SIZE, 3) uint8, and category -> concept, "other", or None where no answer is right.
    """
    kind = kind or str(rng.choice(JUNK_KINDS))
    d = sample(rng)
    truth: dict[str, str | None] = dict(d.__dict__)
    if kind == "noise":
        cell = int(rng.choice([1, 2, 4, 8]))
        coarse = rng.integers(0, 256, size=(SIZE // cell, SIZE // cell, 3))
        return coarse.repeat(cell, 0).repeat(cell, 1).astype(np.uint8), dict.fromkeys(CATEGORIES, OTHER)
    if kind == "blank":
        flat = np.broadcast_to(np.array(PAPER[d.background], np.uint8), (SIZE, SIZE, 3)).copy()
        return flat, {**dict.fromkeys(CATEGORIES, OTHER), "background": d.background}
    if kind == "blend":
        other = sample(rng)
        while other.shape == d.shape:
            other = sample(rng)
        share = rng.uniform(0.4, 0.6)
        mixed = share * draw(d, rng) + (1 - share) * draw(other, rng)
        return mixed.astype(np.uint8), {**dict.fromkeys(CATEGORIES), "shape": OTHER}
    ink, paper, shape, pattern = INK[d.colour], PAPER[d.background], d.shape, d.pattern
    if kind == "blob":
        shape, truth["shape"] = "blob", OTHER
    elif kind == "odd ink":
        ink, truth["colour"] = ODD_INK[rng.integers(len(ODD_INK))], OTHER
    elif kind == "odd paper":
        paper, truth["background"] = ODD_PAPER[rng.integers(len(ODD_PAPER))], OTHER
    else:
        pattern, truth["pattern"] = "gradient", OTHER
    return _paint(shape, ink, pattern, paper, rng), truth
