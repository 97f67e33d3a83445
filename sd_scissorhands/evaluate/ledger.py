"""One JSON line a picture, as it is measured: an evaluation that is killed continues where its ledger ends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..settings import UserError


class Ledger:
    """A JSONL file whose first line says what is measured and whose others hold one record each, by `number`."""

    def __init__(self, path: Path, header: dict[str, Any]):
        """Open or continue a ledger.

        Args:
            header: what identifies the measurement (model hash, prompts' hash, sampling); must be the same on continuing.

        Raises:
            UserError: the file holds another measurement, or cannot be read or written.
        """
        self.path, self.records = path, {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = _whole_lines(path)
            if lines and lines[0] != header:
                changed = next((name for name in header if lines[0].get(name) != header[name]), "header")
                raise UserError(
                    f"{path} holds another evaluation ({changed} differs): choose another --output-dir or delete it"
                )
            self.records = {record["number"]: record for record in lines[1:]}
            self._write("w", [header, *self.records.values()])  # drops a half-written last line
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space or choose another --output-dir"
            ) from None

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records and flush them to disk.

        Raises:
            UserError: the disk refused; the lines written before stay.
        """
        records = list(records)
        try:
            self._write("a", records)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space and repeat the command to continue"
            ) from None
        self.records.update({record["number"]: record for record in records})

    def in_order(self) -> list[dict[str, Any]]:
        """All records, by number."""
        return [self.records[number] for number in sorted(self.records)]

    def _write(self, mode: str, lines: list[dict[str, Any]]) -> None:
        if mode == "w":
            new = self.path.with_name(f".{self.path.name}.partial")
            new.write_text("".join(json.dumps(line) + "\n" for line in lines))
            new.replace(self.path)
            return
        with self.path.open(mode) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that is cut off."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines
