"""What a preset file holds, and what is wrong with one: what no run can use, and what makes an erasure by it worse."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .parsing import shortened

PRESET_FILE = ".toml"
SLOT = "{}"  # stands in the concept's place in a template
READ = 77  # tokens of a prompt that CLIP reads, with the first and the last
LONG = 45  # tokens from which a prompt is a long one
LETTERS = 9  # of a word that are about one token
MOST_MORE = 8  # words that a replacement may have beyond its word's
TEXT, TRUTH, TEXTS, TABLE = "a text", "true or false", "a list of texts", "a table of texts"  # types in words
LISTS = "a table with a list of texts for each language"
KEYS = {
    "title": TEXT, "kind": TEXT, "summary": TEXT, "explicit": TRUTH, "templates": TEXTS, "generic": TEXTS, "neighbours": TEXTS,
    "paraphrases": TEXTS, "labels": TEXTS, "beside": TEXTS, "translations": LISTS, "judge": TEXT, "judge_names": TABLE, "words": TABLE,
}  # fmt: skip
REQUIRED = {
    "templates": 'give sentences with {} in the concept\'s place, such as templates = ["{}", "a photo of {}"]',
    "words": 'end the file with [words] and lines such as "a red kite" = "a red balloon"',
}
WITHOUT = {  # what is lost without a key that may be missing
    "explicit": "its pictures are blurred; say explicit = false where they need not be",
    "generic": "nothing holds the model to prompts that leave the concept open; add less specific words",
    "neighbours": "IRA cannot be measured; add prompts that are near the concept and must stay",
    "paraphrases": "no synonym is tried; add other names, which no pair uses",
}
ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)", re.IGNORECASE)
PEOPLE = re.compile(
    r"\b(?:adults?|bod(?:y|ies)|boys?|couples?|figures?|girls?|guys?|humans?|lad(?:y|ies)|m[ae]n|models?|people|persons?|"
    r"some(?:body|one)|wom[ae]n)\b",
    re.IGNORECASE,
)
PIECE = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")  # what CLIP's tokenizer takes apart before it splits long words


@dataclass(frozen=True)
class Defect:
    """Something that is wrong with a preset file."""

    key: str  # of the file
    text: str  # what is wrong, and the remedy
    unusable: bool = False  # whether no run can use the file; else it is a warning

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def names_file(text: str) -> bool:
    """Whether what is given with --concept is a path, of a preset of one's own."""
    text = text.strip()
    return text.endswith(PRESET_FILE) or text.startswith(("./", "../", "/", "~"))


def name_of(text: str) -> str:
    """What a concept is called: a file by its stem, any other by what is given with --concept."""
    return Path(text).stem if text.endswith(PRESET_FILE) else text


def check(data: Mapping[str, Any]) -> list[Defect]:
    """Everything that is wrong with a preset, by its TOML; of keys that are unsound nothing else is known."""
    if found := [Defect(key, text, unusable=True) for key, text in _keys(data)]:
        return found
    errors, warnings = (_templates, _words), (_missing, _names, _nested, _lengths, _open)
    return [Defect(key, text, search in errors) for search in (*errors, *warnings) for key, text in search(data)]


def names(text: str, word: str) -> bool:
    """Whether a text contains a word or phrase, in any case."""
    text, word = text.lower(), word.lower()
    return word in text and re.search(rf"\b{re.escape(word)}\b", text) is not None


def bare(word: str) -> str:
    """A word or phrase without its article."""
    return ARTICLE.sub("", word.strip())


def tokens(text: str) -> int:
    """About how many tokens CLIP makes of a prompt, with the first and the last."""
    return 2 + sum(math.ceil(len(piece) / LETTERS) if piece[0].isalpha() else 1 for piece in PIECE.findall(text))


# ---------------------------------------------------------------- what no run can use: (key, what) of each


