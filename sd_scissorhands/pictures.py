"""Picture files of any common format, read as a viewer shows them: the one reader of every command.

The pixels are those of NudeNet's own reader (OpenCV's imread), with these departures: every frame of an animation and
every page of a TIFF is read, not the first alone; AVIF is turned as its EXIF orders, as other formats are. Colour profiles
are ignored, as there, and 32 bits a channel refused, which have no agreed white.
A file is opened by its content, not by its name, and only by the decoders of `FORMATS`: Pillow would hand others to
programs outside (EPS to Ghostscript).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageFilter

from .errors import UserError, printable, reason
from .files import hash_file, open_file
from .picture_folders import named

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
Which = Literal["all", "first"]  # frames of a file

MOST_FRAMES = 64  # of one file, evenly spaced
MOST_PIXELS = 128_000_000  # of one file's frames together; one of this size takes 1 GB while it is read
MOST_BUFFERED = MOST_PIXELS // 2  # of one frame where the decoder holds several
MOST_DECODED = 16 * MOST_PIXELS  # of an animation, whose frames are decoded one after the other: a minute or two
MOST_BYTES = 2**29  # of a file: decoders of WebP, AVIF and GIF read it whole
STRIP = 2**20  # pixels that are converted at a time

REPLACE, SMALLER, EIGHT_BITS = "replace or remove it", "scale it down", "save it with 8 bits a channel"
ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262  # tags of TIFF and EXIF
TURNS = {2: "x", 3: "xy", 4: "y", 5: "t", 6: "xt", 7: "xyt", 8: "yt"}  # by orientation: what turns back a shown picture

Image.init()  # fills Image.OPEN
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's remarks on odd files; what matters is raised here


class PictureError(UserError):
    """A file that cannot be read as a picture; one line with its name, the reason and the remedy."""

    def __init__(self, path: Path, reason: str, remedy: str = REPLACE):
        self.path = path
        super().__init__(f"{printable(path)} is no readable picture ({reason}): {remedy}")


class Frames(list[np.ndarray]):
    """Frames read from a file, each (h, w, 3) uint8 RGB; `total` is how many the file holds."""

    def __init__(self, frames: Iterable[np.ndarray], total: int):
        super().__init__(frames)
        self.total = total


def read_many(paths: Iterable[Path], frames: Which = "all") -> Iterator[tuple[Path, Frames | PictureError]]:
    """Read one file after another; in place of one that cannot be read comes its error, and the next ones follow."""
    for path in paths:
        try:
            yield path, read_frames(path, frames)
        except PictureError as error:
            yield path, error


def read_frames(path: Path, frames: Which = "all", *, background: int | None = None) -> Frames:
    """Read a picture file as a viewer shows it: (h, w, 3) uint8 RGB for each frame of an animation or page of a TIFF.

    EXIF rotation is applied. Of 16-bit channels the high byte counts, as in OpenCV. A JPEG's further pictures (MPO: depth,
    gain map, the other eye) are no frames. A PNG's texts are skipped where Pillow refuses their size.

    Args:
        frames: "all": at most `MOST_FRAMES`, fewer where they would come to over `MOST_PIXELS`, evenly spaced from the
            first to the last.
        background: grey on which transparent pixels are laid, 255 for white. None: transparency is ignored, as by
            OpenCV (so NudeNet) and PIL's convert("RGB") (so CLIP and FID), and colours hidden in it are judged.

    Raises:
        PictureError: no regular file, empty, damaged, truncated, no picture, too large, or of 32 bits a channel.
    """
    try:
        with open_file(path) as file:
            if not (size := os.fstat(file.fileno()).st_size):
                raise PictureError(path, "it is empty")
            if size > MOST_BYTES:
                raise PictureError(path, f"it is over {MOST_BYTES >> 20} MiB large", SMALLER)
            try:
                return _decode(file, path, frames, background)
            except ValueError:  # Pillow's, for a text of over 1 MB in a PNG
                if (bare := _without_texts(file)) is None:
                    raise
            return _decode(bare, path, frames, background)
    except PictureError:
        raise
    except (MemoryError, Image.DecompressionBombError):  # Pillow's limit is above ours
        raise PictureError(path, f"it is over {MOST_PIXELS // 10**6} megapixels large", SMALLER) from None
    except Image.UnidentifiedImageError:
        raise PictureError(path, "its content is no known format, or its beginning is damaged") from None
    except Exception as error:  # decoders raise SyntaxError, struct.error, EOFError, KeyError, OverflowError and others
        raise PictureError(path, reason(error)) from None


def refuse_unreadable(where: str, errors: Sequence[PictureError]) -> None:
    """Refuse a folder for all of its pictures that cannot be read, at once.

    Raises:
        UserError: there are any.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        names = named([error.path.name for error in errors])
        raise UserError(f"{where} holds pictures that cannot be read, {names}; the first: {errors[0]}")


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        return hash_file(path)
    except (OSError, ValueError) as error:
        raise PictureError(path, reason(error)) from None


