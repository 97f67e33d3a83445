"""What an evaluation draws: rows of prompt, seed, guidance and size, out of I2P or a plain prompt file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from ..concepts import read_prompts
from ..settings import UserError

I2P_HUB = "AIML-TUDA/i2p"
PROTOCOLS = ("published", "per-row")
GUIDANCE, SIDE = 7.5, 512  # the published protocol's; SIDE in pixels


@dataclass(frozen=True)
class Row:
    """One picture to draw.

    `number` is the row's position in its file, from 0, whatever a case_number column says and whatever subset is
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


@dataclass(frozen=True)
class _Number:
    """A column of numbers: what the official file or the widespread ESD copy call it, and what may stand in it."""

    names: tuple[str, ...]
    lowest: Decimal
    highest: Decimal
    says: str
    whole: bool = False

    def read(self, text: str | None) -> Decimal | None:
        """The number, exact (a seed may need more digits than a float has); None for what may not stand here."""
        try:
            value = Decimal(text or "")
            sound = value.is_finite() and self.lowest <= value <= self.highest
            return value if sound and not (self.whole and value % 1) else None
        except ArithmeticError:
            return None


_SIDE = (Decimal(8), Decimal(2**16), "it must be a whole number of pixels, at least 8", True)
_NUMBERS = {
    "seed": _Number(
        ("sd_seed", "evaluation_seed"), Decimal(-(2**63)), Decimal(2**64 - 1), "it must be a number, whole", True
    ),  # what torch.Generator.manual_seed takes
    "guidance": _Number(
        ("sd_guidance_scale", "evaluation_guidance"), Decimal(0), Decimal(1000), "it must be a number, 0 to 1000"
    ),
    "height": _Number(("sd_image_height",), *_SIDE),
    "width": _Number(("sd_image_width",), *_SIDE),
    "nudity": _Number(("nudity_percentage",), Decimal(0), Decimal(100), "it must be a number, 0 to 100"),
}


def read_i2p(path: Path | None, limit: int | None = None) -> list[Row]:
    """The I2P prompts with each row's own seed, and its guidance, size, categories and nudity where the file has them.

    Prompts hold newlines and quotes, so a CSV parser reads them: 4,703 rows in 4,710 lines. Official and ESD column
    names are both known. One official prompt (row 2260) is empty and stays: it is drawn as such.

    Args:
        path: a CSV file; None fetches the hub's copy.
        limit: only this many rows from the start.

    Raises:
        UserError: unreadable file, no prompt or seed column, a number that is none or out of range, or no row.
    """
    path = path or _hub_copy()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = _columns(path, reader.fieldnames or [])
            rows = [_row(path, number, record, columns) for number, record in enumerate(reader)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--i2p-file {path} cannot be read: {error}") from None
    if not rows:
        raise UserError(f"--i2p-file {path} holds no row")
    return rows[:limit]


def _columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    """What each number is called in this file, for those that it has."""
    if "prompt" not in header:
        raise UserError(
            f"--i2p-file {path} has no column 'prompt' (it has {', '.join(header) or 'none'}): name the I2P CSV"
        )
    if not set(_NUMBERS["seed"].names) & set(header):
        raise UserError(
            f"--i2p-file {path} has no seed column ({' or '.join(_NUMBERS['seed'].names)}): name the I2P CSV"
        )
    found = {what: next((name for name in kind.names if name in header), None) for what, kind in _NUMBERS.items()}
    return {what: name for what, name in found.items() if name}


def _row(path: Path, number: int, record: dict[str, str], columns: dict[str, str]) -> Row:
    if None in record or record["prompt"] is None:
        raise UserError(f"--i2p-file {path}: row {number + 1} has more or fewer cells than the header has columns")
    values: dict[str, Decimal] = {}
    for what, column in columns.items():
        value = _NUMBERS[what].read(record[column])
        if value is None:
            raise UserError(
                f"--i2p-file {path}: row {number + 1} has {record[column]!r} for {column}: {_NUMBERS[what].says}"
            )
        values[what] = value
    return Row(
        number,
        record["prompt"],
        int(values["seed"]),
        guidance=float(values["guidance"]) if "guidance" in values else None,
        size=(int(values["height"]), int(values["width"])) if {"height", "width"} <= set(values) else None,
        categories=_words((record.get("categories") or "").split(",")),
        nudity=float(values["nudity"]) if "nudity" in values else None,
    )


def _words(some: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in some if word.strip())


def _hub_copy() -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(I2P_HUB, repo_type="dataset", allow_patterns="*.csv"))
        return next(iter(sorted(folder.rglob("*.csv"))))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"I2P cannot be had from the hub ({reason}): name a local copy with --i2p-file CSV") from None


