"""Sample pictures as data URIs; explicit ones are blurred before they enter the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pictures import PictureError, read_frames
from ..results.attack import AttackResult, AttackSample
from ..results.evaluation import Evaluation, JudgedSample, NudityEvaluation, Sample
from ..results.pairs import FOLDER, Pair
from .declared import evaluation_titles
from .phrases import prompt
from .reading import RunRecord

KIND_TITLES = {
    "forget": "Prompts that name {}",
    "synonym": "Other words for {}",
    "generic": "Prompts that leave open what {} would name",
    "unlisted": "Words that nobody listed in the place of {}",
    "retain": "What should stay as it was",
    "twin": "The same prompts with something else in the place of {}",
    "caption": "Captions of anything",
}
HARMLESS = ("retain", "caption")  # kinds of samples that do not ask for the concept
COMPARED = {"original": "original", "erased": "model"}  # what a row of pictures is called, and its field in a sample
ATTACKED = {"before the attack": "before", "after the attack": "after", "original, attacked": "original"}
SHARP_SIDE = 64  # pixels
OPEN_SHOWN = 4  # pairs of pictures for open prompts under the findings

AnySample = JudgedSample | Sample | AttackSample | Pair


@dataclass(frozen=True)
class Picture:
    """One picture inside the page."""

    uri: str | None  # None: there is no such picture
    blurred: bool
    small: bool  # shown with its pixels visible
    alt: str
    caption: str  # the judge's answer


@dataclass(frozen=True)
class Grid:
    """Pictures of the original and of the erased model under each other, same prompt and seed."""

    title: str
    samples: Sequence[AnySample]
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
        return any(getattr(sample, "attacked_prompt", "") for sample in self.samples)


def picture_grids(run: RunRecord, summary: Evaluation, blur: bool) -> list[Grid]:
    """The sample pictures of one evaluation, by group."""
    groups: dict[str, list[AnySample]] = {}
    for sample in summary.samples:
        title = KIND_TITLES.get(getattr(sample, "kind", ""), f"NudeNet, {evaluation_titles()[summary.kind]}")
        concept = run.concepts if isinstance(summary, NudityEvaluation) else summary.concept or run.concepts
        groups.setdefault(title.format(concept), []).append(sample)
    return [Grid(title, own, _rows(run, summary, own, COMPARED, blur)) for title, own in groups.items()]


def pairs_grid(run: RunRecord) -> Grid | None:
    """The pictures drawn at the end of the erasure, in whose files explicit ones are blurred already; None without any."""
    if not run.pairs:
        return None
    rows = {
        name: [_embedded(run.path / FOLDER, pair, which, f"{name} model", hidden=run.pairs.blurred) for pair in run.pairs.pairs]
        for name, which in COMPARED.items()
    }  # fmt: skip
    return Grid("Before and after", run.pairs.pairs, rows)


def _embedded(folder: Path, pair: Pair, which: str, whose: str, *, hidden: bool) -> Picture:
    """One of them; `hidden`: its file is blurred."""
    uri, side = embed(folder, getattr(pair, which), blur=False)
    return Picture(uri, hidden, side <= SHARP_SIDE, f"{whose}, seed {pair.seed}: {prompt(pair.prompt)}", "")


def open_grid(run: RunRecord, blur: bool) -> Grid | None:
    """A few pictures for prompts that leave the concept open, of the first evaluation that has some; None without any."""
    title = KIND_TITLES["generic"]
    for summary in run.judged.values():
        if samples := [sample for sample in summary.samples if sample.kind == "generic"][:OPEN_SHOWN]:
            named = title.format(summary.concept or run.concepts)
            return Grid(named, samples, _rows(run, summary, samples, COMPARED, blur))
    return None


def attack_grid(run: RunRecord, attack: AttackResult, blur: bool) -> Grid | None:
    """The sample pictures of one attack; None without any."""
    rows = _rows(run, attack, attack.samples, ATTACKED, blur)
    return Grid(attack.attack, attack.samples, rows) if rows else None


def _rows(
    run: RunRecord,
    summary: Evaluation | AttackResult,
    samples: Sequence[AnySample],
    names: Mapping[str, str],
    blur: bool,
) -> dict[str, list[Picture]]:
    return {
        name: [_picture(run, summary, sample, which, name, blur) for sample in samples]
        for name, which in names.items()
        if any(getattr(sample, which) for sample in samples)
    }


def _picture(
    run: RunRecord, summary: Evaluation | AttackResult, sample: AnySample, which: str, name: str, blur: bool
) -> Picture:
    answer = getattr(sample, f"{which}_says", "")
    whose = name if isinstance(summary, AttackResult) else f"{name} model"
    alt = f"{whose}, seed {sample.seed}: {prompt(sample.prompt)}" + f" ({answer})" * bool(answer)
    explicit = run.explicit(summary) and getattr(sample, "kind", "") not in HARMLESS
    blur = blur and (explicit or sample.flagged)
    uri, side = embed(summary.folder or run.path, getattr(sample, which), blur=blur)
    return Picture(uri, blur and uri is not None, side <= SHARP_SIDE, alt, answer)


def blurred(image: Any) -> Any:
    """A PIL picture behind a Gaussian blur of an eighth of its longer side."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))


def embed(folder: Path, name: str | None, *, blur: bool) -> tuple[str | None, int]:
    """A picture of `folder` as a data URI, at most 320 pixels a side, and its own side; (None, 0) if it cannot be read.

    Blurring is a Gaussian of an eighth of the longer side, applied to the pixels that go into the page.
    """
    from PIL import Image

    try:
        path = (folder / str(name)).resolve()
        if not name or not path.is_relative_to(folder.resolve()):
            return None, 0
        image = Image.fromarray(read_frames(path, "first")[0])
    except (OSError, ValueError, PictureError):  # ValueError: a NUL in the name
        return None, 0
    side = max(image.size)
    if blur:
        image = blurred(image)
    image.thumbnail((320, 320))
    stream, kind = io.BytesIO(), "png" if side <= SHARP_SIDE else "jpeg"
    image.save(stream, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", side
