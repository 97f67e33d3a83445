"""What a notebook shows of a result: its figures, and the sample pictures under each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..settings import UserError
from .found import read_alone
from .page import template
from .phrases import known, percent
from .pictures import Grid, attack_grid, picture_grids

MOST = 12  # lines of figures


def fragment(result: Mapping[str, Any], folder: Path, *, blur: bool = True) -> str:
    """HTML to be put into another page: no scripts, styles that end with it, everything escaped.

    Args:
        result: what a run, an evaluation or an attack came to.
        folder: where its files lie.
    """
    return template("notebook.html.j2").render(
        lines=_lines(result), grids=_grids(folder, blur), report=result.get("report")
    )


def _lines(result: Mapping[str, Any]) -> dict[str, Any]:
    """Figures beside the original's where there are some, else the plain values."""
    figures, original = result.get("figures"), result.get("original") or {}
    if isinstance(figures, Mapping):
        return {name: (percent(value), percent(original.get(name))) for name, value in figures.items() if known(value)}
    plain = {name: (value, None) for name, value in result.items() if isinstance(value, str | int | float)}
    return dict(list(plain.items())[:MOST])


def _grids(folder: Path, blur: bool) -> list[Grid]:
    try:
        run = read_alone(folder)
    except UserError:
        return []  # a run directory has no pictures of its own
    grids = [grid for summary in run.evaluations.values() for grid in picture_grids(run, summary, blur)]
    return grids + [grid for one in run.attacks.values() if (grid := attack_grid(run, one, blur))]
