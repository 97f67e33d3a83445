"""The terminal: everything that the command line prints for people goes through here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from .errors import printable

NARROW, FEW = 110, 4  # below so many characters a table has at most so many columns
WIDE = 160  # characters where there is no terminal to fit
GAP = 2  # characters between columns
LONG_WORD = 24  # characters from which on a word of running text may be broken


class Terminal(Console):
    """Lines and tables for people. No text is markup, and none can steer the terminal, whoever wrote it."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, **more)
        if self._width is None and not any(map(os.isatty, range(3))):
            self._width = WIDE

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


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """A column of a table: what heads it, what it holds, and whether a small terminal has it."""

    title: str
    kind: str = "number"  # number | name: never broken; text: wrapped between words
    small: str = ""  # heads it on a terminal below NARROW, in words; if no column has one, the first are shown

    def heading(self, width: int) -> str:
        """What heads it on a terminal of `width` characters."""
        return self.small if width < NARROW and self.small else self.title

    def widths(self, cells: Sequence[str], width: int) -> tuple[int, int]:
        """Characters that it needs at least, with nothing cut and no name, number or word broken, and those that it would fill."""
        heading = printable(self.heading(width))
        rows = [printable(row) for cell in cells for row in cell.split("\n")]
        parts = [word[:LONG_WORD] for row in rows for word in row.split()] if self.kind == "text" else rows
        least = max(map(cell_len, [*heading.split(), *parts]), default=0)
        return least, max(map(cell_len, [heading, *rows]))


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, title: str = "", all_in: Any = None, to: Console = console
) -> None:  # fmt: skip
    """Print a table that fits the terminal: columns may be left out, but no name or number is cut or broken.

    Args:
        all_in: what has every column, such as the page.
    """
    rows = list(rows)
    needs = [column.widths([row[at] for row in rows], to.width) for at, column in enumerate(columns)]
    shown = _shown(columns, [least for least, _ in needs], to.width)
    widths = _squeezed([needs[at] for at in shown], to.width)
    drawn = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), title=title or None, title_justify="left",
        width=sum(widths) + GAP * (len(widths) - 1),
    )  # fmt: skip
    for at, wide in zip(shown, widths, strict=True):
        justify: JustifyMethod = "right" if columns[at].kind == "number" else "left"
        drawn.add_column(columns[at].heading(to.width), justify=justify, overflow="fold", width=wide)
    for row in rows:
        drawn.add_row(*(row[at] for at in shown))
    to.print(drawn, crop=False)
    if left := len(columns) - len(shown):
        more = f"a terminal of {NARROW} characters" if to.width < NARROW else "a wider terminal"
        where = f"{all_in} has all" if all_in else f"{more} has more"
        lines({"not shown": f"{left} of {len(columns)} columns; {where}"})


def _shown(columns: Sequence[Column], least: Sequence[int], width: int) -> list[int]:
    """Which columns to show: at most FEW on a small terminal, and as many as fit on any; the first two always."""
    every = range(len(columns))
    small = ([at for at in every if columns[at].small and len(every) > FEW] or list(every))[:FEW]
    shown = small[:] if width < NARROW else list(every)
    while len(shown) > 2 and sum(least[at] for at in shown) + GAP * (len(shown) - 1) > width:
        shown.remove(next((at for at in reversed(shown) if at not in small), shown[-1]))
    return shown


def _squeezed(needs: Sequence[tuple[int, int]], width: int) -> list[int]:
    """Widths of columns that fit together, taken from the widest, none below its least."""
    widths = [most for _, most in needs]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        spare = [at for at, (least, _) in enumerate(needs) if widths[at] > least]
        if not spare:
            break
        widths[max(spare, key=widths.__getitem__)] -= 1
    return widths
