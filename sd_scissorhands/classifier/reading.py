"""Reading pictures with labels: the embedded digits, image folders, .npz files, and lists of what is to be forgotten."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import open_file, read_text
from ..picture_folders import look_through, named
from ..pictures import PictureError, read_many, refuse_unreadable
from ..settings import UserError
from .data import UNSEEN, Dataset, Parts, class_number, divide, held_out

MOST_UNPACKED = 2**30  # bytes of the arrays of an .npz file, where they are packed into less than a hundredth
NPZ_PICTURES, NPZ_LABELS = ("pictures", "images", "x"), ("labels", "y")
Preprocess = Callable[[Image.Image], Tensor]


def digits() -> Parts:
    """scikit-learn's handwritten digits (Alpaydin and Kaynak 1998): 1797 pictures (1, 8, 8) in [0, 1], white on black.

    1257 are for training, 240 unseen, 300 for tests; always the same, every class in its share.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = torch.from_numpy(found.images / 16).float()[:, None]  # (1797, 1, 8, 8)
    labels = torch.from_numpy(found.target).long()
    return held_out(Dataset(pictures, labels, tuple(str(digit) for digit in range(10))), seed=0)


def read_folder(path: Path, classes: Sequence[str], preprocess: Preprocess, *, seed: int = 0) -> Parts:
    """Pictures of a folder, `train/CLASS/*.png` and so on, beside it `val/` and `test/` (or one of them).

    With `val/` and `test/` methods see the former and figures come from the latter; with one of them, it is divided.
    With neither (then `train/` itself may be left out, `CLASS/*.png`), all pictures are, 70 % for training. Training
    pictures are numbered in the order of class folder and file name. All stay in memory, as float32.

    Args:
        classes: the model's class names; a folder is named as one of them or with its number.

    Raises:
        UserError: no such folder, no picture, one that cannot be read, a class that the model has not, sizes that
        differ.
    """
    if not path.is_dir():
        raise UserError(f"--data {path} is no folder: name one with train/CLASS/*.png, or an .npz file")
    names = tuple(classes)
    present = {part: path / part for part in ("train", "val", "test") if (path / part).is_dir()} or {"train": path}
    if "train" not in present:
        raise UserError(f"--data {path} has {' and '.join(present)} but no train folder: add train/CLASS/*.png")
    found = {part: _read_part(folder, names, preprocess) for part, folder in present.items()}
    parts = _parts({part: data for part, (data, _) in found.items()}, seed)
    return dataclasses.replace(parts, remarks=tuple(one for _, remarks in found.values() for one in remarks))


def read_npz(
    path: Path, classes: Sequence[str] | None = None, preprocess: Preprocess | None = None, *, seed: int = 0
) -> Parts:
    """Pictures of an .npz file: arrays `pictures` (or `images`, `x`) and `labels` (or `y`), and held-out ones.

    Held-out pictures come as `val_pictures`, `val_labels`, `test_pictures`, `test_labels`; see `read_folder` for what
    is done where they are missing. Pictures are (N, h, w), (N, h, w, c) or (N, c, h, w) with c 1 or 3. uint8 pictures
    go through `preprocess` as those of a file do, or are divided by 255 where there is none; float pictures are the
    model's input as they are. Labels are the numbers of the model's classes. An array `names` may say what the classes
    are called.

    Args:
        classes: the model's class names; else `names`, else the numbers.

    Raises:
        UserError: unreadable or pickled, missing arrays, wrong shapes or types, NaN, labels that the model has not.
    """
    arrays = _arrays(path)
    prefixes = {"train": "", "val": "val_", "test": "test_"}
    present = {part: pre for part, pre in prefixes.items() if any(pre + name in arrays for name in NPZ_PICTURES)}
    if "train" not in present:
        raise UserError(f"--data {path} has no array {', '.join(NPZ_PICTURES)}: it has {', '.join(arrays) or 'none'}")
    own = tuple(str(name) for name in arrays["names"].ravel()) if "names" in arrays else None
    raw = {part: _raw(path, arrays, prefix) for part, prefix in present.items()}
    names = tuple(classes or own or [str(n) for n in range(max(int(labels.max()) for _, labels in raw.values()) + 1)])
    if own and own != names:
        raise UserError(
            f"--data {path}: its names are not the model's classes in the model's order: {', '.join(names[:10])}"
        )
    return _parts({part: _npz_part(path, *both, names, preprocess) for part, both in raw.items()}, seed)


def read_indices(path: Path) -> list[int]:
    """Numbers of training pictures, one a line; empty lines are skipped.

    Raises:
        UserError: unreadable, or a line that is no whole number.
    """
    numbers = []
    for line, text in enumerate(read_text(path, "--forget-indices").splitlines(), 1):
        try:
            numbers += [int(text)] if text.strip() else []
        except ValueError:
            raise UserError(
                f"--forget-indices {path}, line {line}: {text.strip()[:40]!r} is no whole number, write one a line"
            ) from None
    return numbers


