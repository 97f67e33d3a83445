"""A second judge of the embedded world, which learned nothing: it holds pixels against the world's own definitions.

A convolutional network can be fooled by what an attack optimised; this judge has no weights to fool. It finds which paper
the border shows, which of the world's outlines covers the ink best, which ink most of it is, and whether its channels
vary in bands or in spots. It departs from the learned judge in one thing: of two drawings laid over each other it names
the outline that they make together, where that is a shape.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from . import world

PAPER_REACH = 50.0  # RGB distance, of 442, within which a border pixel is a paper's
INK_REACH = 45.0  # the same for an ink, at any of its gains
INK_FROM = 30.0  # RGB distance from the paper at which a pixel counts as ink
LEAST_OVERLAP = 0.8  # intersection over union
LEAST_AGREEMENT = 0.5  # correlation
LEVEL = 14.0  # mean distance of a channel from its mean, of 255, below which ink is plain
GAINS = (0.7, 0.85, 1.0)  # an ink may be this bright; stripes are at 0.4
RADII = np.arange(8.0, 13.1, 0.5)  # pixels
TILTS = np.arange(-0.2, 0.21, 0.1)  # radians
SHIFTS = (-2, 0, 2)  # of a template's centroid from the ink's, in samples


class Geometry:
    """Names what pictures of the embedded world show, as `judge.JudgeNetwork` does, by measurement alone."""

    def name(self, pictures: np.ndarray) -> list[dict[str, str]]:
        """What each picture shows: category -> concept or "other".

        Args:
            pictures: (B, 32, 32, 3) uint8.
        """
        pixels = pictures.astype(np.float32)
        backgrounds, papers = name_backgrounds(pixels)
        ink = np.linalg.norm(pixels - papers[:, None, None], axis=-1) > INK_FROM  # (B, 32, 32)
        named = {
            "shape": name_shapes(ink)[0],
            "colour": name_colours(pixels, ink),
            "pattern": name_patterns(pixels, ink),
            "background": backgrounds,
        }
        return [{category: names[i] for category, names in named.items()} for i in range(len(pictures))]


def name_backgrounds(pixels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The paper that most of the border is near, and the border's median colour, (B, 3)."""
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], axis=1)
    shares = near(border, list(world.PAPER.values()), PAPER_REACH).mean(1)  # (B, papers)
    return best_of(list(world.PAPER), shares, 0.6), np.median(border, axis=1)


def name_colours(pixels: np.ndarray, ink: np.ndarray) -> list[str]:
    """The ink that most ink pixels are near; stripes and dots leave at least half of it as it was."""
    inside = shrink(ink)
    shades = [np.multiply(colour, gain) for colour in world.INK.values() for gain in GAINS]
    close = near(pixels, shades, INK_REACH) & inside[..., None]
    shares = close.sum((1, 2)) / np.maximum(inside.sum((1, 2)), 12)[:, None]
    return best_of(list(world.INK), shares.reshape(len(pixels), -1, len(GAINS)).sum(-1), 0.25)


def near(pixels: np.ndarray, colours: list, reach: float) -> np.ndarray:
    """Whether pixels (..., 3) lie within `reach` of each colour, and nearer to it than to the others: (..., colours)."""
    distance = np.linalg.norm(pixels[..., None, :] - np.array(colours, np.float32), axis=-1)
    return (distance <= reach) & (distance == distance.min(-1, keepdims=True))


def best_of(names: list[str], scores: np.ndarray, least: float) -> list[str]:
    """The name of each row's highest score; "other" below `least`."""
    return [names[row.argmax()] if row.max() >= least else world.OTHER for row in scores]


# ---------------------------------------------------------------- shape


