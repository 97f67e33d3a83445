"""Picture files of any common format, read as a viewer shows them: the one reader of every command.

The pixels are those of NudeNet's own reader (OpenCV's imread), with these departures: every frame of an animation and
every page of a TIFF is read, not the first alone; 32-bit integers and floats, which OpenCV refuses, are scaled where it
is clear what white is; AVIF is turned as its EXIF orders, as other formats are. Colour profiles are ignored, as there.
A file is opened by its content, not by its name, and only by the decoders of `FORMATS`: Pillow would hand others to
programs outside (EPS to Ghostscript).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, features

from .errors import UserError, printable

EXTENSIONS = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # what systems leave in folders
PICTURE, FOLDER = "pictures", "subfolders"  # kinds of what a folder holds

MOST_FRAMES = 64  # of one file, evenly spaced
MOST_PIXELS = 128_000_000  # of one file's frames together; one of this size takes 1 GB while it is read
MOST_BUFFERED = MOST_PIXELS // 2  # of one frame where the decoder holds several
MOST_DECODED = 16 * MOST_PIXELS  # of an animation, whose frames are decoded one after the other: a minute or two
MOST_BYTES = 2**29  # of a file: decoders of WebP, AVIF and GIF read it whole
STRIP = 2**20  # pixels that are converted at a time

REPLACE, SMALLER, EIGHT_BITS = "replace or remove it", "scale it down", "save it with 8 bits a channel"
ORIENTATION, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 274, 258, 262, 339  # tags of TIFF and EXIF
TURNS: dict[
    int, Callable[[np.ndarray], np.ndarray]
] = {  # by orientation: stored pixels (h, w, 3) to shown ones, a view
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's remarks on odd files; what matters is raised here


class PictureError(UserError):
    """A file that cannot be read as a picture; one line with its name, the reason and the remedy."""


class Frames(list[np.ndarray]):
    """Frames read from a file, each (h, w, 3) uint8 RGB; `total` is how many the file holds."""

    def __init__(self, frames: Iterable[np.ndarray], total: int):
        super().__init__(frames)
        self.total = total


@dataclass(frozen=True)
class Listing:
    """Picture files of a folder, ordered by name, and what else it holds."""

    files: tuple[Path, ...]
    skipped: dict[str, list[str]]  # reason -> names inside the folder

    def __str__(self) -> str:
        """One sentence for the user: `2 pictures; skipped: .txt files: 1 (notes.txt), subfolders: 1 (old)`."""
        found = f"{len(self.files):,} picture{'s' * (len(self.files) != 1)}"
        return f"{found}; skipped: {self.reasons}" if self.skipped else found

    @property
    def reasons(self) -> str:
        """What was skipped and why, with three names of each kind."""
        return ", ".join(
            f"{reason}: {len(names):,} ({', '.join(map(printable, names[:3]))}{', ...' * (len(names) > 3)})"
            for reason, names in sorted(self.skipped.items())
        )


# ---------------------------------------------------------------- folders


def list_pictures(folder: Path, recursive: bool = False) -> Listing:
    """List the picture files of a folder by their extension, without opening any.

    Links to files are followed, links to folders are not.

    Raises:
        UserError: no such folder, one that cannot be read, or no picture in it.
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
                raise UserError(
                    f"{printable(folder)} cannot be read ({_line(error)}): change its permissions"
                ) from None
            found.setdefault("unreadable folders", []).append(inside)
            continue
        for path in entries:
            kind = _kind(path)
            (todo if kind == FOLDER and recursive else found.setdefault(kind, [])).append(path)
    files = sorted(found.pop(PICTURE, []), key=lambda path: path.relative_to(folder).parts)
    skipped = {kind: sorted(str(path.relative_to(folder)) for path in paths) for kind, paths in found.items()}
    listing = Listing(tuple(files), skipped)
    if not files:
        known = ", ".join(extension[1:] for extension in extensions())
        reasons = f"; skipped: {listing.reasons}" if skipped else ""
        raise UserError(f"{printable(folder)} holds no picture ({known}{reasons}): name a folder that does")
    return listing


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


# ---------------------------------------------------------------- files


def read_many(
    paths: Iterable[Path], frames: Literal["all", "first"] = "all", *, background: int | None = None
) -> Iterator[tuple[Path, Frames | PictureError]]:
    """Read one file after another; in place of one that cannot be read comes its error, and the next ones follow."""
    for path in paths:
        try:
            yield path, read_frames(path, frames, background=background)
        except PictureError as error:
            yield path, error


