"""One picture to share: the verdicts and four pairs of pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ..disk import atomic
from ..errors import UserError, printable
from ..results.manifest import MANIFEST
from . import verdict
from .forgetting_page import is_forgetting
from .phrases import plain, prompt, shareable
from .pictures import FIRST, first_pictures
from .reading import RunRecord, read_measurement, read_run

SIZE, MARGIN, GAP = (1200, 630), 48, 14  # pixels, as pages link to a picture
TOP, MIDDLE, SIDE = 160, 640, 117
PAGE, INK, SOFT = "#f6f7f9", "#1b1f24", "#5b6570"
CLOSING = "sd_scissorhands; the intervals and every other figure are on the run's page"
TONES = {"good": "#00745a", "fair": "#8a5a00", "poor": "#b3470a", "none": SOFT}


def write_picture(folder: Path, file: Path, *, blur: bool = True) -> Path:
    """Write a PNG of what a run's page says first; of an evaluation or attack without a run, too.

    Args:
        blur: as for `write_report`.

    Raises:
        UserError: `folder` holds no erasure, evaluation or attack; the file cannot be written.
    """
    from PIL import Image, ImageDraw

    if is_forgetting(folder):
        raise UserError(f"{folder}: --card shows what a model of pictures draws, and this is a classifier")
    run = read_run(folder) if (folder / MANIFEST).exists() else read_measurement(folder)
    sheet = Image.new("RGB", SIZE, PAGE)
    draw = ImageDraw.Draw(sheet)
    width = SIZE[0] - 2 * MARGIN
    _text(draw, (MARGIN, 36), f"{_done(run)}: {run.concepts}", 40, width, bold=True)
    _text(draw, (MARGIN, 96), _origin(run), 20, width, colour=SOFT)
    _answers(draw, run)
    _pairs(sheet, draw, run, blur)
    _text(draw, (MARGIN, SIZE[1] - 42), CLOSING, 15, width, colour=SOFT)
    with atomic(file) as new:
        sheet.save(new, "png")
    return file


def _done(run: RunRecord) -> str:
    converged = run.erased and run.erased.converged
    return "Measured" if run.alone else "Not erased" if converged is False else "Erased"


def _origin(run: RunRecord) -> str:
    measured = next((one.model for one in run.summaries if one.model), "")
    facts = [f"from {shareable(str(run.source.model or measured))}"]
    facts += [f"replaced by {plain(run.erased.anchors)}", f"recipe {run.erased.recipe}"] if run.erased else []
    return ", ".join(facts)


def _findings(run: RunRecord) -> Iterator[tuple[str, verdict.Finding]]:
    """The page's cards, of several evaluations the first alone."""
    if not run.evaluations and not run.alone:
        proof = "the proof alone, in latent space" if run.erased and run.erased.proof else ""
        yield "Is it gone, and is the rest whole?", verdict.Finding("Not evaluated yet", "none", proof)
    for summary in list(run.evaluations.values())[:1]:
        yield f"Is {run.concepts} gone?", verdict.is_gone(run, summary)
        yield "Is the rest whole?", verdict.is_whole(run, by_seed=False)
        if (left_open := verdict.is_whole(run, by_seed=True)).change:
            yield "Do prompts that leave it open draw what they drew?", left_open
    yield "Does it stay gone?", verdict.stays_gone(run)


def _answers(draw: Any, run: RunRecord) -> None:
    y, left, width = TOP, MARGIN + 20, MIDDLE - MARGIN - 40
    for question, one in _findings(run):
        draw.rectangle((MARGIN, y + 2, MARGIN + 5, y + 86), fill=TONES[one.tone])
        _text(draw, (left, y), question, 17, width, colour=SOFT)
        words = f"{one.word}{';' if ':' in one.word else ':'} {one.figure}" if one.figure else one.word
        _text(draw, (left, y + 24), words, 25, width, lines=2, colour=TONES[one.tone], bold=True)
        y += 104


def _pairs(sheet: Any, draw: Any, run: RunRecord, blur: bool) -> None:
    """Four pairs, of each kind as many."""
    from PIL import Image, ImageOps

    first, _ = first_pictures(run, blur)
    pairs = [pair for grid in first for pair in grid.pairs[: FIRST // len(first)]]
    for at, (sample, pair) in enumerate(pairs):
        x, y = MIDDLE + at * (SIDE + GAP), TOP
        for name, picture in pair.items():
            _text(draw, (x, y), f"{name}, blurred" if picture.blurred else name, 14, SIDE, colour=SOFT)
            if picture.uri:
                own = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))).convert("RGB")
                how = Image.Resampling.NEAREST if picture.small else Image.Resampling.LANCZOS
                sheet.paste(ImageOps.fit(own, (SIDE, SIDE), how), (x, y + 20))
            y += SIDE + 34
        _text(draw, (x, y), prompt(sample.prompt), 13, SIDE, lines=5, colour=SOFT)


def _text(
    draw: Any, place: tuple[int, int], text: str, size: int, width: int, *, lines: int = 1, colour: str = INK,
    bold: bool = False,
) -> None:  # fmt: skip
    """Text broken between words into so many lines; what does not fit is left out, and dots say so."""
    font, rows = _font(size, bold), [""]
    for word in printable(text).split():
        longer = f"{rows[-1]} {word}".strip()
        rows = [*rows[:-1], longer] if not rows[-1] or draw.textlength(longer, font) <= width else [*rows, word]
    if len(rows) > lines:
        rows = [*rows[: lines - 1], f"{rows[lines - 1]} ..."]
    for at, row in enumerate(rows):
        while draw.textlength(row, font) > width and len(row) > 4:
            row = f"{row.removesuffix('...').rstrip()[:-1]}..."
        draw.text((place[0], place[1] + at * round(1.25 * size)), row, colour, font)


@cache
def _font(size: int, bold: bool) -> Any:
    """The font that matplotlib brings."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
