"""Judges: who decides what a picture shows. One file each, under the name that --judge takes; see `base.Judge`."""

from pathlib import Path

from ...errors import UsageError
from ...naming import is_path
from ...parsing import choose
from ...registry import Registry
from .base import Judge

JUDGES: Registry[type[Judge]] = Registry("judge", __name__, Path(__file__).parent, not_declarations=("base",))


def judges_named(text: str) -> tuple[str, ...]:
    """The judges of --judge: a name of `JUDGES`, or what names an image classifier; one, or two with a + between.

    Raises:
        UsageError: neither, or more.
    """
    whole = is_path(parse_source(text)[0])
    named = (text,) if whole else tuple(part.strip() for part in text.split("+"))
    unknown = [one for one in named if one not in JUDGES and not looks_like_a_model(one)]
    if unknown:
        known = choose(unknown[0], JUDGES.names())
        raise UsageError(
            f"--judge {unknown[0]!r} is unknown{known}, or name an image classifier's directory, hub id or .onnx file"
        )
    if len(named) > 2:
        raise UsageError(f"--judge {text!r} names {len(named)} judges: name one, or two, of which the first decides")
    return named


def looks_like_a_model(text: str) -> bool:
    """Whether a text may name an image classifier, with labels or without."""
    return "/" in text or is_path(parse_source(text)[0])


def parse_source(text: str) -> tuple[str, tuple[str, ...]]:
    """(classifier, labels) of DIRECTORY_OR_HUB_ID[:LABEL,...]; a path that exists is meant whole."""
    source, colon, labels = text.rpartition(":")
    if is_path(text) or not colon:
        return text, ()
    return source, tuple(label.strip() for label in labels.split(",") if label.strip())
