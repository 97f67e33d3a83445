"""Features of pictures from a TorchScript file that the user names, e.g. Inception for an FID as papers report it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, reason
from ..picture_folders import list_pictures
from ..pictures import centre_square, read_frames

Extract = Callable[[np.ndarray], Tensor]  # (B, h, w, 3) uint8 RGB -> (B, d) float32


def open_features(path: Path) -> Extract:
    """A feature extractor from a TorchScript file, on the CPU.

    A TorchScript file is a program: name only one that you trust. Two conventions are known, distinguished by the arguments
    of its forward:

    - `forward(img, return_features, ...)`, as NVIDIA's inception-2015-12-05.pt of StyleGAN2-ADA and StyleGAN3 (and
      clean-fid): called with (B, 3, h, w) uint8 in [0, 255] and return_features=True. That file brings pictures to 299 x 299
      itself, bilinear without antialiasing, so the Frechet distance is StyleGAN's FID; clean-fid instead resizes with PIL
      (bicubic, antialiased) before the network, which gives other values.
    - any other forward: called with (B, 3, h, w) float32 in [0, 1] alone, at the pictures' own size; resizing and
      normalising are the file's business.

    Returns:
        A function from (B, h, w, 3) uint8 RGB to (B, d) float32 on the CPU. It raises UserError if the file cannot be run
        on the pictures or gives anything but one finite row a picture.

    Raises:
        UserError: no such file, or no TorchScript.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: name a TorchScript file, e.g. inception-2015-12-05.pt")
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
        flagged = "return_features" in {argument.name for argument in module.forward.schema.arguments}
    except Exception as error:  # RuntimeError, ValueError, OSError, and AttributeError without a forward
        raise UserError(
            f"{path} is no TorchScript file ({_reason(error)}): make one with torch.jit.script(module).save(...)"
        ) from None

    @torch.no_grad()
    def extract(pixels: np.ndarray) -> Tensor:
        """Features of uint8 pictures (B, h, w, 3): (B, d)."""
        pictures = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).contiguous()  # (B, 3, h, w)
        try:
            found = module(pictures, return_features=True) if flagged else module(pictures.float() / 255)
        except Exception as error:
            raise UserError(
                f"{path} cannot be run on pictures {tuple(pictures.shape)} ({_reason(error)}): name another file"
            ) from None
        return _checked(path, found, len(pixels))

    return extract


def _checked(path: Path, found: Any, count: int) -> Tensor:
    """One row a picture, or a UserError."""
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count or not found.is_floating_point():
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{path} gives {what} for {count} pictures: it must give floating-point features ({count}, d)")
    if not found.isfinite().all():
        raise UserError(f"{path} gives NaN or infinite features: name another file")
    return found.float()


def _reason(error: Exception) -> str:
    """TorchScript's tracebacks end with what went wrong; other messages begin with it."""
    first = reason(error)
    return str(error).strip().splitlines()[-1].strip() if first.startswith("The following operation failed") else first


def reference_features(
    folder: Path, extract: Extract, *, batch: int = 32, size: int | None = None, recursive: bool = False
) -> Tensor:
    """Features of every picture of a folder, of an animation its first frame, in the order of the names.

    Args:
        extract: from `open_features`, or CLIP's `pictures`.
        batch: pictures at once; at their own size only neighbours of the same size share a batch.
        size: pixels a side that each centre square is brought to (Lanczos), best the size of the pictures that are
            compared with; None leaves each at its own.

    Returns:
        (N, d).

    Raises:
        UserError: no such folder, fewer than two pictures, a damaged one, or what `extract` raises.
    """
    files = list_pictures(folder, recursive).files
    if len(files) < 2:
        raise UserError(f"{folder} holds one picture: a distance needs two, and means little below some hundreds")
    found = []
    for at in range(0, len(files), batch):
        squares = [centre_square(read_frames(file, "first")[0], size) for file in files[at : at + batch]]
        found += [extract(np.stack(list(same))) for _, same in groupby(squares, key=len)]
    return torch.cat(found)
