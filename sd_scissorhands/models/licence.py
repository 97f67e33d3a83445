"""The licence in a model's card (README.md): an erased model stays under that of its base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The hub's fields of a licence, and what each may hold: strangers write cards.
FORMS = {
    "license": re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII),
    "license_name": re.compile(r"[\w.+()/, -]{1,100}"),
    "license_link": re.compile(
        r"https://[\w.~%/?&=#:@+-]{1,400}|[\w-][\w.-]{0,99}", re.ASCII
    ),  # a page, or a file beside the card
}
LONGEST = 1 << 20  # bytes of a card


def read_licence(directory: Path) -> dict[str, str]:
    """license, license_name and license_link of a model; empty where there is no card, or none in it."""
    texts = {name: value for name, value in front_matter(directory / "README.md").items() if isinstance(value, str)}
    found = {name: texts[name] for name, form in FORMS.items() if form.fullmatch(texts.get(name, ""))}
    return found if "license" in found else {}


def front_matter(card: Path) -> Mapping[str, Any]:
    """A card's metadata; empty where there is no card, or one that cannot be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return (metadata_load(card) or {}) if card.stat().st_size <= LONGEST else {}
    except (OSError, ValueError, RecursionError, YAMLError):
        return {}


def for_derived_card(licence: Mapping[str, str], base: str | None) -> dict[str, str]:
    """A licence for the card of a derived model: a file beside the base's card is linked on the hub, or left out.

    Args:
        base: the base's hub id.
    """
    fields = {name: str(licence[name]) for name in FORMS if name in licence}
    if (link := fields.get("license_link", "https://")).startswith("https://"):
        return fields
    del fields["license_link"]
    return fields | ({"license_link": f"https://huggingface.co/{base}/blob/main/{link}"} if base else {})
