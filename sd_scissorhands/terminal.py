"""The terminal: everything that the command line prints for people goes through here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from .errors import printable


class Terminal(Console):
    """Lines and tables for people. No text is markup, and none can steer the terminal, whoever wrote it."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, **more)

    def render_str(self, text: str, *arguments: Any, **how: Any) -> Text:
        """Every text, of a line or of a table's cell: what is not printable in it is escaped."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), *arguments, **how)


console = Terminal(stderr=True)


def lines(values: Mapping[str, Any]) -> None:
    """A line on stderr for each value that there is."""
    for name, value in values.items():
        if value is not None:
            console.print(name, end="  ", style="bold", highlight=False)
            console.print(str(value), highlight=False, soft_wrap=True)
