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
    """List what is not made twice, by size, model and age: latents that erasures drew, and what was measured of originals.

    An erasure that asks a model for the same pictures draws nothing, and a measurement of another model that was made from the
    same original measures that one alone. It lies under HF_HOME. SDSCISSOR_CACHE=off neither reads nor writes it.
    """
    from .. import drawn_before, measured_before, show
    from ..places import cache_root

    if clear:
        counts = zip(drawn_before.clear(), measured_before.clear(), strict=True)
        return show.values(dict(zip(("deleted", "bytes"), map(sum, counts), strict=True)), as_json)
    found = sorted(drawn_before.entries() + measured_before.entries(), key=lambda one: one.days)
    if as_json:
        return print(json.dumps({"folder": str(cache_root()), "files": [one.to_json() for one in found]}))
    columns = Column("model", "name"), Column("what"), Column("pictures"), Column("MB"), Column("last used, days ago")
    rows = [(one.model, one.what, f"{one.pictures:,}", f"{one.bytes / 1e6:.1f}", f"{one.days:.1f}") for one in found]
    table(columns, rows, title=str(cache_root()), to=Terminal())
