"""The embedded world's own questions: what was erased, what its synonyms draw, and what else can still be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..tiny import world

Said = Mapping[int, dict[str, str]]  # row number -> domain -> concept or "other"


def hits(concept: str, asked: Mapping[str, Sequence[Any]], said: Said) -> dict[str, list[bool]]:
    """What was right, picture by picture.

    Args:
        asked: kind -> rows.

    Returns:
        UA, unlearning accuracy: prompts naming the concept; True where the judge does not see it.
        UA_synonyms: the same for prompts that name it by a synonym. UA_generic: for prompts that leave its domain open.
        IRA, in-domain retain accuracy: prompts naming a sibling; True where it is drawn right.
        CRA, cross-domain retain accuracy: the other domains' words in those prompts, each; True where drawn right.
        CRA_forget: the same on the prompts that name the concept.
    """
    domain = str(world.domain_of(concept))
    told = {kind: [(world.read(row.prompt), said[row.number]) for row in rows] for kind, rows in asked.items()}
    return {
        "UA": [says[domain] != concept for _, says in told["forget"]],
        "UA_synonyms": [says[domain] != concept for _, says in told["synonym"]],
        "UA_generic": [says[domain] != concept for _, says in told["generic"]],
        "IRA": [says[domain] == named[domain] for named, says in told["retain"]],
        "CRA": _elsewhere(told["retain"], domain),
        "CRA_forget": _elsewhere(told["forget"], domain),
    }


def _elsewhere(told: Sequence[tuple[dict[str, str], dict[str, str]]], domain: str) -> list[bool]:
    return [says[d] == c for named, says in told for d, c in named.items() if d != domain]
