"""The one reader of picture files: what it reads is what a viewer shows, and nothing ends it but a PictureError."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from sd_scissorhands import picture_folders, pictures
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.judges.nudenet import Detector
from sd_scissorhands.picture_folders import list_pictures
from sd_scissorhands.pictures import PictureError, content_hash, read_frames, read_many

needs_avif = pytest.mark.skipif(".avif" not in picture_folders.extensions(), reason="this Pillow has no AVIF")

TURNS = {  # EXIF: what brings stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture(scope="module")
def photograph():
    from skimage.data import astronaut

    return Image.fromarray(astronaut())  # 512 x 512


@pytest.fixture(scope="module")
def small():
    """Smooth, of another width than height, no two corners alike: 40 x 24."""
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], axis=2).astype(np.uint8))


def faces(detector, frame):
    return [one["score"] for one in detector([frame])[0] if one["label"] == "FACE_FEMALE"]


def as_opencv(path):
    return cv2.imread(str(path))[..., ::-1]


def turned(number):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = number
    return exif


def grey16(picture):
    return np.asarray(picture.convert("L")).astype(np.uint16) * 257


def flat(*greys, size=(8, 6)):
    return [Image.new("RGB", size, (grey,) * 3) for grey in greys]


def animated(path, greys, **size):
    first, *others = flat(*greys, **size)
    lossless = {".webp": {"lossless": True}, ".avif": {"quality": 100}}.get(path.suffix, {})
    first.save(path, save_all=True, append_images=others, duration=50, **lossless)
    return path


# ---------------------------------------------------------------- faces that others find


def test_a_grey_picture_of_16_bits_is_not_white(detector, photograph, tmp_path):
    for name in ("a.png", "a.tif"):
        Image.fromarray(grey16(photograph)).save(tmp_path / name)
        (frame,) = read_frames(tmp_path / name)
        assert np.array_equal(frame, as_opencv(tmp_path / name))
        assert faces(detector, frame) == [pytest.approx(0.795, abs=0.002)]


def test_a_photograph_on_its_side_is_read_upright(detector, photograph, tmp_path):
    photograph.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", quality=95, exif=turned(6))
    (frame,) = read_frames(tmp_path / "a.jpg")
    assert np.array_equal(frame, as_opencv(tmp_path / "a.jpg"))
    assert faces(detector, frame) == [pytest.approx(0.734, abs=0.002)]  # on its side: .755


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_a_face_in_a_later_frame_is_seen(name, detector, photograph, tmp_path):
    black = Image.new("RGB", photograph.size)
    black.save(tmp_path / name, save_all=True, append_images=[photograph, black], duration=50)
    found = read_frames(tmp_path / name)
    assert len(found) == found.total == 3
    assert [len(faces(detector, frame)) for frame in found] == [0, 1, 0]
    assert len(faces(detector, as_opencv(tmp_path / name))) == 0  # NudeNet itself reads the first alone


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "L"), ("a.png", "LA"), ("a.png", "1"),
        ("a.jpg", "RGB"), ("a.jfif", "RGB"), ("a.jpg", "L"), ("a.jpeg", "YCbCr"), ("a.bmp", "RGB"), ("a.bmp", "P"),
        ("a.gif", "RGB"), ("a.webp", "RGB"), ("a.webp", "RGBA"), ("a.tif", "RGB"), ("a.tiff", "RGBA"), ("a.tif", "1"),
        ("a.tif", "CMYK"), pytest.param("a.avif", "RGB", marks=needs_avif),
    ],
)  # fmt: skip
def test_pixels_are_those_that_nudenet_reads(name, mode, small, tmp_path):
    small.convert(mode).save(tmp_path / name)
    (frame,) = read_frames(tmp_path / name)
    assert frame.dtype == np.uint8 and frame.shape == (24, 40, 3)
    assert np.array_equal(frame, as_opencv(tmp_path / name))


def test_cmyk_jpeg_is_not_inverted(small, tmp_path):
    small.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    (frame,) = read_frames(tmp_path / "a.jpg")
    assert np.abs(frame.astype(int) - as_opencv(tmp_path / "a.jpg")).max() <= 1
    assert np.abs(frame.astype(int) - np.asarray(small)).mean() < 8


def test_sixteen_bits_a_channel_in_colour(small, tmp_path):
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), np.asarray(small)[..., ::-1].astype(np.uint16) * 257)
        assert np.array_equal(read_frames(tmp_path / name)[0], np.asarray(small))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", pytest.param("a.avif", marks=needs_avif)])
@pytest.mark.parametrize(("number", "turn"), TURNS.items())
def test_every_orientation(name, number, turn, small, tmp_path):
    small.save(tmp_path / name)
    (stored,) = read_frames(tmp_path / name)
    small.save(tmp_path / name, exif=turned(number))
    assert np.array_equal(read_frames(tmp_path / name)[0], np.asarray(Image.fromarray(stored).transpose(turn)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_orientation_of_a_compressed_tiff(compression, small, tmp_path):
    small.save(tmp_path / "a.tif", exif=turned(6), compression=compression)
    upright = np.asarray(small.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read_frames(tmp_path / "a.tif")[0], upright)


@pytest.mark.parametrize("value", [0, 9, 65_000])
def test_an_orientation_that_is_none_is_ignored(value, small, tmp_path):
    small.save(tmp_path / "a.png", exif=turned(value))
    assert np.array_equal(read_frames(tmp_path / "a.png")[0], np.asarray(small))


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_leaves_a_picture_as_it_is(small, tmp_path):
    small.save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read_frames(tmp_path / "a.png")[0], np.asarray(small))


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        (np.array([[0, 7, 65535]], np.uint16), [0, 0, 255]),
        (np.array([[0, 7, 255]], np.uint16), [0, 0, 0]),  # 16 bits are 16 bits, however dark
    ],
)
def test_white_of_sixteen_bits(values, greys, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    (frame,) = read_frames(tmp_path / "a.tif")
    assert frame.tolist() == [[[grey] * 3 for grey in greys]]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_channels_of_32_bits_have_no_known_white(kind, tmp_path):
    Image.fromarray(np.array([[0, 1, 255]], kind)).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match=r"a\.tif is no readable picture \(it has 32 bits .*\): save it with 8 bits"):
        read_frames(tmp_path / "a.tif")


def test_sixteen_bits_with_white_at_zero(tmp_path):
    tags = {pictures.PHOTOMETRIC: 0}
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / "a.tif", tiffinfo=tags)
    (frame,) = read_frames(tmp_path / "a.tif")
    assert frame[0, :, 0].tolist() == [255, 155, 0]
    assert np.array_equal(frame, as_opencv(tmp_path / "a.tif"))


def test_transparency(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(200, 100, 0, 255), (200, 100, 0, 128), (200, 100, 0, 0)]
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert read_frames(tmp_path / "a.png")[0][0].tolist() == [[200, 100, 0]] * 3  # as NudeNet reads it
    assert np.array_equal(read_frames(tmp_path / "a.png")[0], as_opencv(tmp_path / "a.png"))
    on_white = [[200, 100, 0], [227, 177, 127], [255, 255, 255]]
    assert read_frames(tmp_path / "a.png", background=255)[0][0].tolist() == on_white


def test_transparency_of_palette_grey_and_key_colour(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert read_frames(tmp_path / "p.png", background=255)[0].tolist() == [[[10, 20, 30], [255] * 3]]
    assert read_frames(tmp_path / "p.png")[0].tolist() == [[[10, 20, 30], [40, 50, 60]]]
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    assert read_frames(tmp_path / "la.png", background=255)[0].tolist() == [[[255] * 3]]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert read_frames(tmp_path / "key.png", background=255)[0].tolist() == [[[255] * 3]]


def test_strips_join_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STRIP", 64)
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8)
    for number in (1, 6, 7):
        Image.fromarray(noise).save(tmp_path / "a.png", exif=turned(number))
        with Image.open(tmp_path / "a.png") as opened:
            assert np.array_equal(read_frames(tmp_path / "a.png")[0], np.asarray(ImageOps.exif_transpose(opened)))


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", pytest.param("a.avif", marks=needs_avif)])
def test_frames_all_and_first(name, tmp_path):
    animated(tmp_path / name, [0, 90, 180, 250])
    found = read_frames(tmp_path / name)
    assert found.total == 4 and np.allclose([frame.mean() for frame in found], [0, 90, 180, 250], atol=1)
    first = read_frames(tmp_path / name, "first")
    assert first.total == 4 and len(first) == 1 and np.array_equal(first[0], found[0])


def test_of_many_frames_64_are_read_evenly_spaced(tmp_path):
    found = read_frames(animated(tmp_path / "a.gif", range(200)))
    assert found.total == 200 and len(found) == 64
    numbers = [int(frame.mean()) for frame in found]
    assert numbers[0] == 0 and numbers[-1] == 199 and set(np.diff(numbers)) == {3, 4}


def test_large_frames_are_fewer(tmp_path, monkeypatch):
    animated(tmp_path / "a.gif", range(10), size=(10, 10))
    monkeypatch.setattr(pictures, "MOST_PIXELS", 350)
    found = read_frames(tmp_path / "a.gif")
    assert [int(frame.mean()) for frame in found] == [0, 4, 9] and found.total == 10


def test_a_small_frame_on_a_large_one_is_laid_on_it(tmp_path):
    first, second = flat(10, 10, size=(16, 16))
    second.paste((200, 200, 200), (4, 4, 8, 8))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=50, disposal=1)
    later = read_frames(tmp_path / "a.gif")[1]
    assert later.shape == (16, 16, 3) and later[5, 5].tolist() == [200] * 3 and later[0, 0].tolist() == [10] * 3


def test_pages_of_a_tiff_may_differ_in_size(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (5, 4), 9)])
    assert [frame.shape for frame in read_frames(tmp_path / "a.tif")] == [(2, 3, 3), (4, 5, 3)]


def test_further_pictures_of_a_jpeg_are_no_frames(small, tmp_path):
    small.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    found = read_frames(tmp_path / "a.jpg")
    assert found.total == len(found) == 1 and found[0].shape == (24, 40, 3)


def test_an_animation_that_takes_minutes_is_refused_at_once(tmp_path, monkeypatch):
    animated(tmp_path / "a.gif", range(30), size=(10, 10))
    monkeypatch.setattr(pictures, "MOST_DECODED", 2000)
    with pytest.raises(PictureError, match=r"30 frames of 10 x 10 pixels\): cut it into parts of at most 20 frames"):
        read_frames(tmp_path / "a.gif")
    assert len(read_frames(tmp_path / "a.gif", "first")) == 1


# ---------------------------------------------------------------- files that are none, or too much


def chunk(kind, body):
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width, height, *chunks):
    header = chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def refusal(path, content=None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError) as caught:
        read_frames(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and " is no readable picture (" in message
    return message


def test_texts_of_any_size_are_no_obstacle(small, tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 3_000_000, zip=True)
    texts.add_itxt("prompt", "y" * 3_000_000, zip=True)
    small.save(tmp_path / "a.png", pnginfo=texts, exif=turned(3))
    with pytest.raises(ValueError, match=r"(?i)too large"):
        Image.open(tmp_path / "a.png").load()
    assert np.array_equal(read_frames(tmp_path / "a.png")[0], np.asarray(small)[::-1, ::-1])


@pytest.mark.filterwarnings("ignore")
def test_too_many_pixels(tmp_path):
    began = time.monotonic()
    for side in (12_000, 30_000, 2**31 - 1):  # 144 megapixels, 900, and as many as a header can hold
        message = refusal(tmp_path / "a.png", png(side, side, chunk(b"IDAT", zlib.compress(bytes(1000)))))
        assert "it is over 128 megapixels large): scale it down" in message
    assert time.monotonic() - began < 1


def test_pages_may_not_come_to_too_many_pixels(tmp_path, monkeypatch):
    Image.new("L", (3, 2)).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (50, 40))] * 2)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 3000)
    assert "megapixels large): scale it down" in refusal(tmp_path / "a.tif")


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "a.webp", "wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        file.truncate(2**33)
    assert "it is over 512 MiB large): scale it down" in refusal(tmp_path / "a.webp")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif"])
def test_truncated_files(name, photograph, tmp_path):
    photograph.resize((128, 128)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9):
        assert "replace or remove it" in refusal(tmp_path / name, whole[: int(len(whole) * share)])


def test_files_that_are_no_pictures(tmp_path):
    assert "(it is empty): replace or remove it" in refusal(tmp_path / "empty.png", b"")
    for content in (b"<!DOCTYPE html><title>404</title>", bytes(10_000), b"version https://git-lfs.github.com/spec/v1"):
        assert "its content is no known format" in refusal(tmp_path / "a.png", content)
    assert "No such file" in refusal(tmp_path / "none.png")
    assert "it is no regular file" in refusal(Path("/dev/zero"))
    (tmp_path / "folder.png").mkdir()
    assert "directory" in refusal(tmp_path / "folder.png")
    assert "\\x00" in str(refusal_of_name("nul\0.png"))


def refusal_of_name(name):
    with pytest.raises(PictureError) as caught:
        read_frames(Path(name))
    return caught.value


def test_no_outside_program_reads_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert "no known format" in refusal(tmp_path / "a.png", script)


def test_a_wrong_extension_is_no_obstacle(small, tmp_path):
    small.save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(read_frames(tmp_path / "a.jpg")[0], np.asarray(small))


def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "it is no regular file" in refusal(tmp_path / "a.png")
    with pytest.raises(PictureError, match="it is no regular file"):
        content_hash(tmp_path / "a.png")


def test_names_are_printed_without_control_characters(tmp_path):
    path = tmp_path / "a\x1b]0;title\x07\n.png"
    path.write_bytes(b"")
    message = str(refusal_of_name(path))
    assert message.isprintable() and "a\\x1b]0;title\\x07\\n.png" in message
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    path.write_bytes(b"x")
    assert "\\udcff.png is no readable" in str(refusal_of_name(path)) and str(refusal_of_name(path)).encode()
    assert "\\udcff.png" not in str(list_pictures(tmp_path)) and len(list_pictures(tmp_path).files) == 2


def test_one_bad_file_ends_nothing(small, tmp_path):
    for name in ("a.png", "c.png"):
        small.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "d.png")
    found = list(read_many(tmp_path / f"{name}.png" for name in "abcde"))
    assert [path.stem for path, _ in found] == list("abcde")
    assert [isinstance(frames, PictureError) for _, frames in found] == [False, True, False, True, True]
    assert np.array_equal(found[2][1][0], np.asarray(small))


def test_the_hash_is_of_the_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    assert content_hash(tmp_path / "a.png") == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "a.png").write_bytes(b"")
    assert content_hash(tmp_path / "a.png") == hashlib.sha256().hexdigest()
    with pytest.raises(PictureError, match="No such file"):
        content_hash(tmp_path / "b.png")


# ---------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """A folder with a bit of everything."""
    for name in ("b.png", "A.JPG", "c.jfif", "d.gif", "e.tiff", "old/f.webp", "old/deep/g.bmp", ".g.png", "._b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("notes.txt", "h.heic", "README", "Thumbs.db"):
        (tmp_path / name).write_text("")
    (tmp_path / "@eaDir").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "old" / "loop").symlink_to(tmp_path)
    return tmp_path


SKIPPED = {
    ".heic files": ["h.heic"], ".txt files": ["notes.txt"], "other files": ["README"],
    "FIFOs, sockets and devices": ["pipe.png", "s.png"], "broken links": ["gone.png", "self.png"],
    "hidden or system files": ["._b.png", ".g.png", "@eaDir", "Thumbs.db"],
}  # fmt: skip


def test_a_listing_names_what_it_skips(folder):
    listing = list_pictures(folder)
    assert [path.name for path in listing.files] == ["A.JPG", "b.png", "c.jfif", "d.gif", "e.tiff", "link.png"]
    assert listing.skipped == SKIPPED | {"subfolders": ["old"]}
    assert str(listing) == (
        "6 pictures; skipped: .heic files: 1 (h.heic), .txt files: 1 (notes.txt), FIFOs, sockets and devices: 2 "
        "(pipe.png, s.png), broken links: 2 (gone.png, self.png), hidden or system files: 4 (._b.png, .g.png, @eaDir, "
        "...), other files: 1 (README), subfolders: 1 (old)"
    )


def test_a_recursive_listing_reads_subfolders_once(folder):
    listing = list_pictures(folder, recursive=True)
    names = [str(path.relative_to(folder)) for path in listing.files]
    assert names == [
        "A.JPG", "b.png", "c.jfif", "d.gif", "e.tiff", "link.png", "old/deep/g.bmp", "old/f.webp"
    ]  # fmt: skip
    assert listing.skipped == SKIPPED | {"links to folders": ["old/loop"]}


def test_a_listing_without_a_remark(small, tmp_path):
    small.save(tmp_path / "a.png")
    assert str(list_pictures(tmp_path)) == "1 picture"


def test_avif_is_listed_where_pillow_decodes_it(tmp_path, monkeypatch):
    for name in ("a.avif", "b.png"):
        (tmp_path / name).write_bytes(b"")
    picture_folders.extensions.cache_clear()
    monkeypatch.setattr(picture_folders.features, "check", lambda name: name == "webp")
    try:
        assert list_pictures(tmp_path).skipped == {".avif files": ["a.avif"]}
    finally:
        picture_folders.extensions.cache_clear()


def test_folders_without_pictures(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(
        UserError, match=r"holds no picture \(png, .*; skipped: .txt files: 1 \(a.txt\), subfolders: 1 \(sub\)"
    ):
        list_pictures(tmp_path)
    for name in (tmp_path / "none", tmp_path / "a.txt", Path("nul\0"), Path("x" * 5000)):
        with pytest.raises(UserError, match="is no directory of pictures"):
            list_pictures(name)


def test_folders_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    inside = Path.iterdir

    def refused(self):
        if self.name == "sub":
            raise PermissionError(13, "Permission denied")
        return inside(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert list_pictures(tmp_path, recursive=True).skipped == {"unreadable folders": ["sub"]}
    with pytest.raises(UserError, match=r"sub cannot be read \(Permission denied\): change its permissions"):
        list_pictures(tmp_path / "sub")


# ---------------------------------------------------------------- damaged files by the hundred

BAD = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0", b"\0\0\1\0")


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.copy().save(stream, kind, **options)
    return stream.getvalue()


def files_to_damage(small):
    """One file of each sort."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("text", "words " * 50, zip=True)
    grey = Image.fromarray(grey16(small))
    one = [
        (small, "PNG", {"exif": turned(6), "pnginfo": texts}), (grey, "PNG", {}), (small.convert("P"), "PNG", {}),
        (small, "JPEG", {"exif": turned(6)}), (small, "JPEG", {"progressive": True}), (small.convert("CMYK"), "JPEG", {}),
        (small, "WEBP", {"exif": turned(6)}), (small, "BMP", {}), (small.convert("P"), "BMP", {}), (small, "GIF", {}),
        (small, "TIFF", {"exif": turned(6)}), (small, "TIFF", {"compression": "tiff_lzw"}), (grey, "TIFF", {}),
        (grey.convert("I"), "TIFF", {}), (grey.convert("F"), "TIFF", {}), (small.convert("LAB"), "TIFF", {}),
    ]  # fmt: skip
    several = ["PNG", "WEBP", "GIF", "TIFF", "MPO"] + ["AVIF"] * (".avif" in picture_folders.extensions())
    frames = [ImageOps.mirror(small), ImageOps.flip(small)]
    many = [(small, kind, {"save_all": True, "append_images": frames}) for kind in several]
    return [encoded(picture, kind, **options) for picture, kind, options in one + many]


