"""Sample pictures as data URIs; explicit ones are blurred before they enter the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .found import KINDS, Found

GROUPS = {
    "forget": "Prompts that name {}",
    "synonym": "Other words for {}",
    "generic": "Prompts that leave open what {} would say",
    "retain": "What should stay as it was",
    "twin": "The same prompts with something else in the place of {}",
    "caption": "Captions of anything",
}
HARMLESS = ("retain", "caption")  # kinds of samples that do not ask for the concept
ROWS = {"original": "original", "erased": "model"}  # what a row of pictures is called, and its key in a sample
ATTACKED = {"before the attack": "before", "after the attack": "after", "original, attacked": "original"}
SMALL = 64  # pixels


@dataclass(frozen=True)
class Picture:
    """One picture inside the page."""

    uri: str | None  # None: there is no such picture
    blurred: bool
    small: bool  # shown with its pixels visible
    alt: str
    says: str  # the judge


@dataclass(frozen=True)
class Grid:
    """Pictures of the original and of the erased model under each other, same prompt and seed."""

    title: str
    samples: list[dict[str, Any]]
    rows: dict[str, list[Picture]]

    @property
    def blurred(self) -> bool:
        """Whether any picture is."""
        return any(picture.blurred for row in self.rows.values() for picture in row)

    @property
    def small(self) -> bool:
        """Whether every picture is."""
        return all(picture.small for row in self.rows.values() for picture in row)

    @property
    def attacked(self) -> bool:
        """Whether there are prompts of an attack to be shown beside the first ones."""
        return any(sample.get("attacked_prompt") for sample in self.samples)


def picture_grids(run: Found, summary: dict[str, Any], blur: bool) -> list[Grid]:
    """The sample pictures of one evaluation, by group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for sample in summary["samples"]:
        title = GROUPS.get(str(sample.get("kind")), f"NudeNet, {KINDS[summary['kind']]}")
        groups.setdefault(title.format(summary.get("concept", run.concepts)), []).append(sample)
    return [Grid(title, own, _rows(run, summary, own, ROWS, blur)) for title, own in groups.items()]


def attack_grid(run: Found, summary: dict[str, Any], blur: bool) -> Grid | None:
    """The sample pictures of one attack; None without any."""
    rows = _rows(run, summary, summary["samples"], ATTACKED, blur)
    return Grid(summary["attack"], summary["samples"], rows) if rows else None


def _rows(
    run: Found, summary: dict[str, Any], samples: list[dict[str, Any]], names: dict[str, str], blur: bool
) -> dict[str, list[Picture]]:
    return {
        name: [_picture(run, summary, sample, which, name, blur) for sample in samples]
        for name, which in names.items()
        if any(sample.get(which) for sample in samples)
    }


def _picture(run: Found, summary: dict[str, Any], sample: dict[str, Any], which: str, name: str, blur: bool) -> Picture:
    says = str(sample.get(f"{which}_says") or "")
    whose = name if summary["kind"] == "attack" else f"{name} model"
    alt = f"{whose}, seed {sample.get('seed')}: {sample.get('prompt')}" + f" ({says})" * bool(says)
    explicit = run.explicit(summary) and sample.get("kind") not in HARMLESS
    blur = blur and bool(explicit or sample.get("flagged"))
    uri, side = embed(run.folder(summary), sample.get(which), blur=blur)
    return Picture(uri, blur and uri is not None, side <= SMALL, alt, says)


def embed(folder: Path, name: Any, *, blur: bool) -> tuple[str | None, int]:
    """A picture of `folder` as a data URI, at most 320 pixels a side, and its own side; (None, 0) if it cannot be read.

    Blurring is a Gaussian of an eighth of the longer side, applied to the pixels that go into the page.
    """
    from PIL import Image, ImageFilter

    try:
        path = (folder / str(name)).resolve()
        if not name or not path.is_relative_to(folder.resolve()):
            return None, 0
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None, 0
    side = max(image.size)
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(side / 8))
    image.thumbnail((320, 320))
    stream, kind = io.BytesIO(), "png" if side <= SMALL else "jpeg"
    image.save(stream, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", side