def _read_part(folder: Path, names: tuple[str, ...], preprocess: Preprocess) -> tuple[Dataset, list[str]]:
    """The pictures of the class folders in a folder, and remarks on what else they hold."""
    labels, files, remarks = list[int](), list[Path](), list[str]()
    for inner in sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")):
        listing = look_through(inner, recursive=True)
        remarks += listing.remarks(f"--data {inner}")
        if listing.files:
            labels += [class_number(names, inner.name, f"--data {inner}")] * len(listing.files)
            files += listing.files
    if not files:
        raise UserError(f"--data {folder} holds no picture: put them in {folder.name}/CLASS/*.png, one folder a class")
    pictures, several = _read_files(folder, files, preprocess)
    if several:
        remarks.append(f"--data {folder}: of files with several frames the first is taken: {named(several)}")
    return _checked(folder, Dataset(pictures, torch.tensor(labels), names)), remarks


def _read_files(folder: Path, files: Sequence[Path], preprocess: Preprocess) -> tuple[Tensor, list[str]]:
    """Pictures as the model takes them, (N, c, h, w), and the names of files with more frames than the first."""
    pictures, errors, several = list[Tensor](), list[PictureError](), list[str]()
    for file, found in read_many(files, "first"):
        if isinstance(found, PictureError):
            errors.append(found)
            continue
        pictures.append(preprocess(Image.fromarray(found[0])))
        several += [file.name] * (found.total > 1)
        if pictures[-1].shape != pictures[0].shape:
            raise UserError(
                f"--data {file.parent}: pictures of different sizes after preprocessing: give the model a fixed size"
            )
    refuse_unreadable(f"--data {folder}", errors)
    return torch.stack(pictures), several


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"--data {path} does not exist: name an .npz file or an image folder")
    reason = "it is damaged, or no .npz file"
    try:
        with open_file(path) as opened:
            if zipfile.is_zipfile(opened):
                unpacked = sum(one.file_size for one in zipfile.ZipFile(opened).infolist())
                if unpacked > max(MOST_UNPACKED, 100 * path.stat().st_size):
                    raise UserError(
                        f"--data {path} unpacks to {unpacked >> 20:,} MiB, a hundred times what it is: give another"
                    )
                opened.seek(0)
                with np.load(opened, allow_pickle=False) as file:
                    return {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as error:  # zip, header and pickle errors have nothing in common
        if "pickle" in str(error):
            reason = "it holds pickled objects, which are never loaded"
    raise UserError(f"--data {path} cannot be read ({reason}): write it with numpy.savez(pictures=..., labels=...)")


def _raw(path: Path, arrays: dict[str, np.ndarray], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of one part, with everything about them right but their values."""
    pictures = next(arrays[prefix + name] for name in NPZ_PICTURES if prefix + name in arrays)
    labels = next((arrays[prefix + name] for name in NPZ_LABELS if prefix + name in arrays), None)
    if labels is None:
        raise UserError(f"--data {path} has no array {prefix}labels: add one with the number of each picture's class")
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) != len(pictures):
        raise UserError(
            f"--data {path}: {prefix}labels is {_is(labels)}, expected one whole number for each of {len(pictures)} pictures"
        )
    if pictures.dtype != np.uint8 and pictures.dtype.kind != "f":
        raise UserError(f"--data {path}: {prefix}pictures is {_is(pictures)}, expected uint8 or float numbers")
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    elif pictures.ndim == 4 and pictures.shape[3] in (1, 3) and pictures.shape[1] not in (1, 3):
        pictures = pictures.transpose(0, 3, 1, 2)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not pictures.size:
        raise UserError(
            f"--data {path}: {prefix}pictures is {_is(pictures)}, expected (N, h, w), (N, h, w, c) or (N, c, h, w)"
        )
    return pictures, labels.astype(np.int64)


def _is(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _npz_part(
    path: Path, pictures: np.ndarray, labels: np.ndarray, names: tuple[str, ...], preprocess: Preprocess | None
) -> Dataset:
    if labels.min() < 0 or labels.max() >= len(names):
        raise UserError(
            f"--data {path}: labels go from {labels.min()} to {labels.max()}, but the model has the classes 0 to {len(names) - 1}"
        )
    if pictures.dtype == np.uint8 and preprocess:
        ready = torch.stack([preprocess(image) for image in _images(pictures)])
    else:
        ready = torch.from_numpy(np.ascontiguousarray(pictures)).float() / (255 if pictures.dtype == np.uint8 else 1)
    return _checked(path, Dataset(ready, torch.from_numpy(labels), names))


def _images(pictures: np.ndarray) -> Iterator[Image.Image]:
    """(N, c, h, w) uint8 as pictures."""
    for picture in pictures:
        yield Image.fromarray(picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0)))


def _checked(where: Path, data: Dataset) -> Dataset:
    if not torch.isfinite(data.pictures).all():
        row = int((~torch.isfinite(data.pictures)).flatten(1).any(1).nonzero()[0])
        raise UserError(f"--data {where}: picture {row} holds NaN or infinite values: remove it")
    return data


def _parts(found: dict[str, Dataset], seed: int) -> Parts:
    """Training, unseen and test data of what was found under the names train, val, test."""
    shapes = {part: tuple(data.pictures.shape[1:]) for part, data in found.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"--data: pictures differ in shape between {', '.join(f'{p} {s}' for p, s in shapes.items())}")
    if len(found) == 1:
        return held_out(found["train"], seed)
    if len(found) == 3:
        return Parts(found["train"], found["val"], found["test"])
    rest = found["val"] if "val" in found else found["test"]
    unseen, test = divide(rest, round(len(rest) * UNSEEN), seed)
    return Parts(found["train"], unseen, test)
