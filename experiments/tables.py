"""Markdown tables and their places in the documents; of both experiments/ and benchmarks/."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def markdown(header: str, lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the header's cells are parted by semicolons."""
    cells = header.split("; ")
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells, ["---"] * len(cells), *lines])


def publish(name: str, text: str, document: Path) -> None:
    """Replace what stands between a table's marks in a document.

    Raises:
        ValueError: the document has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = document.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no marks {begin} and {end}")
    document.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def machine() -> str:
    """The processor and the version of torch, for under a table."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    return f"Machine: {name}, {os.cpu_count()} cores; torch {torch.__version__}."
