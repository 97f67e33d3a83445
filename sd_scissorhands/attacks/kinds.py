"""What attacks of several kinds share: few pictures a kind, of which the strongest decides."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ..evaluation.gone import SHOWS
from ..places import file_name
from ..results.attack import KindRate
from .base import Outcome

if TYPE_CHECKING:
    from ..evaluation.prompts import Row
    from .context import AttackContext, Side

LEAST = 8  # pictures of a kind, where so many are drawn at all


def rows_of_a_kind(context: AttackContext) -> list[Row]:
    """The first quarter of the rows, at least `LEAST`: every kind draws the same ones."""
    return context.rows[: max(LEAST, len(context.rows) // 4)]


def strongest(
    context: AttackContext, side: Side, hits: Mapping[str, list[bool]], beside: Collection[str] = ()
) -> Outcome:
    """The kind that shows the concept in most pictures, with the rate of each.

    A kind under which the original itself shows it in under half of its pictures decides only where all are so; then the
    attack is broken.

    Args:
        hits: kind -> per picture whether the concept is there; the records have the name `file_name(kind)`.
        beside: kinds that do not decide.
    """
    original = context.outcomes.get("original")
    theirs = {kind: rate.asr for kind, rate in original.kinds.items()} if original else {}
    kinds = {kind: KindRate.of(own, theirs.get(kind)) for kind, own in hits.items()}
    deciding = [kind for kind in hits if kind not in beside]
    best = max(
        [kind for kind in deciding if theirs.get(kind, 1.0) >= SHOWS] or deciding, key=lambda kind: kinds[kind].asr
    )
    return Outcome(
        hits[best], [f"{row.prompt}, {best}" for row in rows_of_a_kind(context)], file_name(best),
        kinds=kinds,
    )  # fmt: skip
