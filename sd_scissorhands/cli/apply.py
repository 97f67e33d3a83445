"""`sdscissor apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..places import RUNS, file_name
from ..settings import model_named
from .options import Json, Quiet, in_panel, printable

how = in_panel("Run")


def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the delta was made from: hub id, diffusers directory, single file or tiny.")],
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="The .safetensors file of changed weights.")],
    output_dir: Annotated[Path | None, how("Where the model goes; must not exist yet.", "runs/BASE-DELTA")] = None,
    revision: Annotated[str | None, how("Branch, tag or commit of a hub model.")] = None,
    device: Annotated[str, how("cuda, mps, cpu or auto; little is computed.", True)] = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Make a model from its base and a delta, bit for bit, and save it as a directory that diffusers loads.

    Refused unless the base is the very model that the delta was made from.

    Example:

        sdscissor apply CompVis/stable-diffusion-v1-4 runs/nudity/delta.safetensors --output-dir models/clean
    """
    from .. import show

    show.still_libraries()
    from ..models.delta import apply_delta

    show.one_thread_if_small(base)
    base = model_named(base, revision)
    folder = output_dir or default_output(base, delta)
    told = apply_delta(base, delta, output_dir=folder, device=device, progress=show.progress(quiet))
    show.said(told if as_json else in_words(told), as_json)


def default_output(base: str, delta: Path) -> Path:
    """runs/BASE-DELTA."""
    return RUNS / file_name(Path(base).name, delta.stem)


def in_words(told: dict[str, Any]) -> dict[str, str]:
    """What `apply_delta` returns, for people; what a stranger's file says must not steer their terminal."""
    share = told["weights"] / told["size"] if told["size"] else 0
    lines = {
        "applied": f"{told['delta']} to {told['base']}",
        "erased": f"{', '.join(told['concepts'])} ({told['recipe']}, seed {told['seed']})",
        "changed": f"{told['weights']:,} of {told['size']:,} weights ({share:.3%})",
        "checked": f"base and result are those of the delta, sha256 {told['weights_sha256'][:12]}",
        "seconds": str(told["seconds"]),
        "model": told["output_dir"],
    }
    return {name: printable(line) for name, line in lines.items()}