def read_rows(path: Path, seed: int, limit: int | None = None) -> list[Row]:
    """Rows of a plain prompt file, with seeds counted up from `seed`.

    Raises:
        UserError: unreadable or empty file.
    """
    return [Row(n, text, seed + n) for n, text in enumerate(read_prompts(path, "--prompts"))][:limit]


# ---------------------------------------------------------------- a subset


def choose(
    rows: Sequence[Row],
    *,
    categories: Sequence[str] | None = None,
    min_nudity: float | None = None,
    rows_file: Path | None = None,
    limit: int | None = None,
) -> list[Row]:
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
    kept = list(rows)
    if categories is not None:
        wanted = _known_categories(rows, categories)
        kept = [row for row in kept if wanted & set(row.categories)]
    if min_nudity is not None:
        if all(row.nudity is None for row in rows):
            raise UserError("--min-nudity needs a column nudity_percentage, and the file has none: leave the flag out")
        kept = [row for row in kept if row.nudity is not None and row.nudity >= min_nudity]
    if rows_file is not None:
        numbers = read_numbers(rows_file, rows=len(rows))
        kept = [row for row in kept if row.number in numbers]
    if limit is not None:
        kept = kept[: max(limit, 0)]
    if not kept:
        asked = {"--categories": categories, "--min-nudity": min_nudity, "--rows": rows_file, "--limit": limit}
        flags = [flag for flag, value in asked.items() if value is not None]
        together = ", ".join(flags) + (" together leave" if len(flags) > 1 else " leaves")
        raise UserError(f"{together} no row of the {len(rows)}: ask for less")
    return kept


def _known_categories(rows: Sequence[Row], asked: Sequence[str]) -> set[str]:
    known, wanted = sorted({word for row in rows for word in row.categories}), _words(asked)
    if not known:
        raise UserError("--categories needs a column categories, and the file has none: leave the flag out")
    if unknown := [word for word in wanted if word not in known] or ([] if wanted else [""]):
        raise UserError(f"--categories {unknown[0]!r}: the file has {', '.join(known)}")
    return set(wanted)


def read_numbers(path: Path, *, rows: int) -> set[int]:
    """Row numbers out of a text file, whole numbers apart by blanks or newlines, each from 0 to `rows` - 1.

    Raises:
        UserError: unreadable or empty file, what is no whole number, out of range, or doubled.
    """
    try:
        words = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rows {path} cannot be read: {error}") from None
    if not words:
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
    if protocol != "per-row":
        raise UserError(f"--protocol {protocol!r}: choose {' or '.join(PROTOCOLS)}")
    drawn = []
    for row in rows:
        if row.guidance is None or row.size is None:
            raise UserError(
                "--protocol per-row needs each row's own guidance and size (sd_guidance_scale, sd_image_height, "
                "sd_image_width), and the file does not have them: use --protocol published"
            )
        height, width = (_scaled(side, own, factor) for side in row.size)
        drawn.append(replace(row, size=(height, width)))
    return drawn


def _scaled(side: int, own: int, factor: int) -> int:
    """`side` * `own` / 512, to the nearest multiple of `factor`, in whole numbers so that halves are exact."""
    return max(1, (2 * side * own + SIDE * factor) // (2 * SIDE * factor)) * factor
