"""`sdscissor draw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..naming import check_model
from .options import Json, NoBlur, Quiet

LONGEST = 1024  # seeds in a range


def draw(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A run, a pipeline directory, a .safetensors file, a hub id or tiny.")],
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What to draw. Repeatable.", show_default="no words")] = None,
    seeds: Annotated[str, typer.Option(help="Such as 0-3 or 5,7,9.")] = "0-3",
    against: Annotated[str | None, typer.Option(metavar="BASE", help="Another model, drawn above it.", show_default="what a run's model was made from")] = None,
    output: Annotated[Path | None, typer.Option(help="The PNG.", show_default="drawings/ in the run, else runs/drawings/")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps.", show_default="50; tiny 20")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="7.5; tiny 3")] = None,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu or auto.")] = "auto",
    no_blur: NoBlur = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Draw prompts with a model and with its original, under the same seeds, as one PNG.

    Examples:

        sdscissor draw runs/heart --prompt "a red heart on white" --seeds 0-7

        sdscissor draw CompVis/stable-diffusion-v1-4 --prompt "a harbour at dawn" --output dawn.png
    """
    chosen = seeds_of(seeds)
    check_model(model)
    from .. import show
    from ..drawing import draw as run_drawing

    show.still_libraries()
    show.one_thread_if_small(model)
    result = run_drawing(
        model, prompt or [""], chosen, against=against, output=output, blur=not no_blur, steps=steps, guidance=guidance,
        device=device, progress=show.progress(quiet),
    )  # fmt: skip
    show.result(result, as_json)


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds out of a list such as 0-3,7.

    Raises:
        UsageError: no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(first + last) > 18:
            raise UsageError(f"--seeds {text} is no list of seeds: name them as 0-3 or 5,7,9")
        end = int(last) if dash else int(first)
        if not 0 <= end - int(first) < LONGEST:
            raise UsageError(f"--seeds {text} holds a range that is empty or too long: name them as 0-3 or 5,7,9")
        found += range(int(first), end + 1)
    return tuple(found)
