"""`sdscissor export`, `diff` and `verify`: models as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings import OUTPUT_FORMATS
from .options import Json, Quiet, in_panel

what, how = map(in_panel, ("What", "Run"))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of erase, or a diffusers directory.")],
    to: Annotated[str, what(f"{', '.join(OUTPUT_FORMATS[:0:-1])}, or diffusers.", True)] = "single-file",
    output: Annotated[Path | None, what("File, for diffusers directory; must not exist yet.", "in RUN, by its name")] = None,
    dtype: Annotated[str | None, what("float32, float16 or bfloat16.", "as saved; with --base as there")] = None,
    base: Annotated[Path | None, what("For single-file: your .safetensors, of which the UNet alone is replaced.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Write an erased model in the format that your program reads, and read it back before it counts.

    single-file is for A1111 and ComfyUI (LDM names); unet-only is the UNet under diffusers' names; delta is what changed, for sdscissor apply.

    Examples:

        sdscissor export runs/nudity --to single-file --dtype float16

        sdscissor export runs/nudity --base my-model.safetensors --output my-model-clean.safetensors
    """
    from .. import show

    show.still_libraries()
    from ..checkpoints.export import export as run_export

    show.one_thread_if_small(str(run))
    told = run_export(run, to, output=output, dtype=dtype, base=base, progress=show.progress(quiet))
    if as_json:
        return show.said(told, True)
    lines = {"exported": f"{run} to {to}", "tensors": f"{told['tensors']:,}, read back and equal"}
    lines |= {"base": f"{base}: everything but the UNet is as it was, byte by byte"} if base else {}
    show.said(lines | {"bytes": f"{told['bytes']:,}", "seconds": told["seconds"], "output": told["output"]}, False)