def read_frames(path: Path, frames: Literal["all", "first"] = "all", *, background: int | None = None) -> Frames:
    """Read a picture file as a viewer shows it: (h, w, 3) uint8 RGB for each frame of an animation or page of a TIFF.

    EXIF rotation is applied. Of 16-bit channels the high byte counts, as in OpenCV. Integers of 32 bits and floats have
    no agreed white: it is the first of 1 (floats alone), 255, 65535 and 2^32 - 1 (integers alone) that is no smaller than
    any value. A JPEG's further pictures (MPO: depth, gain map, the other eye) are no frames. A PNG's texts are skipped
    where Pillow refuses their size.

    Args:
        frames: "all": at most `MOST_FRAMES`, fewer where they would come to over `MOST_PIXELS`, evenly spaced from the
            first to the last; some are left out where `Frames.total` is larger than the number of frames.
        background: grey on which transparent pixels are laid, 255 for white. None: transparency is ignored, as by
            OpenCV (so NudeNet) and PIL's convert("RGB") (so CLIP and FID): figures can be compared, and colours hidden
            in transparent pixels are judged.

    Raises:
        PictureError: no regular file, empty, damaged, truncated, no picture, too large, or without a known white.
    """
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise _unreadable(path, "it is empty")
            if size > MOST_BYTES:
                raise _unreadable(path, f"it is over {MOST_BYTES >> 20} MiB large", SMALLER)
            try:
                return _decode(file, path, frames, background)
            except ValueError:  # Pillow's, for a text of over 1 MB in a PNG
                if (bare := _without_texts(file)) is None:
                    raise
            return _decode(bare, path, frames, background)
    except PictureError:
        raise
    except MemoryError:
        raise _unreadable(path, "memory does not hold it", SMALLER) from None
    except Image.DecompressionBombError:  # Pillow's limit is above ours
        raise _unreadable(path, f"it is over {MOST_PIXELS // 10**6} megapixels large", SMALLER) from None
    except Image.UnidentifiedImageError:
        raise _unreadable(path, "its content is no known format, or its beginning is damaged") from None
    except Exception as error:  # decoders raise SyntaxError, struct.error, EOFError, KeyError, OverflowError and others
        raise _unreadable(path, _line(error)) from None


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        with _open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise _unreadable(path, _line(error)) from None


def _unreadable(path: Path, reason: str, remedy: str = REPLACE) -> PictureError:
    return PictureError(f"{printable(path)} is no readable picture ({reason}): {remedy}")


def _line(error: Exception) -> str:
    """The first line of an error."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(next(iter(reason.strip().splitlines()), type(error).__name__)[:200])


def _open(path: Path) -> io.BufferedReader:
    """A regular file; a FIFO, which would block until someone writes, is refused at once."""
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _unreadable(path, "it is no regular file")
    return file


def _without_texts(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its texts and colour profile; None for another format."""
    file.seek(0)
    if (signature := file.read(8)) != b"\x89PNG\r\n\x1a\n":
        return None
    chunks = [signature]
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big") + 4
        if head[4:] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            file.seek(length, os.SEEK_CUR)
        else:
            chunks += [head, file.read(length)]
    return io.BytesIO(b"".join(chunks))


# ---------------------------------------------------------------- decoding


def _decode(file: BinaryIO, path: Path, frames: str, background: int | None) -> Frames:
    """Frames of an open file; raises whatever Pillow does."""
    file.seek(0)
    with Image.open(file, formats=_formats()) as image:
        total = getattr(image, "n_frames", 1) if image.format not in ("JPEG", "MPO") else 1
        found, pixels = Frames([], total), 0
        for number in [0] if frames == "first" else _chosen(image, path, total):
            image.seek(number)
            pixels += image.width * image.height
            most = MOST_BUFFERED if _animated(image, total) or image.format in ("WEBP", "AVIF") else MOST_PIXELS
            if image.width * image.height > most or pixels > MOST_PIXELS:
                raise _unreadable(path, f"it is over {most // 10**6} megapixels large", SMALLER)
            image.load()
            found.append(_pixels(image, path, background))
    return found


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # another name is a KeyError in Image.open


def _animated(image: Image.Image, total: int) -> bool:
    """Whether frames build on one another."""
    return total > 1 and image.format != "TIFF"


