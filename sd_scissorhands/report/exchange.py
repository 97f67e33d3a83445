"""Results as other programs and papers have them: `sdscissor report --format`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, UserError
from ..parsing import choose
from . import eval_unlearn
from .i2p_table import TABLES, rows
from .reading import RunRecord, read_measurement, read_run

FORMATS = ("eval-unlearn", *TABLES)


def exchanged(folders: Sequence[Path], to: str) -> str:
    """The results in run directories, or in those of one evaluation or attack, as the text of a format.

    Args:
        to: of `FORMATS`.

    Raises:
        UsageError: no such format, or several folders where it holds one.
        UserError: a folder does not hold what the format needs, or something that is damaged or of other weights.
    """
    if to not in FORMATS:
        raise UsageError(f"--format {to} is unknown{choose(to, FORMATS)}")
    if to == "eval-unlearn" and len(folders) != 1:
        raise UsageError(f"--format {to} holds one run: name one folder, not {len(folders)}")
    runs = [_read(folder) for folder in folders]
    if to == "eval-unlearn":
        return json.dumps(eval_unlearn.report(runs[0]), indent=4, allow_nan=False) + "\n"
    return TABLES[to](rows(runs))


def _read(folder: Path) -> RunRecord:
    run = read_measurement(folder) if (folder / "summary.json").exists() else read_run(folder)
    if run.problems:
        raise UserError(f"{folder}: {run.problems[0]}: nothing is handed on before that is mended")
    return run
