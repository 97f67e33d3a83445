"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import UsageError, UserError, out_of_memory
from ..parsing import shortened
from ..terminal import console
from . import apply as applying
from . import cache as caching
from . import compare as comparing
from . import draw as drawing
from . import erase as erasing
from . import export as exporting
from . import forget as forgetting
from . import measure as proof
from . import pages as reports
from .flags import CommandWithOwnFlags
from .options import GateMissed, NotConverged

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not burn the core that others need

app = typer.Typer(
    name="sdscissor",
    help="Take a concept out of a Stable Diffusion model, keep the rest of it whole, and show both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.command(cls=CommandWithOwnFlags)(erasing.erase)
app.command()(applying.apply)
app.command()(exporting.export)
app.command()(exporting.diff)
app.command()(exporting.verify)
app.command(cls=CommandWithOwnFlags)(forgetting.forget)
app.command(name="eval")(proof.evaluate)
app.command()(proof.attack)
app.command()(drawing.draw)
app.command()(comparing.compare)
app.command()(reports.concepts)
app.command()(reports.recipes)
app.command()(reports.report)
app.command()(caching.cache)
app.command()(reports.demo)

OUT_OF_MEMORY = (
    "out of memory: choose a smaller --batch-size or --scope where the command has them, another --device or a machine with "
    "more; erase --dry-run says what it takes"
)


RESUMED = ("erase", "forget")  # commands that continue with --resume; the others where they are repeated


class Terminated(BaseException):
    """The process was asked to end, by SIGTERM."""


def _terminate(*_: object) -> None:
    raise Terminated


def _to_continue(words: Sequence[str]) -> str:
    """The line that continues a command."""
    resume = words and words[0] in RESUMED and "--resume" not in words
    return shlex.join(["sdscissor", *words, *(["--resume"] if resume else [])])


def main() -> None:
    """Run the command line with errors as one line each: exit 0 done, 1 failed, 2 usage, 3 a gate missed, 4 not converged."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale: what it cannot write is escaped
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            _check_words(sys.argv[1:])
            app()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except GateMissed as missed:
        _fail(str(missed), code=3)
    except NotConverged as found:
        _fail(str(found), code=4)
    except UserError as error:
        _fail(str(error), code=2 if isinstance(error, UsageError) else 1)
    except (KeyboardInterrupt, Terminated) as stopped:
        _fail(
            f"stopped; continue: {_to_continue(sys.argv[1:])}",
            code=143 if isinstance(stopped, Terminated) else 130,
            kind="",
        )
    except BrokenPipeError:  # whoever read stdout has seen enough
        _fail("", code=1)
    except Exception as error:
        if out_of_memory(error):
            _fail(OUT_OF_MEMORY)
        if not isinstance(error, OSError):
            raise
        _fail(
            f"{shortened(str(error.filename or 'stdout'))}: {error.strerror or error}: choose another file or directory"
        )


def _check_words(words: Sequence[str]) -> None:
    """Refuse what cannot be written into results.

    Raises:
        UsageError: a word of the command line that is no text in the locale's encoding, such as a path of other bytes; or a
            flag with an empty value, as of a variable that is not set.
    """
    for before, word in zip(("", *words), words, strict=False):
        flag = before if not word else word.removesuffix("=") if word.endswith("=") else ""
        if flag.startswith("--"):
            raise UsageError(f"{flag} is empty: give it a value or leave it out")
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UsageError(f"{shortened(word)} is no UTF-8: rename the file or directory")


def _fail(message: str, code: int = 1, kind: str = "error: ") -> None:
    """Say what is wrong in one line, and end; without a message stdout is closed, which nobody reads."""
    if message:
        console.print(f"sdscissor: {kind}{' '.join(message.split())}", soft_wrap=True, highlight=False)
    else:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Shared options."""
