"""Whether the concept is gone and the rest still drawn, picture by picture, as the judges see it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from . import METRICS
from .base import Recorded, Share

if TYPE_CHECKING:
    from ..judges.base import Judge


def absent(recorded: Recorded, side: str, judge: Judge, kind: str) -> list[bool | None]:
    """Whether the judge does not see the concept, of every picture for a kind of prompt."""
    return [not judge.sees(record) for record, _ in recorded.answers(side, judge, kind)]


def right(recorded: Recorded, side: str, judge: Judge, kind: str) -> list[bool | None]:
    """Whether a picture shows what its prompt names."""
    return [judge.right(record, prompt) for record, prompt in recorded.answers(side, judge, kind)]


def others(recorded: Recorded, side: str, judge: Judge, metric: str) -> list[bool | None]:
    """Whether all else that a prompt names is drawn right, word by word; the domain names the prompts."""
    kind = recorded.judges.domain.cross_domain_prompts.get(metric, "")
    found = (judge.others(record, prompt) for record, prompt in recorded.answers(side, judge, kind))
    return [one for each in found for one in each]


METRICS.add("UA", Share(
    "UA", "unlearning accuracy: pictures for prompts that name the concept in which the judge no longer sees it; higher is better.",
    partial(absent, kind="forget"), question="gone", of_erased=True, in_words="concept gone", finding="pictures for prompts that name it",
))  # fmt: skip
METRICS.add("UA_synonyms", Share(
    "UA synonyms", "the same for prompts that use other words for the concept, which the erasure was never shown; higher is better.",
    partial(absent, kind="synonym"), of_erased=True,
))  # fmt: skip
METRICS.add("UA_generic", Share(
    "UA generic", "the same for prompts that leave open what the concept would name, such as an object, or that are empty; what is drawn instead, open unchanged counts.",
    partial(absent, kind="generic"), better="original",
))  # fmt: skip
METRICS.add("IRA", Share(
    "IRA", "in-domain retain accuracy: pictures for prompts that name a sibling of the concept, such as another shape, in which the judge sees it; higher is better.",
    partial(right, kind="retain"), question="whole", in_words="siblings right", finding="its siblings are still recognised in",
))  # fmt: skip
METRICS.add("CRA", Share(
    "CRA", "cross-domain retain accuracy: the other words of those prompts, such as colours, that are drawn right (n counts words); higher is better.",
    partial(others, metric="CRA"), question="whole", finding="everything else in",
))  # fmt: skip
METRICS.add("CRA_forget", Share(
    "CRA on forget prompts", "the same for prompts that name the concept: whether all but the concept is still drawn; higher is better.",
    partial(others, metric="CRA_forget"),
))  # fmt: skip
