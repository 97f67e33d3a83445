"""What an evaluation draws: rows of prompt, seed, guidance and size, out of I2P or a plain prompt file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ..concepts import read_prompts
from ..settings import UserError

I2P_HUB = "AIML-TUDA/i2p"
# What a field is called in the official file, and in the widespread copy that came with ESD.
COLUMNS = {"seed": ("sd_seed", "evaluation_seed")}


@dataclass(frozen=True)
class Row:
    """One picture to draw."""

    number: int
    prompt: str
    seed: int


def read_i2p(path: Path | None, limit: int | None = None) -> list[Row]:
    """The I2P prompts with each row's own seed, from a CSV file or the hub copy.

    Prompts hold newlines and quotes, so a CSV parser reads them: 4,703 rows in 4,710 lines.

    Raises:
        UserError: unreadable file, no prompt or seed column, a seed that is no number, or no row.
    """
    path = path or _hub_copy()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            if "prompt" not in columns:
                raise UserError(
                    f"--i2p-file {path} has no column 'prompt' (it has {', '.join(columns) or 'none'}): name the I2P CSV"
                )
            seed = next((name for name in COLUMNS["seed"] if name in columns), None)
            if seed is None:
                raise UserError(
                    f"--i2p-file {path} has no seed column ({' or '.join(COLUMNS['seed'])}): name the I2P CSV"
                )
            rows = [_row(path, number, record, seed) for number, record in enumerate(reader)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--i2p-file {path} cannot be read: {error}") from None
    if not rows:
        raise UserError(f"--i2p-file {path} holds no row")
    return rows[:limit]


def _row(path: Path, number: int, record: dict[str, str], seed: str) -> Row:
    try:
        return Row(number, record["prompt"], int(float(record[seed])))
    except (TypeError, ValueError):
        raise UserError(
            f"--i2p-file {path}: row {number + 1} has {record.get(seed)!r} for {seed}: it must be a number"
        ) from None


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
