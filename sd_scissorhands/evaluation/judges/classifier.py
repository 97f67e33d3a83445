"""A judge that users bring: any image classifier whose labels tell the concept from the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...concepts import Concept, called
from ...errors import UserError
from ...preset_check import bare, names
from ..image_classifier import ImageClassifier, open_classifier
from . import JUDGES, parse_source
from .base import Judge, JudgeRequest, Record


class ClassifierJudge(Judge):
    """The concept is there where its labels have, together, a probability of at least the threshold.

    A prompt names a label by the label's own words, or by those that a preset has for it. Where it names exactly one, the picture is
    right if that label comes first.
    """

    summary = "an image classifier of your own: --judge DIRECTORY_OR_HUB_ID[:LABEL,...] or FILE.onnx[:LABEL,...]"

    def __init__(
        self, classifier: ImageClassifier, seen: Sequence[str], threshold: float = 0.5, names: Mapping[str, str] | None = None,
        anchor: str = "",
    ):  # fmt: skip
        """`seen`: the labels that mean the concept; `names`: label -> what prompts call it, where that is not its name; `anchor`: what
        takes the concept's place, as the label of that name is then called."""
        if unknown := [label for label in names or {} if label not in classifier.labels]:
            raise UserError(
                f"--judge {classifier.name} has no label {unknown[0]!r}, which the preset's judge_names names"
            )
        self.called: dict[str, str] = {label: (names or {}).get(label) or _word(label) for label in classifier.labels}
        self.classifier, self.threshold, self.seen, self.anchor = classifier, threshold, tuple(seen), anchor
        self._of_concept = [classifier.labels.index(label) for label in seen]
        self.facts = {
            "judge": "classifier", "classifier": classifier.name, "sha256": classifier.sha256, "labels": list(self.seen),
            "threshold": threshold, **({"names": dict(names)} if names else {}),
        }  # fmt: skip

    @classmethod
    def missing(cls, request: JudgeRequest) -> str:
        return "" if request.source else "names no classifier: --judge DIRECTORY_OR_HUB_ID[:LABEL,...]"

    @classmethod
    def open(cls, request: JudgeRequest) -> ClassifierJudge:
        """By `request.source`.

        Raises:
            UserError: it cannot be loaded, or has none of the labels.
        """
        source, labels = parse_source(str(request.source))
        classifier = open_classifier(source, request.device)
        concept = request.concept
        of_preset = request.source in (concept.judge, *map(str.strip, concept.judge.split("+")))
        called_so = dict(concept.judge_names) if of_preset else {}  # of another judge, that --judge named, none
        return cls(classifier, _labels_of(classifier, labels, concept), request.threshold, called_so, concept.anchor)

    def look(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[Record]:
        """probability of the concept's labels (together; of labels that do not exclude each other the largest), and the best label."""
        chances = self.classifier(pixels)
        best = chances.argmax(1)
        own = chances[:, self._of_concept]
        together = own.sum(1) if self.classifier.exclusive else own.max(1)
        return [
            {"probability": round(float(chance), 6), "best": self.classifier.labels[at]}
            for chance, at in zip(together, best, strict=True)
        ]

    def sees(self, record: Record) -> bool:
        return record["probability"] >= self.threshold

    def shown(self, record: Record) -> str:
        """What prompts call the best label."""
        return self._named(record["best"])

    def can_show(self, name: str) -> bool:
        """Whether a label is called so."""
        return name in map(self._named, self.classifier.labels)

    def _named(self, label: str) -> str:
        """What prompts call a label; of the anchor's as the concept has it, "a cat" for "cat"."""
        word = self.called[label]
        return self.anchor if bare(word).lower() == bare(self.anchor).lower() else word

    def right(self, record: Record, prompt: str) -> bool | None:
        named = [label for label, word in self.called.items() if names(prompt, word)]
        return record["best"] == named[0] if len(named) == 1 else None

    def answer(self, record: Record) -> str:
        return record["best"]


def _word(label: str) -> str:
    """What a label is called, of "tench, Tinca tinca" the first name, of "golden_retriever" two words."""
    return bare(label.partition(",")[0].replace("_", " ").strip())


def _labels_of(classifier: ImageClassifier, given: Sequence[str], concept: Concept) -> list[str]:
    """The labels that mean the concept: those that are given, by name or number; else those that are called as it is."""
    known = classifier.labels
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    found = []
    for one in given:
        label = known[int(one)] if one.isdecimal() and one not in known and int(one) < len(known) else one
        if label not in known:
            raise UserError(f"--judge {classifier.name} has no label {one!r}: choose of {shown}")
        found.append(label)
    if not found:
        words = {bare(word).lower() for word in called(concept)}
        found = [label for label in known if {_word(label).lower(), bare(label).lower()} & words]
    if not found or len(set(found)) == len(known):
        raise UserError(
            f"--judge {classifier.name}: say which of its labels mean {concept.name!r}, as {classifier.name}:LABEL,...: {shown}"
        )
    return list(dict.fromkeys(found))


JUDGES.add("classifier", ClassifierJudge)