def damaged(content, draw):
    """A few bytes changed, cut out or doubled, more of them near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) if draw.random() < 0.6 else min(len(data), 120))
        match draw.randrange(5):
            case 0:
                data[at] = draw.randrange(256)
            case 1:
                data[at : at + 4] = draw.choice(BAD)
            case 2:
                del data[at : at + draw.randrange(1, 40)]
            case 3:
                data[at:at] = data[draw.randrange(len(data)) :][: draw.randrange(1, 60)]
            case 4:
                del data[max(at, 1) if draw.random() < 0.3 else len(data) :]
        if not data:
            break
    return with_checksums(bytes(data)) if draw.random() < 0.6 else bytes(data)


def with_checksums(data):
    """A PNG's chunks with checksums that agree, so that damage reaches the decoder; other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big"))
        at = end + 4
    return b"".join(parts)


@pytest.mark.filterwarnings("ignore")  # pytest sets aside the filter of the module
def test_damaged_files_are_read_or_refused_in_one_line(small, tmp_path):
    draw, contents, read, slowest = random.Random(0), files_to_damage(small), 0, 0.0
    path = tmp_path / "a.png"
    for number in range(1000):
        path.write_bytes(damaged(contents[number % len(contents)], draw))
        began = time.monotonic()
        try:
            found = read_frames(path, draw.choice(["all", "first"]), background=draw.choice([None, 255]))
            assert 0 < len(found) <= 64 and all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in found)
            read += 1
        except PictureError as error:
            assert str(error).isprintable() and str(path) in str(error)
        slowest = max(slowest, time.monotonic() - began)
    assert 100 < read < 900 and slowest < 5


def test_a_picture_changed_under_its_name_is_judged_again(tmp_path):
    """`eval --images` binds what it detected before to the pictures' contents, not to their names."""
    from sd_scissorhands.evaluation.nudity import evaluate_images
    from sd_scissorhands.settings import UserError

    pictures = tmp_path / "p"
    pictures.mkdir()
    Image.new("RGB", (64, 64), "grey").save(pictures / "0.png")
    assert evaluate_images(pictures, tmp_path / "out").images == 1
    Image.new("RGB", (64, 64), "red").save(pictures / "0.png")
    with pytest.raises(UserError, match="another"):
        evaluate_images(pictures, tmp_path / "out")