def name_shapes(ink: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The shape whose outline covers the ink best, and each shape's best intersection over union, (B, shapes)."""
    outlines, owners = templates()
    flat = np.stack([centred(mask) for mask in ink]).reshape(len(ink), -1).astype(np.float32)
    shared = flat @ outlines.T  # (B, templates)
    overlap = shared / (flat.sum(1)[:, None] + outlines.sum(1) - shared)
    best = np.stack([overlap[:, owners == i].max(1) for i in range(len(world.CATEGORIES["shape"]))], axis=1)
    return best_of(list(world.CATEGORIES["shape"]), best, LEAST_OVERLAP), best


def centred(mask: np.ndarray, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A mask moved, by whole pixels, to where its centroid is the picture's centre, and on by `shift`."""
    if not mask.any():
        return mask
    middle = (np.array(mask.shape) - 1) / 2
    rows, columns = np.round(middle - np.argwhere(mask).mean(0)).astype(int) + shift
    return np.roll(mask, (rows, columns), (0, 1))


@cache
def templates() -> tuple[np.ndarray, np.ndarray]:
    """Every shape at every radius, tilt and shift: (T, 32 * 32) float32 of 0 and 1, and which shape each is, (T,)."""
    x, y = world._sample_grid()
    dx, dy = x - (world.SIZE - 1) / 2, (world.SIZE - 1) / 2 - y
    outlines, owners = [], []
    for owner, shape in enumerate(world.CATEGORIES["shape"]):
        for radius, tilt in product(RADII, TILTS if shape not in ("circle", "ring") else (0.0,)):
            c, s = np.cos(tilt) / radius, np.sin(tilt) / radius
            inside = world._inside(shape, dx * c + dy * s, dy * c - dx * s)
            outlines += [centred(inside, shift) for shift in product(SHIFTS, SHIFTS)]
            owners += [owner] * len(SHIFTS) ** 2
    return (flattened(outlines) >= 0.5).astype(np.float32), np.array(owners)


def flattened(fields: list[np.ndarray]) -> np.ndarray:
    """Fields of samples as the share of every pixel that they cover: (fields, 32 * 32) float32."""
    cells = np.stack(fields).reshape(-1, world.SIZE, world.SUPERSAMPLE, world.SIZE, world.SUPERSAMPLE)
    return cells.mean((2, 4), dtype=np.float32).reshape(len(fields), -1)


# ---------------------------------------------------------------- pattern


def name_patterns(pixels: np.ndarray, ink: np.ndarray) -> list[str]:
    """Striped where the brightest channel drops in bands, dotted where the dimmest rises in spots, plain where level.

    Bands darken every channel and spots whiten; the brightest channel shows the one most, the dimmest the other.
    """
    inside = shrink(shrink(grow(ink)))  # narrow gaps closed, then off the edge
    bands, spots = fills()
    banded, darker = follows(-pixels.max(-1), inside, bands)
    spotted, paler = follows(pixels.min(-1), inside, spots)
    plain = np.maximum(darker, paler) < LEVEL
    scores = np.stack([plain, banded * (darker >= LEVEL), spotted * (paler >= LEVEL)], axis=1)
    named = best_of(["plain", "striped", "dotted"], scores, LEAST_AGREEMENT)
    return [name if enough else world.OTHER for name, enough in zip(named, inside.sum((1, 2)) >= 12, strict=True)]


def follows(signal: np.ndarray, inside: np.ndarray, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A signal's best correlation, inside, with any wave, and its mean distance from its mean there: (B,), (B,)."""
    weight = inside.reshape(len(inside), -1).astype(np.float32)  # (B, 32 * 32)
    weight /= np.maximum(weight.sum(1, keepdims=True), 1)
    signal = signal.reshape(weight.shape)
    signal = signal - (weight * signal).sum(1, keepdims=True)
    spread = np.sqrt((weight * signal**2).sum(1, keepdims=True))
    variance = weight @ (waves**2).T - (weight @ waves.T) ** 2  # (B, waves)
    agreement = (weight * signal) @ waves.T / np.maximum(spread * np.sqrt(np.maximum(variance, 0.01)), 1e-6)
    return agreement.max(1), (weight * np.abs(signal)).sum(1)


@cache
def fills() -> tuple[np.ndarray, np.ndarray]:
    """Where bands and where spots lie, at every phase to half a pixel: (10, 32 * 32) and (144, 32 * 32), 0 to 1."""
    x, y = world._sample_grid()
    phases = np.arange(0, 6, 0.5)
    bands = [(y + p) % 5 < 2.4 for p in phases[:10]]
    spots = [np.hypot((x + p) % 6 - 3, (y + q) % 6 - 3) <= 1.5 for p, q in product(phases, phases)]
    return flattened(bands), flattened(spots)


def grow(mask: np.ndarray) -> np.ndarray:
    """Masks (B, h, w) and the pixels that touch them, corners included."""
    p = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    h, w = mask.shape[1:]
    return np.any([p[:, i : i + h, j : j + w] for i, j in product(range(3), range(3))], axis=0)


def shrink(mask: np.ndarray) -> np.ndarray:
    """Masks (B, h, w) without the pixels that touch what is outside."""
    return ~grow(~mask)
