"""Progress where somebody watches, and silence from the libraries while we work."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .errors import printable
from .run import Progress, silent
from .settings import DIGITS

LIBRARIES = ("bitsandbytes", "transformers", "diffusers")  # the first is imported by the others, where it is installed


@contextmanager
def bars(stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` with time left for notebooks (with ipywidgets) and terminals, by tqdm."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=printable(stage)) as bar:
        yield bar.update


def progress_here() -> Progress:
    """`bars` in a notebook, where they belong to the cell; nothing elsewhere."""
    return bars if in_notebook() else silent


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def quietly(*, threads: int | None = None) -> Iterator[None]:
    """Within it no library shows bars, advice or warnings; afterwards all is as before. In a notebook downloads have bars.

    Args:
        threads: of torch, within it; None: as many as before. The embedded model is fastest on one: its layers are too
            small to share.
    """
    from huggingface_hub.utils import enable_progress_bars

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for library in LIBRARIES:
            stack.callback(silenced(library))
        if in_notebook():
            enable_progress_bars()  # which transformers has silenced too
        if threads:
            stack.callback(_threaded(threads))
        yield


def silenced(library: str) -> Callable[[], None]:
    """Silence a library, and its bars if it has any; what undoes it."""
    from importlib import import_module

    if library == "bitsandbytes":
        logger = logging.getLogger(library)
        before = logger.level
        logger.setLevel(logging.ERROR)
        return lambda: logger.setLevel(before)
    theirs: Any = import_module(f"{library}.utils.logging")
    level, shown = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()

    def undo() -> None:
        """Put the libraries' logging back."""
        theirs.set_verbosity(level)
        if shown:
            theirs.enable_progress_bar()

    return undo


def is_small(model: str) -> bool:
    """Whether a model is an embedded one, or was made from it."""
    from .domains import domain_of

    return model in ("tiny", DIGITS) or domain_of(Path(model)).original == "tiny"


def _threaded(threads: int) -> Callable[[], None]:
    """Give torch so many threads; what undoes it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    return lambda: torch.set_num_threads(before)
