"""Picture files of a folder, and a word on everything else that lies there."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import features

from .errors import UserError, printable
from .files import fault

EXTENSIONS = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # what systems leave in folders
PICTURE, FOLDER = "pictures", "subfolders"  # kinds of what a folder holds


@dataclass(frozen=True)
class Listing:
    """Picture files of a folder, ordered by name, and what else it holds."""

    files: tuple[Path, ...]
    skipped: dict[str, list[str]]  # reason -> names inside the folder

    def remarks(self, where: str) -> list[str]:
        """What a user must know of it: nothing where nothing was skipped."""
        return [f"{where}: {self}"] if self.skipped else []

    def __str__(self) -> str:
        """One sentence for the user: `2 pictures; skipped: .txt files: 1 (notes.txt), subfolders: 1 (old)`."""
        found = f"{len(self.files):,} picture{'s' * (len(self.files) != 1)}"
        return f"{found}; skipped: {self.reasons}" if self.skipped else found

    @property
    def reasons(self) -> str:
        """What was skipped and why, with three names of each kind."""
        return ", ".join(f"{reason}: {named(names)}" for reason, names in sorted(self.skipped.items()))


def named(names: Sequence[str]) -> str:
    """How many there are and the first three: `4 (a, b, c, ...)`."""
    return f"{len(names):,} ({', '.join(map(printable, names[:3]))}{', ...' * (len(names) > 3)})"


def list_pictures(folder: Path, recursive: bool = False) -> Listing:
    """List the picture files of a folder as `look_through` does.

    Raises:
        UserError: no such folder, one that cannot be read, or no picture in it.
    """
    listing = look_through(folder, recursive)
    if not listing.files:
        known = ", ".join(extension[1:] for extension in extensions())
        reasons = f"; skipped: {listing.reasons}" if listing.skipped else ""
        raise UserError(f"{printable(folder)} holds no picture ({known}{reasons}): name a folder that does")
    return listing


def look_through(folder: Path, recursive: bool = False) -> Listing:
    """Sort the files of a folder into pictures and others by their extension, without opening any; there may be none.

    Links to files are followed, links to folders are not.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{printable(folder)} is no directory of pictures: name one")
    found: dict[str, list[Path]] = {}
    todo = [folder]
    while todo:
        inside = todo.pop()
        try:
            entries = list(inside.iterdir())
        except OSError as error:
            if inside == folder:
                why = fault(error)
                raise UserError(f"{printable(folder)} cannot be read ({why}): change its permissions") from None
            found.setdefault("unreadable folders", []).append(inside)
            continue
        for path in entries:
            kind = _kind(path)
            (todo if kind == FOLDER and recursive else found.setdefault(kind, [])).append(path)
    files = sorted(found.pop(PICTURE, []), key=lambda path: path.relative_to(folder).parts)
    skipped = {kind: sorted(str(path.relative_to(folder)) for path in paths) for kind, paths in found.items()}
    return Listing(tuple(files), skipped)


def _kind(path: Path) -> str:
    """What a path in a folder is: `PICTURE`, `FOLDER`, or why it is skipped."""
    if path.name.startswith(".") or path.name.lower() in SYSTEM:
        return "hidden or system files"
    try:
        mode = path.stat().st_mode
    except OSError:
        return "broken links" if path.is_symlink() else "unreadable files"
    if stat.S_ISDIR(mode):
        return "links to folders" if path.is_symlink() else FOLDER
    if not stat.S_ISREG(mode):
        return "FIFOs, sockets and devices"
    extension = path.suffix.lower()
    return PICTURE if extension in extensions() else f"{printable(extension)} files" if extension else "other files"


@cache
def extensions() -> tuple[str, ...]:
    """Extensions of picture files that this Pillow can decode: AVIF from 11.3 on, WebP where it was built in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow does not know the name
        lacking = tuple(f".{name}" for name in ("avif", "webp") if not features.check(name))
    return tuple(extension for extension in EXTENSIONS if extension not in lacking)
