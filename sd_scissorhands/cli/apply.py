"""`sdscissor apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..naming import model_named
from ..places import RUNS, file_name
from ..results.models import AppliedDelta
from .options import Json, Quiet, in_panel

how = in_panel("Run")


def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that it was made from: hub id, diffusers directory, single file or tiny.")],
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="What export --to delta, export --to lycoris or erase wrote.")],
    output_dir: Annotated[Path | None, how("Where the model goes; must not exist yet.", "runs/BASE-DELTA")] = None,
    revision: Annotated[str | None, how("Branch, tag or commit of a hub model.")] = None,
    device: Annotated[str, how("cuda, mps, cpu or auto; little is computed.", True)] = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Make a model from its base and a delta (bit for bit) or an add-on (to be measured), as a directory that diffusers loads.

    Refused unless the base is the very model that the file was made from.

    Example:

        sdscissor apply CompVis/stable-diffusion-v1-4 runs/nudity/delta.safetensors --output-dir models/clean
    """
    from .. import show

    show.still_libraries()
    from ..models.apply import apply_delta

    show.one_thread_if_small(base)
    base = model_named(base, revision)
    folder = output_dir or default_output(base, delta)
    applied = apply_delta(base, delta, output_dir=folder, device=device, progress=show.progress(quiet))
    show.values(applied.to_json() if as_json else in_words(applied), as_json)


def default_output(base: str, delta: Path) -> Path:
    """runs/BASE-DELTA."""
    return RUNS / file_name(Path(base).name, delta.stem)


def in_words(applied: AppliedDelta) -> dict[str, str | None]:
    """The result for people."""
    share = applied.weights / applied.size if applied.size else 0
    return {
        "applied": f"{applied.delta} to {applied.base}",
        "erased": f"{', '.join(applied.concepts)} ({applied.recipe}, seed {applied.seed})",
        "changed": f"{applied.weights:,} of {applied.size:,} weights ({share:.3%})",
        "checked": _checked(applied),
        "seconds": str(applied.seconds),
        "model": applied.output_dir,
        "left out": applied.left_out,
    }


def _checked(applied: AppliedDelta) -> str:
    if erased := applied.erased_sha256:
        return f"base is that of the file; the result, sha256 {applied.weights_sha256[:12]}, is near the erased model's {erased[:12]}: measure it"
    return f"base and result are those of the file, sha256 {applied.weights_sha256[:12]}"
