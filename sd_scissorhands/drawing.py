"""Pictures of one prompt by a model and, beside them, by another: `sdscissor draw`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .disk import atomic, hash_text
from .errors import UserError
from .lineage import baseline_of, run_of
from .machine import Processes
from .models.locate import domain_of_model
from .naming import model_of
from .places import RUNS, file_name
from .results.base import Reported
from .run import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MOST = 64  # seeds
SIDE = 192  # pixels a side of a picture in the grid, at least; smaller ones are enlarged without smoothing
GAP, LINE = 6, 22  # pixels between pictures, and for a line of text


@dataclass(frozen=True)
class Drawing(Reported):
    """Pictures as one PNG: a row a model, a column a seed."""

    picture: str
    prompt: str
    models: list[str]  # from the top
    seeds: list[int]
    blurred: bool = False

    def _repr_html_(self) -> str | None:
        import base64

        data = base64.b64encode(Path(self.picture).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="pictures of both models">'


def draw(
    model: str, prompt: str, seeds: tuple[int, ...] = (0, 1, 2, 3), *, against: str | None = None, output: Path | None = None,
    blur: bool = True, steps: int | None = None, guidance: float | None = None, device: str = "auto", progress: Progress = silent,
) -> Drawing:  # fmt: skip
    """Draw a prompt with a model and with another under the same seeds, and write both as one PNG.

    Args:
        model: a run, or what else names a model.
        against: None: what a run's model was made from; of any other model nothing.
        output: None: drawings/PROMPT-HASH.png in the run, else in runs/.
        blur: pictures of a model that an explicit concept was erased from, and of its original.

    Raises:
        UserError: a model that cannot be had, or no seed.
    """
    if not 0 < len(seeds) <= MOST:
        raise UserError(f"--seeds names {len(seeds)} seeds: name 1 to {MOST}, such as 0-3 or 5,7")
    model = model_of(model)
    against = model_of(against) if against else baseline_of(model)
    models = [*([against] if against else []), model]
    run = run_of(Path(model))
    explicit = run.erased.explicit is not False if run and run.erased else not domain_of_model(model).harmless
    rows = [_pictures(one, prompt, seeds, steps, guidance, device, progress) for one in models]
    file = output or (Path(model).parent if run else RUNS) / "drawings" / _file_of(
        prompt, models, seeds, steps, guidance
    )
    blurred = blur and explicit
    with atomic(file) as new:
        _grid(rows, models, seeds, blurred).save(new, "png")
    return Drawing(str(file), prompt, models, list(seeds), blurred, folder=file.parent)


def _file_of(prompt: str, *drawn: object) -> str:
    return f"{file_name(prompt or 'no-words')[:40]}-{hash_text(repr(drawn))[:8]}.png"


def _pictures(
    model: str,
    prompt: str,
    seeds: tuple[int, ...],
    steps: int | None,
    guidance: float | None,
    device: str,
    progress: Progress,
) -> list[np.ndarray]:
    """A picture a seed: (h, w, 3) uint8 RGB."""
    from .evaluation.prompts import Row
    from .evaluation.sample import Sampling, draw, open_for_sampling

    opened, denoiser = open_for_sampling(model, device, Processes())
    rows = [Row(at, prompt, seed) for at, seed in enumerate(seeds)]
    found: list[np.ndarray] = []
    with progress(f"drawing, {Path(model).name}", len(rows)) as tick:
        sampling = Sampling.of(opened, steps, guidance)
        encode = lambda some: denoiser.encode([row.prompt for row in some])  # noqa: E731
        for chunk, pixels in draw(denoiser, rows, sampling, batch_size=None, encode=encode):
            found += list(pixels)
            tick(len(chunk))
    return found


def _grid(rows: list[list[np.ndarray]], models: list[str], seeds: tuple[int, ...], blur: bool) -> Image.Image:
    """All pictures with a line of text over each row."""
    from PIL import Image, ImageDraw, ImageFilter

    side = max(SIDE, *(max(picture.shape) for row in rows for picture in row))
    width, height = len(seeds) * (side + GAP) + GAP, len(rows) * (LINE + side + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    text = ImageDraw.Draw(sheet)
    for y, (name, row) in enumerate(zip(models, rows, strict=True)):
        top = GAP + y * (LINE + side + GAP)
        text.text((GAP, top + 4), f"{name}, seeds {', '.join(map(str, seeds))}", fill="black")
        for x, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            if blur:
                picture = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 8))
            picture = picture.resize((side, side * picture.height // picture.width), Image.Resampling.NEAREST)
            sheet.paste(picture, (GAP + x * (side + GAP), top + LINE))
    return sheet
