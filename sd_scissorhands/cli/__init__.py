"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
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
from . import init as starting
from . import measure as proof
from . import pages as reports
from .flags import Command, CommandWithOwnFlags, Group, with_kinds
from .options import GateMissed, NotConverged, first_process

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not burn the core that others need

app = typer.Typer(
    name="sdscissor",
    help="Take a concept out of a Stable Diffusion model, keep the rest of it whole, and show both.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
for command in (
    erasing.erase, starting.init, applying.apply, exporting.export, exporting.diff, exporting.verify, forgetting.forget,
    proof.evaluate, proof.attack, drawing.draw, comparing.compare, reports.concepts, reports.recipes, reports.report,
    caching.cache, reports.demo,
):  # fmt: skip
    kind = CommandWithOwnFlags if command in (erasing.erase, forgetting.forget) else Command
    app.command("eval" if command is proof.evaluate else None, cls=kind)(with_kinds(command))

OUT_OF_MEMORY = (
    "out of memory: choose a smaller --batch-size or --scope where the command has them, another --device or a machine with "
    "more; erase --dry-run says what it takes"
)


RESUMED = ("erase", "forget")  # commands that continue with --resume; the others where they are repeated


class Stopped(BaseException):
    """Ctrl-C or SIGTERM is to end the process; the notes say where it was, the innermost first."""

    def __init__(self, number: int):
        """`number` is the signal's."""
        self.code = 128 + number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM raise `Stopped`, unless whoever started the process has them ignored; twice, they end it."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.suppress(ValueError):  # not the main thread
        for one, handler in before.items():
            signal.signal(one, handler if handler is signal.SIG_IGN else stop)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            for one, handler in before.items():
                signal.signal(one, handler)


def _to_continue(words: Sequence[str]) -> str:
    """The line that continues a command."""
    resume = words and words[0] in RESUMED and "--resume" not in words
    return shlex.join(["sdscissor", *words, *(["--resume"] if resume else [])])


def main() -> None:
    """Run the command line with errors as one line each: exit 0 done, 1 failed, 2 usage, 3 a gate missed, 4 not converged."""
    gc.set_threshold(50_000, 20, 20)  # with 700, a fifth of the time to load diffusers goes into looking for garbage
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale: what it cannot write is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stoppable():
            _run()
    except GateMissed as missed:
        _fail(str(missed), code=3)
    except NotConverged as found:
        _fail(str(found), code=4)
    except UserError as error:
        _fail(str(error), code=2 if isinstance(error, UsageError) else 1)
    except Stopped as stopped:
        where = " ".join(getattr(stopped, "__notes__", [])[:1])
        line = f"{f'Stopped {where}'.strip()}. Continue: {_to_continue(sys.argv[1:])}"
        _fail(line if first_process() else "", code=stopped.code, kind="")
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


def _run() -> None:
    """What is typed."""
    try:
        _check_words(sys.argv[1:])
        app()
    finally:
        if sys.stdout:
            sys.stdout.flush()


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


def _fail(message: str, code: int = 1, kind: str = "sdscissor: error: ") -> None:
    """Say what is wrong in one line, and end; without a message stdout is closed, which nobody reads."""
    if message:
        console.print(f"{kind}{' '.join(message.split())}", soft_wrap=True, highlight=False)
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
