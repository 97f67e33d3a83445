"""Sample pictures as data URIs; explicit ones are blurred before they enter the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..pictures import PictureError, blurred, read_frames
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
FIRST_KINDS = ("", "forget", "generic")  # of samples, whose first are shown under the verdict; "": NudeNet's
FIRST = 4  # pairs of each
ROW = slice(3)  # pairs that fit beside each other on a phone,
BEHIND = slice(3, None)  # and those that a list of groups folds away

AnySample = JudgedSample | Sample | AttackSample | Pair


@dataclass(frozen=True)
class Picture:
    """One picture inside the page."""

    uri: str | None  # None: it cannot be read
    blurred: bool
    small: bool  # shown with its pixels visible
    alt: str
    caption: str  # the judge's answer
    back: bool = False  # whether it sees the concept in a picture of the erased model
    drawn: bool = True  # False: there is no such picture


@dataclass(frozen=True)
class Grid:
    """Pictures of the original and of the erased model under each other, same prompt and seed."""

    title: str
    samples: Sequence[AnySample]
    rows: dict[str, list[Picture]]
    kind: str = ""  # of samples

    def part(self, pairs: slice) -> Grid:
        """Some of the pairs."""
        return replace(self, samples=self.samples[pairs], rows={name: row[pairs] for name, row in self.rows.items()})

    @property
    def pairs(self) -> list[tuple[AnySample, dict[str, Picture]]]:
        """What was drawn for each sample, by what a row of pictures is called; what was not is left out."""
        return [
            (one, {name: row[at] for name, row in self.rows.items() if row[at].drawn})
            for at, one in enumerate(self.samples)
        ]

    @property
    def judged(self) -> list[bool]:
        """Of each pair that a judge answered about, whether the concept came back."""
        return [
            any(one.back for one in own.values()) for _, own in self.pairs if any(one.caption for one in own.values())
        ]

    @property
    def blurred(self) -> bool:
        """Whether any picture is."""
        return any(picture.blurred for row in self.rows.values() for picture in row)

    @property
    def small(self) -> bool:
        """Whether every picture is."""
        return all(picture.small for row in self.rows.values() for picture in row)


def picture_grids(run: RunRecord, summary: Evaluation, blur: bool) -> list[Grid]:
    """The sample pictures of one evaluation, by group."""
    groups: dict[str, list[AnySample]] = {}
    for sample in summary.samples:
        groups.setdefault(getattr(sample, "kind", ""), []).append(sample)
    concept = run.concepts if isinstance(summary, NudityEvaluation) else summary.concept or run.concepts
    title = f"NudeNet, {evaluation_titles()[summary.kind]}"
    of = "" if summary is next(iter(run.evaluations.values())) else f" ({run.label(summary)})"
    return [
        Grid(KIND_TITLES.get(kind, title).format(concept) + of, own, rows, kind)
        for kind, own in groups.items() if (rows := _rows(run, summary, own, COMPARED, blur))
    ]  # fmt: skip


def pairs_grid(run: RunRecord) -> Grid | None:
    """The pictures drawn at the end of the erasure, in whose files explicit ones are blurred already; None without any."""
    if not run.pairs:
        return None
    rows = {
        name: [_embedded(run.path / FOLDER, pair, which, f"{name} model", hidden=run.pairs.blurred) for pair in run.pairs.pairs]
        for name, which in COMPARED.items()
    }  # fmt: skip
    return Grid("Before and after, on the same seeds", run.pairs.pairs, rows)


def _embedded(folder: Path, pair: Pair, which: str, whose: str, *, hidden: bool) -> Picture:
    """One of them; `hidden`: its file is blurred."""
    uri, side = embed(folder, getattr(pair, which), blur=False)
    return Picture(uri, hidden, side <= SHARP_SIDE, f"{whose}, seed {pair.seed}: {prompt(pair.prompt)}", "")


def first_pictures(run: RunRecord, blur: bool) -> tuple[list[Grid], list[Grid]]:
    """A few pictures of those kinds that say most, of the first evaluation that has them; and all others.

    Where nothing was evaluated, the pairs drawn at the end of the erasure.
    """
    grids = [grid for summary in run.evaluations.values() for grid in picture_grids(run, summary, blur)]
    if not grids:
        return [drawn] if (drawn := pairs_grid(run)) else [], []
    first = {kind: next((grid for grid in grids if grid.kind == kind), None) for kind in FIRST_KINDS}
    if first["forget"]:
        first[""] = None
    chosen = [grid for grid in first.values() if grid]
    rest = [grid.part(slice(FIRST, None)) if grid in chosen else grid for grid in grids]
    return [grid.part(slice(FIRST)) for grid in chosen], [grid for grid in rest if grid.samples]


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
    blur = blur and (explicit or getattr(sample, "flagged", False))
    uri, side = embed(summary.folder or run.path, getattr(sample, which), blur=blur)
    concept = "" if isinstance(summary, NudityEvaluation) else summary.concept
    back = which in ("model", "after") and bool(concept) and answer.casefold() == concept.casefold()
    drawn = bool(getattr(sample, which))
    return Picture(uri, blur and uri is not None, side <= SHARP_SIDE, alt, answer, back, drawn)


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