def _keys(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys that are unknown, missing, or of another type."""
    for key, value in data.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            yield key, "is no key of a preset" + (f": did you mean {near[0]}?" if near else ": leave it out")
        elif not _fits(KEYS[key], value):
            yield from _wrong(key, value)
    for key, remedy in REQUIRED.items():
        if not data.get(key):
            yield key, f"is {'empty' if key in data else 'missing'}: {remedy}"


def _fits(kind: str, value: Any) -> bool:
    """Whether a value is of a type."""
    if kind == LISTS:
        return isinstance(value, dict) and all(_fits(TEXTS, inner) for inner in value.values())
    if kind in (TEXTS, TABLE):
        inner = value.values() if kind == TABLE and isinstance(value, dict) else value
        return isinstance(value, list if kind == TEXTS else dict) and all(isinstance(one, str) for one in inner)
    return isinstance(value, str if kind == TEXT else bool)


def _wrong(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """A value of another type; in a table, where TOML puts all that stands below [words], each by itself."""
    if KEYS[key] != TABLE or not isinstance(value, dict):
        yield key, f"is {shortened(repr(value))} and must be {KEYS[key]}"
        return
    for word, other in value.items():
        if not isinstance(other, str):
            yield (
                _word(word),
                f"is {shortened(repr(other))} and must be a text, what takes its place; other keys stand above [words]",
            )


def _templates(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Templates without one place for the concept, or that name it anyway."""
    for template in data["templates"]:
        shown, places = repr(shortened(template)), template.count(SLOT)
        if places != 1:
            yield "templates", f"{shown} holds {places or 'no'} {SLOT}: write it once, where the concept goes"
        elif re.search("[{}]", template.replace(SLOT, "")):
            yield "templates", f"{shown} holds a brace that is no {SLOT}: leave it out"
        elif word := _named(template, data):
            yield "templates", f"{shown} names the concept, {word!r}, beside {SLOT}: leave that out"


def _words(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Words that are no text, and replacements that do not take the concept away."""
    for word, other in data["words"].items():
        if not word.strip() or re.search("[{}]", word + other):
            yield _word(word), "is blank, or there is a brace in it or in its replacement: write plain words"
        elif not other.strip():
            yield _word(word), "has no replacement: give what takes its place in the same picture"
        elif other.strip().lower() == word.strip().lower():
            yield _word(word), "is its own replacement: give something else, in the same place and pose"
        elif named := _named(other, data):
            yield _word(word), f"is replaced by {other!r}, which still names the concept, {named!r}: say it without"


# ---------------------------------------------------------------- warnings: (key, what) of each


def _missing(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys without which something is lost."""
    for key, lost in WITHOUT.items():
        if key not in data or data[key] == []:
            yield key, f"is {'empty' if key in data else 'missing'}: {lost}"


def _names(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What must not name the concept and does, and paraphrases that are words."""
    for key in ("neighbours", "generic", "beside"):
        for text in data.get(key, ()):
            if word := _named(text, data):
                yield key, f"{shortened(text)!r} names the concept, {word!r}: take another"
    for text in data.get("paraphrases", ()):
        if word := next((word for word in data["words"] if word.strip() and names(text, bare(word))), None):
            yield "paraphrases", f"{text!r} holds {word!r}, one of the words: take another name"


def _nested(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Words that hold another whose replacement theirs does not hold: a part of the sentence would become two things."""
    words = data["words"]
    for word, other in words.items():
        for inner, instead in words.items():
            if inner != word and inner.strip() and names(word, bare(inner)) and not names(other, bare(instead)):
                yield (
                    _word(word),
                    f"holds {inner!r} but its replacement does not hold {instead!r}: let both change alike",
                )


def _lengths(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Prompts that are all short, or longer than is read; replacements much longer than their words."""
    fillings = [*data["words"], *data["words"].values(), *data.get("paraphrases", ())]
    longest = {template: max(tokens(template.replace(SLOT, one)) for one in fillings) for template in data["templates"]}
    for template, length in longest.items():
        if length > READ:
            yield "templates", f"{shortened(template)!r} makes about {length} tokens, and CLIP reads {READ}: shorten it"
    if max(longest.values()) < LONG:
        yield (
            "templates",
            f"no prompt has over {max(longest.values())} tokens of the {READ} that CLIP reads: add longer ones, as people write them",
        )
    for word, other in data["words"].items():
        if len(other.split()) > len(word.split()) + MOST_MORE:
            yield _word(word), f"has a replacement that is far longer, {shortened(other)!r}: change the concept alone"


def _open(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Less specific words that leave too little open."""
    given = [word for word in data.get("generic", ()) if word.strip()]
    if data.get("generic") and not given:
        yield "generic", "holds no word: add less specific ones, such as 'something'"
    elif given and all(PEOPLE.search(word) for word in given):
        yield "generic", f"all ask for people ({', '.join(given)}): add others, such as 'something' or 'a scene'"


def _named(text: str, data: Mapping[str, Any]) -> str | None:
    """The name of the concept that a text holds, if it holds one."""
    every = (*data["words"], *data.get("paraphrases", ()))
    return next((word for word in every if word.strip() and names(text, bare(word))), None)


def _word(word: str) -> str:
    return f'words."{word}"'
