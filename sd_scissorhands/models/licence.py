"""The licence that a model comes under, as its own card (README.md) says it: an erased model stays under that of its base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The fields by which the hub knows a licence, and what may stand in each: strangers write cards.
FORMS = {
    "license": re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII),
    "license_name": re.compile(r"[\w.+()/, -]{1,100}"),
    "license_link": re.compile(
        r"https://[\w.~%/?&=#:@+-]{1,400}|[\w-][\w.-]{0,99}", re.ASCII
    ),  # a page, or a file beside the card
}
LONGEST = 1 << 20  # bytes of a card


def read_licence(directory: Path) -> dict[str, str]:
    """license, license_name and license_link of a model; empty where it has no card, or one that does not say."""
    told = {name: value for name, value in front_matter(directory / "README.md").items() if isinstance(value, str)}
    found = {name: told[name] for name, form in FORMS.items() if form.fullmatch(told.get(name, ""))}
    return found if "license" in found else {}


def front_matter(card: Path) -> Mapping[str, Any]:
    """What a card says in its first lines; nothing for no card, or one that cannot be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return (metadata_load(card) or {}) if card.stat().st_size <= LONGEST else {}
    except (OSError, ValueError, RecursionError, YAMLError):
        return {}


def linked(licence: Mapping[str, str], base: str | None) -> dict[str, str]:
    """A licence as another model's card tells it: a file beside the base's card is named where the hub has it, or not at all.

    Args:
        base: the base's hub id.
    """
    told = {name: str(licence[name]) for name in FORMS if name in licence}
    link = told.get("license_link", "https://")
    if link.startswith("https://"):
        return told
    if base:
        return told | {"license_link": f"https://huggingface.co/{base}/blob/main/{link}"}
    return {name: value for name, value in told.items() if name != "license_link"}
