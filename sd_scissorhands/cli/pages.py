"""`sdscissor concepts`, `sdscissor recipes`, `sdscissor report` and `sdscissor demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, NoBlur, Quiet, in_one_process


def concepts(as_json: Json = False) -> None:
    """List the presets and the words of the embedded world."""
    from .. import show
    from ..concepts import presets

    show.concepts(presets(), as_json)


def recipes(as_json: Json = False) -> None:
    """List the recipes: what each does, what it is for and where it comes from; --json says what it sets."""
    from .. import show
    from ..recipes import RECIPES

    show.recipes(RECIPES, as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="A run directory, or one of an evaluation, attack or comparison.")],
    no_blur: NoBlur = False,
    as_json: Json = False,
) -> None:
    """Rebuild the page of a run, an evaluation, an attack or a comparison."""
    from .. import show
    from ..report import rewrite

    show.values({"report": str(rewrite(folder, blur=not no_blur))}, as_json)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the demo goes.")] = Path("runs/demo"),
    concept: Annotated[str, typer.Option(help="A word of the embedded world.")] = "heart",
    limit: Annotated[int, typer.Option(min=8, help="Pictures for UA and for IRA, each, per model.")] = 96,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Erase one concept from the embedded model, with controls, attack it, and write a page that shows it. What `make demo` runs."""
    from .. import show

    show.still_libraries()
    in_one_process("sdscissor demo")
    show.one_thread_if_small("tiny")
    from ..demo import demo

    show.demo(demo(output_dir, concept, count=limit, progress=show.progress(quiet)), as_json)
