"""Whether prompts that do not name the concept still give what they gave before, under the same seed.

An erasure can pass for perfect and turn whatever is not named into the anchor. So prompts that leave the concept's kind open, and
words that neither the erasure nor its retain set ever names, are drawn by both models. Pictures in which the original shows the
concept are left out: they have to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from . import METRICS
from .base import Number, Recorded, Share

if TYPE_CHECKING:
    from ..judges.base import Judge


LIMITS = (-0.15, -0.25)  # picture by picture under the same seed, which is harder to hold than a share that is right


def compared(recorded: Recorded, side: str, judge: Judge, kind: str) -> list[tuple[str, str]]:
    """(what the picture of a side shows, what the original's does), of all prompts of a kind where the original shows something else
    than the concept; none where the judge has no names."""
    pairs = zip(recorded.answers(side, judge, kind), recorded.answers("original", judge, kind), strict=True)
    shown = [(judge.shown(own), judge.shown(before)) for (own, _), (before, _) in pairs if not judge.sees(before)]
    return [(own, before) for own, before in shown if own is not None and before is not None]


def unchanged(recorded: Recorded, side: str, judge: Judge, kind: str) -> list[bool | None]:
    """Whether a picture shows what the original's shows."""
    return [own == before for own, before in compared(recorded, side, judge, kind)]


def total_variation(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Distance between the distributions of two samples: half the sum over values of |share in a - share in b|, 0 to 1.

    Two samples of one distribution are apart too, by about sqrt(k / (pi n)) for k values: compare it with another seed's.
    """
    ours, theirs = Counter(a), Counter(b)
    return sum(abs(ours[value] / len(a) - theirs[value] / len(b)) for value in {*ours, *theirs}) / 2


def variation(recorded: Recorded, side: str, kind: str) -> float | None:
    """Total variation between what a side shows and what the original shows; by the first judge that has names."""
    for judge in recorded.judges.judges:
        if pairs := compared(recorded, side, judge, kind):
            ours, theirs = zip(*pairs, strict=True)
            return round(total_variation(ours, theirs), 4)
    return None


def anchor_share(recorded: Recorded, side: str, kind: str) -> float | None:
    """Share of a side's pictures that show the anchor; by the first judge that has a name for it."""
    for judge in (one for one in recorded.judges.judges if one.can_show(recorded.concept.anchor)):
        if shown := [name for record, _ in recorded.answers(side, judge, kind) if (name := judge.shown(record))]:
            return round(shown.count(recorded.concept.anchor) / len(shown), 4)
    return None


def moved(recorded: Recorded, side: str, kind: str) -> float | None:
    """Mean squared difference of a side's pictures, made small, from the original's, over that of another seed's; needs no judge."""
    if not (rows := recorded.rows.get(kind)):
        return None
    from ..records import thumbnails

    sides = (side, "original", "again")
    ours, theirs, seed = (thumbnails(recorded.records[name][row.number] for row in rows) for name in sides)
    return round(float(((ours - theirs) ** 2).mean() / max(((seed - theirs) ** 2).mean(), 1e-9)), 4)


METRICS.add("open_unchanged", Share(
    "open unchanged", "prompts that leave open what the concept would name, or are empty: of those whose picture did not show the concept before, the share that shows the same thing as before, under the same seed; higher is better.",
    partial(unchanged, kind="generic"), by_seed=True, question="whole", limits=LIMITS,
    finding="prompts that leave it open show what they showed in",
))  # fmt: skip
METRICS.add("unlisted_unchanged", Share(
    "unlisted unchanged", "the same for words in the concept's place that neither the erasure nor its retain set names; higher is better.",
    partial(unchanged, kind="unlisted"), by_seed=True, question="whole", limits=LIMITS, finding="words that nobody listed in",
))  # fmt: skip
METRICS.add("open_variation", Number(
    "open variation", "of the same open prompts, the total variation between the distributions of what is drawn and of what was drawn before, 0 to 1; another seed alone has some too; lower is better.",
    partial(variation, kind="generic"), better="lower", by_seed=True,
))  # fmt: skip
METRICS.add("unlisted_variation", Number(
    "unlisted variation", "the same of the unlisted words; lower is better.",
    partial(variation, kind="unlisted"), better="lower", by_seed=True,
))  # fmt: skip
METRICS.add("open_anchor", Number(
    "anchor drawn", "share of the open prompts' pictures that show the anchor, which takes the concept's place; as often as the original is right.",
    partial(anchor_share, kind="generic"), unit="share", better="original",
))  # fmt: skip
METRICS.add("open_moved", Number(
    "open moved", "how far the open prompts' pictures moved, as a share of how far another seed moves them (mean squared difference of thumbnails, no judge needed); lower is better.",
    partial(moved, kind="generic"), better="lower",
))  # fmt: skip
