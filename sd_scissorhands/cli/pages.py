"""`sdscissor concepts`, `sdscissor recipes`, `sdscissor report` and `sdscissor demo`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..terminal import Terminal
from .options import Json, NoBlur, Quiet, in_one_process


def concepts(as_json: Json = False) -> None:
    """List the presets and the words of the embedded world."""
    from ..concepts import presets
    from ..tiny import world

    words = {domain: list(names) for domain, names in world.CATEGORIES.items()}
    if as_json:
        listed = [
            {name: getattr(one, name) for name in ("name", "title", "kind", "explicit", "summary")} | {"prompts": len(one.pairs)}
            for one in presets()
        ]  # fmt: skip
        return print(json.dumps({"presets": listed, "tiny": words}))
    table = Table("name", "kind", "what goes", "prompts")
    for concept in presets():
        table.add_row(concept.name, concept.kind, concept.summary, str(len(concept.pairs)))
    stdout = Terminal()
    stdout.print(table)
    stdout.print("With --model tiny: " + "; ".join(f"{domain} {', '.join(names)}" for domain, names in words.items()))
    stdout.print("Anything else: --concept TEXT --anchor TEXT")


def recipes(as_json: Json = False) -> None:
    """List the recipes: what each does, what it is for and where it comes from; --json says what it sets."""
    from ..recipes import CLASSIFIERS, DENOISERS, RECIPES

    if as_json:
        return print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in RECIPES.items()}))
    table = Table("recipe", "for", "what it does", "paper")
    for name, recipe in RECIPES.items():
        kinds = {"diffusion": DENOISERS, "classifiers": CLASSIFIERS}
        fits = ", ".join(kind for kind, profiles in kinds.items() if set(profiles) & set(recipe.fits))
        table.add_row(name, fits, recipe.summary, recipe.source)
    Terminal().print(table)


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

    show.result(demo(output_dir, concept, count=limit, progress=show.progress(quiet)), as_json)
