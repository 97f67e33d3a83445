"""`sdscissor concepts`, `sdscissor recipes`, `sdscissor report` and `sdscissor demo`."""

from __future__ import annotations

import dataclasses
import json
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError, printable
from ..terminal import Column, Terminal, table
from .options import Json, NoBlur, Quiet, in_one_process


def concepts(
    check: Annotated[str | None, typer.Option(metavar="FILE", help="Instead, list what is wrong with a preset: the path of a .toml, or a name. Exit 2 if no run can use it.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the presets and the words of the embedded world; or check a preset of your own.

    A preset is a TOML file of words, each with what takes its place, and templates: docs/guides/own-presets.md has its format.
    """
    if check is not None:
        return _check(check, as_json)
    from ..concepts import presets
    from ..tiny import world

    words = {domain: list(names) for domain, names in world.CATEGORIES.items()}
    if as_json:
        listed = [
            {name: getattr(one, name) for name in ("name", "title", "kind", "explicit", "summary")} | {"prompts": len(one.pairs)}
            for one in presets()
        ]  # fmt: skip
        return print(json.dumps({"presets": listed, "tiny": words}))
    stdout = Terminal()
    columns = Column("name", "name"), Column("kind", "name"), Column("what goes", "text"), Column("prompts")
    table(columns, [(one.name, one.kind, one.summary, str(len(one.pairs))) for one in presets()], to=stdout)
    stdout.print("With --model tiny: " + "; ".join(f"{domain} {', '.join(names)}" for domain, names in words.items()))
    stdout.print("Your own: --concept FILE.toml. Anything else: --concept TEXT --anchor TEXT")


def _check(text: str, as_json: bool) -> None:
    """Print what is wrong with a preset.

    Raises:
        UsageError: no run can use it.
    """
    from ..concepts import findings

    found = findings(text)
    errors, warnings = ([one for one in found if one.unusable is unusable] for unusable in (True, False))
    if as_json:
        kinds = {"errors": errors, "warnings": warnings}
        listed = {kind: [{"key": one.key, "text": one.text} for one in some] for kind, some in kinds.items()}
        print(json.dumps({"file": text, **listed}))
    else:
        for one in found:
            print(printable(f"{text}: {'error' if one.unusable else 'warning'}: {one}"))
        print(f"{printable(text)}: errors {len(errors)}, warnings {len(warnings)}")
    if errors:
        raise UsageError(f"--check {printable(text)}: no run can use it: mend what is listed as errors")


def recipes(as_json: Json = False) -> None:
    """List the recipes: what each does, what it is for and where it comes from; --json says what it sets."""
    from ..recipes import CLASSIFIERS, DENOISERS, RECIPES

    if as_json:
        return print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in RECIPES.items()}))
    rows = []
    for name, recipe in RECIPES.items():
        kinds = {"diffusion": DENOISERS, "classifiers": CLASSIFIERS}
        fits = ", ".join(kind for kind, profiles in kinds.items() if set(profiles) & set(recipe.fits))
        rows.append((name, fits, recipe.summary, recipe.source))
    table(
        (Column("recipe", "name"), *(Column(title, "text") for title in ("for", "what it does", "paper"))),
        rows,
        to=Terminal(),
    )


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="A run directory, or one of an evaluation, attack or comparison; for an I2P table several.")],
    as_format: Annotated[str | None, typer.Option("--format", help="Instead of the page: eval-unlearn, i2p-markdown, i2p-csv or i2p-latex.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --format: a file that must not exist yet; else stdout.")] = None,
    card: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also write one picture to share, which must not exist yet: the verdicts and four pairs.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Then open the page in a browser.")] = False,
    no_blur: NoBlur = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Rebuild the page of a run, an evaluation, an attack or a comparison; or write its results for other programs and papers.

    eval-unlearn is JSON as that program reports it; i2p-... is a table of NudeNet's counts, the original first: docs/guides/exchange.md.
    """
    from .. import show
    from ..report import rewrite, write_picture

    if as_format is not None:
        if card or open_page:
            raise UsageError(f"{'--card' if card else '--open'} goes with the page: leave out --format")
        return _exchange(folders, as_format, output, as_json)
    if output or len(folders) != 1:
        raise UsageError(
            f"{'--output' if output else 'more than one folder'} goes with --format: add one, such as --format i2p-csv"
        )
    if card and (card.exists() or card.suffix.lower() != ".png"):
        raise UsageError(
            f"--card {card} {'exists: choose another' if card.exists() else 'is no PNG: name it FILE.png'}"
        )
    written = {"report": rewrite(folders[0], blur=not no_blur)}
    if card:
        written["card"] = write_picture(folders[0], card, blur=not no_blur)
    show.values({name: str(file) for name, file in written.items()}, as_json)
    if open_page and not webbrowser.open(written["report"].resolve().as_uri()):
        show.note(f"no browser was found: open {written['report']} yourself")


def _exchange(folders: list[Path], to: str, output: Path | None, as_json: bool) -> None:
    """Print or write results in another program's format."""
    from .. import show
    from ..disk import write_text
    from ..report.exchange import exchanged

    if as_json and not output:
        raise UsageError("--json with --format says where the file is: add --output FILE")
    if output and output.exists():
        raise UsageError(f"--output {output} exists: choose another")
    text = exchanged(folders, to)
    if not output:
        return print(text, end="")
    write_text(output, text)
    show.values({"output": str(output)}, as_json)


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
