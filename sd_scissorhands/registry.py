"""A registry for each kind of thing that people add: objectives, retain losses, scorers, edits, metrics, judges, attacks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from .errors import UsageError
from .parsing import choose

T = TypeVar("T")


class Registry(Generic[T]):
    """Declarations of one kind by name: one file each in a folder of the package, and whatever other code adds.

    The file of `random-label` is `random_label.py`; it calls `add` when it is imported. Names are listed without importing
    any file, so that `--help` stays fast. To add one from outside the package, call `add` before the command line runs.
    """

    def __init__(
        self, noun: str, package: str, folder: Path, *, not_declarations: tuple[str, ...] = (), several: bool = False
    ):
        """`noun` names the kind in messages; `package` and `folder` are the Python name and the directory of its files.

        Args:
            not_declarations: files of the folder that declare nothing.
            several: a file may declare several, under any names. Then names stand in the order of the declarations, and
                to list them imports the files, which may import nothing heavy themselves.
        """
        self.noun, self._package, self._folder, self._others = noun, package, folder, not_declarations
        self._several = several
        self._added: dict[str, T] = {}

    def add(self, name: str, declaration: T) -> T:
        """Register a declaration under a name that no other has.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._added:
            raise ValueError(f"two declarations of the {self.noun} {name!r}")
        self._added[name] = declaration
        return declaration

    def names(self) -> tuple[str, ...]:
        """All names, sorted; imports nothing, unless a file may declare several."""
        if self._several:
            for stem in sorted(self._files):
                importlib.import_module(f"{self._package}.{stem}")
            return tuple(self._added)
        return tuple(sorted({*(stem.replace("_", "-") for stem in self._files), *self._added}))

    @cached_property
    def _files(self) -> frozenset[str]:
        """Stems of the files that declare something."""
        return frozenset(file.stem for file in self._folder.glob("[a-z]*.py")) - set(self._others)

    def may_declare(self, setting: str) -> bool:
        """Whether a file of the folder, or what other code has added, may declare a setting of this name; imports nothing."""
        return bool(self._added) or any(setting in file.read_text() for file in self._folder.glob("[a-z]*.py"))

    def __contains__(self, name: object) -> bool:
        return name in self._added or name in self.names()

    def __getitem__(self, name: str) -> T:
        """The declaration of a name.

        Raises:
            UsageError: there is none; the message lists the names and the nearest one.
        """
        if name not in self._added:
            if name not in self.names():
                raise UsageError(f"unknown {self.noun} {name!r}{choose(name, self.names())}")
            importlib.import_module(f"{self._package}.{name.replace('-', '_')}")
        return self._added[name]

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """(name, declaration) of all, by name; imports their files."""
        return ((name, self[name]) for name in self.names())