def _chosen(image: Image.Image, path: Path, total: int) -> list[int]:
    """Numbers of the frames to be read, ascending."""
    area = image.width * image.height
    if _animated(image, total) and total * area > MOST_DECODED:
        reason = f"it has {total:,} frames of {image.width} x {image.height} pixels"
        raise _unreadable(path, reason, f"cut it into parts of at most {MOST_DECODED // area:,} frames")
    count = max(1, min(total, MOST_FRAMES, MOST_PIXELS // area))
    return [int(number) for number in np.linspace(0, total - 1, count).round()]


def _pixels(image: Image.Image, path: Path, background: int | None) -> np.ndarray:
    """The current frame, upright: (h, w, 3) uint8. Converted in strips, so that memory holds it only twice."""
    turn = _orientation(image)
    height, width = (image.width, image.height) if turn >= 5 else (image.height, image.width)
    shown = np.empty((height, width, 3), np.uint8)
    stored = TURNS[{6: 8, 8: 6}.get(turn, turn)](shown) if turn > 1 else shown
    convert = _grey(image, path) if image.mode[0] in "IF" else lambda strip: _rgb(strip, background)
    for top, strip in _strips(image):
        stored[top : top + strip.height] = convert(strip)
    return shown


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Parts of a picture from top to bottom, each with its first line's number."""
    lines = max(1, STRIP // image.width)
    for top in range(0, image.height, lines):
        yield top, image.crop((0, top, image.width, min(top + lines, image.height)))


def _orientation(image: Image.Image) -> int:
    """How the loaded frame is to be turned, 1 to 8; 1 where its EXIF cannot be read, as viewers have it."""
    if image.format == "TIFF":  # Pillow turns it while it loads it
        return 1
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as many kinds as there are ways to damage it
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def _rgb(strip: Image.Image, background: int | None) -> np.ndarray:
    """A strip of 8-bit channels, of a palette or of bits: (h, w, 3) uint8."""
    transparent = strip.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in strip.info
    if background is None or not transparent:
        return np.asarray(strip.convert("RGB"))
    pixels = np.asarray(strip.convert("RGBA")).astype(np.uint16)
    colour, opacity = pixels[..., :3], pixels[..., 3:]
    return ((colour * opacity + background * (255 - opacity) + 127) // 255).astype(np.uint8)


def _grey(image: Image.Image, path: Path) -> Callable[[Image.Image], np.ndarray]:
    """A function that brings strips of one channel of 16- or 32-bit integers or floats to (h, w, 3) uint8."""
    white, inverted = _white(image, path), _tag(image, PHOTOMETRIC) == 0  # then white is zero

    def convert(strip: Image.Image) -> np.ndarray:
        values = _values(strip, image)
        if image.mode == "F":
            grey = (np.clip(values / white, 0, 1) * 255).round().astype(np.uint8)
        else:
            grey = (values * (256 / (white + 1))).astype(np.uint8)  # the high byte
        return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)

    return convert


def _white(image: Image.Image, path: Path) -> float:
    """The value of white: by the number of bits where there are at most 16, above by the largest value."""
    if image.mode not in "IF" or image.format == "PNG":  # Pillow before 11 reads a PNG's 16 bits as 32
        return 4095 if _tag(image, BITS) == (12,) else 65535
    ends = [(values.min(), values.max()) for values in (_values(strip, image) for _, strip in _strips(image))]
    low, high = (float(end) for end in (np.min(ends), np.max(ends)))
    # Floats may overshoot by a tenth, as resampling does; where the largest is 1.1 to 16, white may be anything.
    whites, margin = ((1, 255, 65535), 0.1) if image.mode == "F" else ((255, 65535, 2**32 - 1), 0)
    white = next((white for white in whites if high <= white * (1 + margin) and low >= -white * margin), None)
    if white is None or (image.mode == "F" and white > 1 and high < 16):
        raise _unreadable(path, f"its values go from {low:g} to {high:g}, no known range", EIGHT_BITS)
    return white


def _values(strip: Image.Image, image: Image.Image) -> np.ndarray:
    """A strip's values as they are in the file: Pillow reads unsigned integers of 32 bits as signed ones."""
    values = np.asarray(strip)
    signed = _tag(image, SAMPLE_FORMAT) == (2,)
    return values.view(np.uint32) if values.dtype == np.int32 and not signed else values


def _tag(image: Image.Image, number: int) -> object:
    """A TIFF's tag; None for another format."""
    return getattr(image, "tag_v2", {}).get(number)