def centre_square(picture: np.ndarray, size: int | None = None) -> np.ndarray:
    """A picture's largest centred square, resized (Lanczos) where a size is given: (s, s, 3) uint8."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    square = picture[top : top + side, left : left + side]
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS)) if size else square


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
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        total = getattr(image, "n_frames", 1) if image.format not in ("JPEG", "MPO") else 1
        found, pixels, animated = Frames([], total), 0, total > 1 and image.format != "TIFF"  # each frame on the last
        for number in [0] if frames == "first" else _chosen(image, path, total, animated):
            image.seek(number)
            pixels += image.width * image.height
            most = MOST_BUFFERED if animated or image.format in ("WEBP", "AVIF") else MOST_PIXELS
            if image.width * image.height > most or pixels > MOST_PIXELS:
                raise PictureError(path, f"it is over {most // 10**6} megapixels large", SMALLER)
            if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
                raise PictureError(path, "it has 32 bits a channel, and nothing says what is white", EIGHT_BITS)
            image.load()
            found.append(_pixels(image, background))
    return found


def _chosen(image: Image.Image, path: Path, total: int, animated: bool) -> list[int]:
    """Numbers of the frames to be read, ascending."""
    area = image.width * image.height
    if animated and total * area > MOST_DECODED:
        reason = f"it has {total:,} frames of {image.width} x {image.height} pixels"
        raise PictureError(path, reason, f"cut it into parts of at most {MOST_DECODED // area:,} frames")
    count = max(1, min(total, MOST_FRAMES, MOST_PIXELS // area))
    return [int(number) for number in np.linspace(0, total - 1, count).round()]


def _pixels(image: Image.Image, background: int | None) -> np.ndarray:
    """The current frame, upright: (h, w, 3) uint8. Converted in strips, so that memory holds it only twice."""
    turn = _orientation(image)
    height, width = (image.width, image.height) if turn >= 5 else (image.height, image.width)
    shown = np.empty((height, width, 3), np.uint8)
    stored = shown  # a view of it, as the file has the pixels
    for step in TURNS.get(turn, ""):
        stored = stored.swapaxes(0, 1) if step == "t" else stored[::-1] if step == "y" else stored[:, ::-1]
    lines = max(1, STRIP // image.width)
    for top in range(0, image.height, lines):
        strip = image.crop((0, top, image.width, min(top + lines, image.height)))
        stored[top : top + lines] = _grey(strip, image) if image.mode[0] == "I" else _rgb(strip, background)
    return shown


def _orientation(image: Image.Image) -> int:
    """How the loaded frame is to be turned, 1 to 8; 1 where its EXIF cannot be read, as viewers have it."""
    try:
        turn = (
            image.getexif().get(ORIENTATION) if image.format != "TIFF" else None
        )  # Pillow turns those as it loads them
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


def _grey(strip: Image.Image, image: Image.Image) -> np.ndarray:
    """A strip of one channel of 16 bits (a TIFF's may be 12) by its highest eight: (h, w, 3) uint8."""
    tags = getattr(image, "tag_v2", {})
    grey = (np.asarray(strip) >> (4 if tags.get(BITS) == (12,) else 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def blurred(image: Image.Image) -> Image.Image:
    """A picture behind a Gaussian blur of an eighth of its longer side, for what may be explicit."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))
