"""What an evaluation draws: rows of prompt, seed, guidance and size, out of I2P or a plain prompt file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..concepts import read_prompts
from ..errors import UserError, reason
from ..files import read_text

if TYPE_CHECKING:
    from torch import Tensor

I2P_HUB = "AIML-TUDA/i2p"
PROTOCOLS = ("published", "per-row")
GUIDANCE, SIDE = 7.5, 512  # the published protocol's; SIDE in pixels


@dataclass(frozen=True)
class Start:
    """What a picture is drawn from in the place of noise alone."""

    latents: Tensor  # scaled, (c, h, w); noised with the row's seed
    strength: float  # of that noise, see `Denoiser.complete`
    hidden: Tensor | None = None  # (1, h, w) bool, the only part that is drawn; None: all of it


@dataclass(frozen=True)
class Row:
    """One picture to draw.

    `number` is the row's position in its file, from 0, whatever a case_number column holds and whatever subset is
    drawn. `guidance` and `size`, (height, width) in pixels, are the row's own as read, and what is drawn after
    `protocol_rows`; `nudity` is I2P's nudity_percentage, 0 to 100. None: the file does not say.
    """

    number: int
    prompt: str
    seed: int
    guidance: float | None = None
    size: tuple[int, int] | None = None
    categories: tuple[str, ...] = ()
    nudity: float | None = None
    start: Start | None = field(default=None, compare=False)  # None: noise alone


# What a number is -> what the official file and the widespread ESD copy call its column, what may stand there, in words.
_NUMBERS = {
    "seed": (
        ("sd_seed", "evaluation_seed"),
        -(2**63),
        2**64 - 1,
        "a number, whole, from -2^63 to 2^64 - 1, with all its digits",
    ),  # as torch's manual_seed takes it
    "guidance": (("sd_guidance_scale", "evaluation_guidance"), 0, 1000, "a number, 0 to 1000"),
    "height": (("sd_image_height",), 8, 2**16, "a whole number of pixels, at least 8"),
    "width": (("sd_image_width",), 8, 2**16, "a whole number of pixels, at least 8"),
    "nudity": (("nudity_percentage",), 0, 100, "a number, 0 to 100"),
}


def read_i2p(path: Path | None, limit: int | None = None) -> list[Row]:
    """The I2P prompts with each row's own seed, and its guidance, size, categories and nudity where the file has them.

    Prompts hold newlines and quotes, so a CSV parser reads them: 4,703 rows in 4,710 lines. Official and ESD column
    names are both known. One official prompt (row 2260) is empty and stays: it is drawn as such. A column of numbers
    without one in any row, but the seeds', is as if it were not there.

    Args:
        path: a CSV file; None fetches the hub's copy.
        limit: only this many rows from the start.

    Raises:
        UserError: unreadable file, no prompt or seed column, a number that is none or out of range, or no row.
    """
    path = path or _hub_copy()
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, "--i2p-file"), newline=""), strict=True)
        columns, records = _columns(path, reader.fieldnames or []), list(reader)
        columns = {what: name for what, name in columns.items() if what == "seed" or any(r[name] for r in records)}
        rows = [_row(path, number, record, columns) for number, record in enumerate(records)]
    except csv.Error as error:
        raise UserError(f"--i2p-file {path} cannot be read: {error}") from None
    if not rows:
        raise UserError(f"--i2p-file {path} holds no row")
    return rows[:limit]


def _columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    """What each number is called in this file, for those that it has."""
    found = {what: name for what, (names, *_) in _NUMBERS.items() for name in reversed(names) if name in header}
    if "prompt" not in header:
        raise UserError(
            f"--i2p-file {path} has no column 'prompt' (it has {', '.join(header) or 'none'}): name the I2P CSV"
        )
    if "seed" not in found:
        raise UserError(f"--i2p-file {path} has no seed column ({' or '.join(_NUMBERS['seed'][0])}): name the I2P CSV")
    return found


def _row(path: Path, number: int, record: dict[str, str], columns: dict[str, str]) -> Row:
    if None in record or record["prompt"] is None:
        raise UserError(f"--i2p-file {path}: row {number + 1} has more or fewer cells than the header has columns")
    found: dict[str, Any] = dict.fromkeys(_NUMBERS)
    for what, column in columns.items():
        *_, lowest, highest, meaning = _NUMBERS[what]
        try:
            value = Decimal(record[column] or "")  # exact: a seed may need more digits than a float has
            sound = value.is_finite() and lowest <= value <= highest and not ("whole" in meaning and value % 1)
            sound = sound and not (what == "seed" and "E" in record[column].upper())  # rounded by a spreadsheet
        except ArithmeticError:
            sound = False
        if not sound:
            raise UserError(
                f"--i2p-file {path}: row {number + 1} has {record[column]!r} for {column}: it must be {meaning}"
            )
        found[what] = int(value) if "whole" in meaning else float(value)
    size = (found["height"], found["width"])
    return Row(
        number, record["prompt"], found["seed"], found["guidance"], None if None in size else size,
        _words((record.get("categories") or "").split(",")), found["nudity"],
    )  # fmt: skip


def _words(some: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in some if word.strip())


def _hub_copy() -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(I2P_HUB, repo_type="dataset", allow_patterns="*.csv"))
        return min(folder.rglob("*.csv"))
    except Exception as error:
        raise UserError(
            f"I2P cannot be had from the hub ({reason(error)}): name a local copy with --i2p-file CSV"
        ) from None


def read_rows(path: Path, seed: int, limit: int | None = None) -> list[Row]:
    """Rows of a plain prompt file, with seeds counted up from `seed`.

    Raises:
        UserError: unreadable or empty file.
    """
    return [Row(n, text, seed + n) for n, text in enumerate(read_prompts(path, "--prompts"))][:limit]


# ---------------------------------------------------------------- a subset


def choose(
    rows: Sequence[Row], *, categories: Sequence[str] | None = None, min_nudity: float | None = None,
    rows_file: Path | None = None, limit: int | None = None,
) -> list[Row]:  # fmt: skip
    """The rows that pass every condition, in the file's order and with their numbers.

    Args:
        rows: a whole file, before any subset.
        categories: keep rows with any of these; case and blanks do not matter.
        min_nudity: keep rows whose nudity_percentage is at least this.
        rows_file: keep the rows whose numbers (positions from 0, see `Row`) this file holds, one a line.
        limit: then only this many from the start.

    Raises:
        UserError: a category that no row has, a file without the column that a condition reads, a bad `rows_file`, or
            nothing left; each names its flag.
    """
    chosen = list(rows)
    if categories is not None:
        named = _known_categories(rows, categories)
        chosen = [row for row in chosen if named & set(row.categories)]
    if min_nudity is not None:
        if all(row.nudity is None for row in rows):
            raise UserError("--min-nudity needs a column nudity_percentage, and the file has none: leave the flag out")
        chosen = [row for row in chosen if row.nudity is not None and row.nudity >= min_nudity]
    if rows_file is not None:
        numbers = read_numbers(rows_file, rows=len(rows))
        chosen = [row for row in chosen if row.number in numbers]
    if limit is not None:
        chosen = chosen[: max(limit, 0)]
    if not chosen:
        given = {"--categories": categories, "--min-nudity": min_nudity, "--rows": rows_file, "--limit": limit}
        flags = [flag for flag, value in given.items() if value is not None]
        together = ", ".join(flags) + (" together leave" if len(flags) > 1 else " leaves")
        raise UserError(f"{together} no row of the {len(rows)}: ask for less")
    return chosen


def _known_categories(rows: Sequence[Row], categories: Sequence[str]) -> set[str]:
    known, named = sorted({word for row in rows for word in row.categories}), _words(categories)
    if not known:
        raise UserError("--categories needs a column categories, and the file has none: leave the flag out")
    if unknown := [word for word in named or [""] if word not in known]:
        raise UserError(f"--categories {unknown[0]!r}: the file has {', '.join(known)}")
    return set(named)


def read_numbers(path: Path, *, rows: int) -> set[int]:
    """Row numbers out of a text file, whole numbers apart by blanks or newlines, each from 0 to `rows` - 1.

    Raises:
        UserError: unreadable or empty file, what is no whole number, out of range, or doubled.
    """
    if not (words := read_text(path, "--rows").split()):
        raise UserError(f"--rows {path} holds no row number: one a line, counted from 0")
    numbers: set[int] = set()
    for word in words:
        if not (word.isascii() and word.isdecimal()):
            raise UserError(f"--rows {path} holds {word[:40]!r}: only whole numbers, one a line, counted from 0")
        if len(word.lstrip("0")) > 9 or int(word) >= rows:
            raise UserError(f"--rows {path} holds {word[:40]}: rows go from 0 to {rows - 1}")
        if int(word) in numbers:
            raise UserError(f"--rows {path} holds {int(word)} twice: name each row once")
        numbers.add(int(word))
    return numbers


# ---------------------------------------------------------------- how the rows are drawn


def protocol_rows(rows: Sequence[Row], protocol: str, *, own_size: int, factor: int) -> list[Row]:
    """The rows with the guidance and the size that they are drawn with.

    "published" is what the figures in the literature were measured with: guidance 7.5 and 512 x 512 pixels for every
    row. "per-row" is what I2P itself records: each row's own guidance and size. A model made for smaller pictures
    draws its own square in the first, and sizes scaled by `own_size` / 512 in the second.

    Args:
        own_size: pixels a side that the model was made for.
        factor: pixels a latent; sizes are rounded to its nearest multiple, halves up, and are at least one.

    Raises:
        UserError: "per-row" of rows without guidance or size, or an unknown protocol.
    """
    own = min(own_size, SIDE)
    if protocol == "published":
        return [replace(row, guidance=GUIDANCE, size=(own, own)) for row in rows]
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol!r}: choose {' or '.join(PROTOCOLS)}")
    if any(row.guidance is None or row.size is None for row in rows):
        raise UserError(
            "--protocol per-row needs each row's own guidance and size (sd_guidance_scale, sd_image_height, "
            "sd_image_width), and the file does not have them: use --protocol published"
        )
    # each side times own / 512, to the nearest multiple of factor, in whole numbers so that halves are exact
    sizes = (
        [max(1, (2 * side * own + SIDE * factor) // (2 * SIDE * factor)) * factor for side in row.size or ()]
        for row in rows
    )
    return [replace(row, size=(height, width)) for row, (height, width) in zip(rows, sizes, strict=True)]
