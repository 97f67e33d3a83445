"""Sample pictures as data URIs; explicit ones are blurred before they enter the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .found import KINDS, Found

GROUPS = {"forget": "Prompts that name {}", "synonym": "Other words for {}", "retain": "What should stay as it was"}
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


def picture_grids(run: Found, summary: dict[str, Any], blur: bool) -> list[Grid]:
    """The sample pictures of one evaluation, by group."""
    kind = summary["kind"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for sample in summary["samples"]:
        title = GROUPS.get(sample.get("kind"), f"NudeNet, {KINDS[kind]}").format(summary.get("concept", run.concepts))
        groups.setdefault(title, []).append(sample)

    def row(which: str, samples: list[dict[str, Any]]) -> list[Picture]:
        return [_picture(run, kind, sample, which, blur) for sample in samples]

    names = {"original": "original", "erased": "model"}
    return [
        Grid(title, own, {name: row(which, own) for name, which in names.items() if any(s.get(which) for s in own)})
        for title, own in groups.items()
    ]


def _picture(run: Found, kind: str, sample: dict[str, Any], which: str, blur: bool) -> Picture:
    says, name = str(sample.get(f"{which}_says") or ""), "erased" if which == "model" else which
    alt = f"{name} model, seed {sample.get('seed')}: {sample.get('prompt')}" + f" ({says})" * bool(says)
    explicit = run.result.get("explicit", True) and sample.get("kind") != "retain"  # unknown counts as explicit
    blur = blur and bool(explicit or sample.get("flagged"))
    uri, side = embed(run.path / "eval" / kind, sample.get(which), blur=blur)
    return Picture(uri, blur and uri is not None, side <= SMALL, alt, says)


def embed(folder: Path, name: Any, *, blur: bool) -> tuple[str | None, int]:
    """A picture of `folder` as a data URI, at most 320 pixels a side, and its own side; (None, 0) if it cannot be read.

    Blurring is a Gaussian of an eighth of the longer side, applied to the pixels that go into the page.
    """
    from PIL import Image, ImageFilter

    path = (folder / str(name)).resolve()
    if not name or not path.is_relative_to(folder.resolve()):
        return None, 0
    try:
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
