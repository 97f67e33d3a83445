"""`sdscissor cache`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..terminal import Column, Terminal, table
from .options import Json


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False, as_json: Json = False
) -> None:
    """List the latents that erasures drew, by size, model and age; the next erasure that asks a model for the same draws nothing.

    They lie under HF_HOME and are never decoded. SDSCISSOR_CACHE=off neither reads nor writes them.
    """
    from .. import drawn_before, show

    if clear:
        files, size = drawn_before.clear()
        return show.values({"deleted": files, "bytes": size}, as_json)
    found = drawn_before.entries()
    if as_json:
        return print(json.dumps({"folder": str(drawn_before.folder()), "files": [one.to_json() for one in found]}))
    columns = Column("model", "name"), Column("pictures"), Column("MB"), Column("last used, days ago")
    rows = [(one.model, f"{one.pictures:,}", f"{one.bytes / 1e6:.1f}", f"{one.days:.1f}") for one in found]
    table(columns, rows, title=str(drawn_before.folder()), to=Terminal())
