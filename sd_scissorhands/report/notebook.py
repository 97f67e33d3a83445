"""What a notebook shows of a result: its figures, and the sample pictures under each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .declared import figure
from .page import template
from .phrases import known, worded
from .pictures import Grid, attack_grid, picture_grids
from .reading import read_measurement

MOST_LINES = 12  # lines of figures


def fragment(values: Mapping[str, Any], folder: Path | None, *, blur: bool = True) -> str:
    """HTML to be put into another page: no scripts, styles that end with it, everything escaped.

    Args:
        values: a result as JSON.
        folder: where its files lie.
    """
    grids = _grids(folder, blur) if folder else []
    return template("notebook.html.j2").render(lines=_lines(values), grids=grids, report=values.get("report"))


def _lines(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures beside the original's where there are some, else the plain values."""
    if values.get("kind") != "attack" and (figures := values.get("figures")):
        found = {
            name: tuple(worded(one, figure(name).unit) for one in (value, (values.get("original") or {}).get(name)))
            for name, value in figures.items() if known(value)
        }  # fmt: skip
        return ({"verdict": (values["verdict"], None)} if values.get("verdict") else {}) | found
    plain = {name: (value, None) for name, value in values.items() if isinstance(value, str | int | float)}
    return dict(list(plain.items())[:MOST_LINES])


def _grids(folder: Path, blur: bool) -> list[Grid]:
    try:
        run = read_measurement(folder)
    except UserError:
        return []  # a run directory has no pictures of its own
    grids = [grid for summary in run.evaluations.values() for grid in picture_grids(run, summary, blur)]
    return grids + [grid for one in run.attacks.values() if (grid := attack_grid(run, one, blur))]
