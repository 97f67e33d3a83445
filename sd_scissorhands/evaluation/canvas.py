"""The embedded world's own questions: what was erased, what its synonyms draw, and what else can still be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..concepts import Concept, world_captions
from ..tiny import world

Said = Mapping[int, dict[str, str]]  # row number -> domain -> concept or "other"


def prompts(concept: Concept, *, seed: int, count: int, gone: Sequence[str] = ()) -> dict[str, list[str]]:
    """The prompts of an evaluation by kind, see `concept.ask`.

    No forget prompt is among those that the erasure learns from. Retain prompts name a sibling: another concept of the
    same domain. Synonym prompts use the world's other words for the concept, twins its anchor. Generic prompts leave the
    concept's domain open, every sixth says nothing at all.

    Args:
        gone: other concepts that were erased too; no prompt names one.
    """
    name, lost = concept.name, {concept.name, *gone}
    domain, rng = str(world.domain_of(name)), np.random.default_rng([seed, 2_000_003])
    seen = {forget for forget, _ in concept.pairs}
    others = [c for c in world.DOMAINS[domain] if c not in lost]
    synonyms = world.DOMAINS[domain][name][1:]

    def caption(subject: str, spoken: str | None = None) -> str:
        while True:
            text = world.caption(world.sample(rng).replace(subject), rng, synonyms=0, generic=0)
            if subject in text.split() and text not in seen and not (lost - {subject}) & set(text.split()):
                return " ".join(spoken if spoken and w == subject else w for w in text.split())

    forget = [caption(name) for _ in range(count)]
    return {
        "forget": forget,
        "synonym": [caption(name, str(rng.choice(synonyms))) for _ in range(count // 2)],
        "retain": [caption(str(rng.choice(others))) for _ in range(count)],
        "twin": [" ".join(concept.anchor if w == name else w for w in text.split()) for text in forget[: count // 2]],
        "caption": world_captions(lost, count - count // 2, seed + 5),
        "generic": [vague(domain, lost, rng) if n % 6 else "" for n in range(count // 2)],
    }


def vague(domain: str, lost: set[str], rng: np.random.Generator) -> str:
    """A caption that names nothing of a domain, and none of the lost concepts."""
    while True:
        text = world.caption(world.sample(rng), rng, synonyms=0, generic=float(domain == "shape"))
        if domain not in (named := world.read(text)) and not lost & set(named.values()):
            return text


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
