"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..settings import UsageError, UserError
from . import apply as applying
from . import compare as comparing
from . import erase as erasing
from . import export as exporting
from . import forget as forgetting
from . import measure as proof
from . import pages as reports
from .options import GateMissed

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not burn the core that others need

app = typer.Typer(
    name="sdscissor",
    help="Take a concept out of a Stable Diffusion model, keep the rest of it whole, and show both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.command()(erasing.erase)
app.command()(applying.apply)
app.command()(exporting.export)
app.command()(exporting.diff)
app.command()(exporting.verify)
app.command()(forgetting.forget)
app.command(name="eval")(proof.evaluate)
app.command()(proof.attack)
app.command()(comparing.compare)
app.command()(reports.concepts)
app.command()(reports.recipes)
app.command()(reports.report)
app.command()(reports.demo)

OUT_OF_MEMORY = "out of memory: lower --batch-size, choose a smaller --scope, or see erase --dry-run for what it takes"


def main() -> None:
    """Run the command line with errors as one line each: exit 0 done, 1 failed, 2 usage, 3 a gate missed."""
    try:
        app()
    except GateMissed as missed:
        _fail(str(missed), code=3)
    except UsageError as error:
        _fail(str(error), code=2)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; repeat the command, erase with --resume, to continue", code=130)
    except MemoryError:
        _fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate" not in str(error).lower():
            raise
        _fail(OUT_OF_MEMORY)


def _fail(message: str, code: int = 1) -> None:
    print(f"sdscissor: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Shared options."""
