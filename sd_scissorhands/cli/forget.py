"""`sdscissor forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..declaration import BASIC
from ..settings import ForgetSettings, load_settings
from .flags import with_flags_of
from .options import Json, Own, Quiet, in_one_process, in_panel

basic, what, how = map(in_panel, (BASIC, "What", "Run"))


@with_flags_of(ForgetSettings)
def forget(
    given: dict[str, Any],
    output_dir: Annotated[Path | None, basic("The run directory; the model is its model/.", "runs/MODEL-WHAT-RECIPE-seedN")] = None,
    config: Annotated[Path | None, what("Settings as TOML; flags win over the file.")] = None,
    own: Own = None,
    resume: Annotated[bool, how("Continue the run in --output-dir.", False, "--resume")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Make an image classifier forget a class or single training pictures, and measure what is left of them.

    Examples:

        sdscissor forget --forget-class 3

        sdscissor forget --forget-random 0.1 --recipe l-codec

        sdscissor forget --model my-resnet --data pictures --forget-class cat --output-dir runs/no-cats
    """
    settings = load_settings(ForgetSettings, config, given, own=own or ())
    from .. import api, show

    show.still_libraries()
    in_one_process("sdscissor forget")
    show.result(api.forget(settings, output_dir, resume=resume, progress=show.progress(quiet)), as_json)
