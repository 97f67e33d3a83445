"""`sdscissor compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..comparison.compare_settings import CompareSettings
from ..declaration import BASIC
from .flags import with_flags_of
from .options import Json, Quiet, as_typed, check_concepts, in_one_process, in_panel

basic, what = map(in_panel, (BASIC, "What"))


@with_flags_of(CompareSettings)
def compare(
    given: dict[str, Any],
    config: Annotated[Path | None, what("Settings of every run as TOML, laid over each recipe's.")] = None,
    output_dir: Annotated[Path, basic("Where the runs, rows.json, rows.csv and the page go.")] = Path("runs/compare"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compare recipes: one command, one table, one page. A killed comparison continues when the command is repeated.

    Examples:

        sdscissor compare --concept heart --concept blue --recipes scissorhands,lra-npp,esd --seeds 3

        sdscissor compare --concept heart --attack embedding,token --attack relearn:lr=3e-4,steps=160

        sdscissor compare --forget-class 3 --forget-random 0.1 --output-dir runs/digits
    """
    settings = CompareSettings(**given)
    check_concepts(settings.concepts, settings.anchor, settings.model or "tiny")
    from .. import api, show

    show.still_libraries()
    in_one_process("sdscissor compare")
    asked = settings.comparison(config)
    show.result(api.compare(asked, output_dir, command=as_typed(), progress=show.progress(quiet)), as_json)
