"""One JSON line a picture, as it is measured: an evaluation that is killed continues where its ledger ends."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import OccupiedError, UserError
from ..machine import Processes
from ..parsing import parse_json
from .prompts import Row

THUMB = 8  # pixels a side of the thumbnails


def record_of(row: Row, picture: np.ndarray, features: Tensor | None, answers: dict[str, Any]) -> dict[str, Any]:
    """A picture's line: its row, an 8 x 8 thumbnail in base64, every judge's answer, and its features, (d,), if any."""
    small = Image.fromarray(picture).resize((THUMB, THUMB), Image.Resampling.BOX)
    record = {
        "number": row.number,
        "prompt": row.prompt,
        "seed": row.seed,
        "thumb": _base64(np.asarray(small)),
        **answers,
    }
    return record | ({} if features is None else {"features": _base64(features.float().numpy())})


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def thumbnails(records: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """The thumbnails of records: (N, 8, 8, 3) float64 in [0, 1]."""
    raw = b"".join(base64.b64decode(record["thumb"]) for record in records)
    return np.frombuffer(raw, np.uint8).reshape(-1, THUMB, THUMB, 3) / 255


def feature_rows(records: Iterable[Mapping[str, Any]]) -> Tensor:
    """The features of records: (N, d) float32."""
    raw = (bytearray(base64.b64decode(record["features"])) for record in records)
    return torch.stack([torch.frombuffer(one, dtype=torch.float32) for one in raw])


class Ledger:
    """A JSONL file whose first line names what is measured and whose others hold one record each, by `number`.

    Of several processes the first writes into the file itself and every other into a part beside it; `close`, and the
    next opening after a kill, gather the parts. So a ledger may be continued by any number of processes.
    """

    def __init__(
        self, path: Path, header: dict[str, Any], processes: Processes | None = None, *,
        check: Callable[[dict[str, Any]], object] = lambda record: None,
    ):  # fmt: skip
        """Open or continue a ledger.

        Args:
            header: what identifies the measurement, by content and not by name: hashes of models, prompts and judges,
                versions, sampling; must be the same on continuing.
            check: reads a record as those do that come later; whatever it raises means that the record is damaged.

        Raises:
            OccupiedError: the file holds another measurement.
            UserError: it is damaged, or cannot be read or written.
        """
        self.path, self.header, self.processes, self.check = path, header, processes or Processes(), check
        self.records: dict[int, dict[str, Any]] = {}
        self._own = path if self.processes.main else path.with_name(f"{path.stem}.part{self.processes.index}.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.close()
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space or choose another --output-dir"
            ) from None

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Append records and flush them to disk.

        Raises:
            UserError: the disk refused; the lines written before stay.
        """
        try:
            with self._own.open("a") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space and repeat the command to continue"
            ) from None
        self.records.update({record["number"]: record for record in records})

    def count(self) -> int:
        """Records of all processes so far."""
        return len(self.records) + sum(_lines_in(part) for part in self._parts() if part != self._own)

    def close(self) -> None:
        """Wait for the other processes and gather what was written; the first puts it into the one file, in order."""
        self.processes.wait()
        self._read(self.path)  # by all of them, so that none waits for one that was refused
        if self.processes.main:
            for part in self._parts():
                self._read(part)
            new = self.path.with_name(f".{self.path.name}.partial")
            new.write_text("".join(json.dumps(line) + "\n" for line in [self.header, *self.in_order()]))
            new.replace(self.path)
            for part in self._parts():
                part.unlink()
        self.processes.wait()
        self._read(self.path)

    def in_order(self) -> list[dict[str, Any]]:
        """All records, by number."""
        return [self.records[number] for number in sorted(self.records)]

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.part*.jsonl"))

    def _read(self, file: Path) -> None:
        """Take the records; a last line without an end was cut off by a kill and does not count."""
        if not file.exists():
            return
        if not file.is_file():  # a FIFO would be waited for without end
            raise self._damaged(file, "no regular file")
        *lines, _ = file.read_bytes().split(b"\n")
        for n, text in enumerate(lines):
            header = n == 0 and file == self.path
            try:
                self._take(parse_json(text), header)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                raise self._damaged(file, f"line {n + 1}: {str(error)[:100]}") from None

    def _take(self, line: Any, header: bool) -> None:
        if not isinstance(line, dict):
            raise ValueError("no object")
        if not header:
            if type(line["number"]) is not int:
                raise ValueError("number is none")
            self.check(line)
            self.records[line["number"]] = line
        elif line != self.header:
            changed = next((name for name in self.header if line.get(name) != self.header[name]), "header")
            raise OccupiedError(
                f"{self.path} holds another evaluation ({changed} differs): choose another --output-dir or delete it"
            )

    @staticmethod
    def _damaged(file: Path, why: str) -> UserError:
        return UserError(f"{file} is damaged ({why}): delete it and repeat the command")


def _lines_in(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:  # gathered this very moment
        return 0
