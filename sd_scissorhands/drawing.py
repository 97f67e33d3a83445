"""Pictures of prompts by a model and, above them, by another: `sdscissor draw`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .disk import atomic, hash_text
from .errors import UserError, printable
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
class Sheet(Reported):
    """Pictures as one PNG: for each prompt a row a model, a column a seed."""

    picture: str
    prompts: list[str]
    models: list[str]  # from the top
    seeds: list[int]
    blurred: bool = False

    def _repr_html_(self) -> str | None:
        import base64

        data = base64.b64encode(Path(self.picture).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="pictures of both models">'


def draw(
    model: str, prompts: Sequence[str], seeds: Sequence[int] = (0, 1, 2, 3), *, against: str | None = None,
    output: Path | None = None, blur: bool = True, steps: int | None = None, guidance: float | None = None, device: str = "auto",
    progress: Progress = silent,
) -> Sheet:  # fmt: skip
    """Draw prompts with a model and with another under the same seeds, and write all as one PNG.

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
    models, run = [*([against] if against else []), model], run_of(Path(model))
    explicit = run.erased.explicit is not False if run and run.erased else not domain_of_model(model).harmless
    each = [(prompt, seed) for prompt in prompts for seed in seeds]
    how = dict[str, Any](steps=steps, guidance=guidance, device=device, progress=progress)
    drawn = [pictures(one, each, **how) for one in models]
    rows = [
        (f"{prompt or '(no words)'} - {name}", own[at * len(seeds) : (at + 1) * len(seeds)])
        for at, prompt in enumerate(prompts)
        for name, own in zip(models, drawn, strict=True)
    ]
    which = hash_text(repr((list(prompts), models, list(seeds), steps, guidance)))[:8]
    named = f"{file_name(prompts[0] or 'no-words')[:40]}-{which}.png"
    file = output or (Path(model).parent if run else RUNS) / "drawings" / named
    blurred = blur and explicit
    with atomic(file) as new:
        _sheet(rows, blurred).save(new, "png")
    return Sheet(str(file), list(prompts), models, list(seeds), blurred, folder=file.parent)


def pictures(
    model: str, each: Sequence[tuple[str, int]], *, steps: int | None = None, guidance: float | None = None, device: str,
    progress: Progress,
) -> list[np.ndarray]:  # fmt: skip
    """A picture of each prompt and seed: (h, w, 3) uint8 RGB."""
    from .evaluation.prompts import Row
    from .evaluation.sample import Sampling, draw, open_for_sampling

    opened, denoiser = open_for_sampling(model, device, Processes())
    rows = [Row(at, prompt, seed) for at, (prompt, seed) in enumerate(each)]
    found: list[np.ndarray] = []
    with progress(f"drawing, {Path(model).name}", len(rows)) as tick:
        for chunk, pixels in draw(denoiser, rows, Sampling.of(opened, steps, guidance), batch_size=None):
            found += list(pixels)
            tick(len(chunk))
    return found


def _sheet(rows: Sequence[tuple[str, list[np.ndarray]]], blur: bool) -> Image.Image:
    """All pictures, with a line of text over each row."""
    from PIL import Image, ImageDraw

    from .pictures import blurred

    side = max(SIDE, *(max(picture.shape) for _, row in rows for picture in row))
    size = (len(rows[0][1]) * (side + GAP) + GAP, len(rows) * (LINE + side + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    text = ImageDraw.Draw(sheet)
    for y, (title, row) in enumerate(rows):
        top = GAP + y * (LINE + side + GAP)
        text.text((GAP, top + 4), printable(title).encode("ascii", "replace").decode(), fill="black")
        for x, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            if blur:
                picture = blurred(picture)
            picture = picture.resize((side, side * picture.height // picture.width), Image.Resampling.NEAREST)
            sheet.paste(picture, (GAP + x * (side + GAP), top + LINE))
    return sheet
