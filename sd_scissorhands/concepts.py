"""What can be erased: presets out of prompts/, a user's own, and free text with an anchor; the prompts that name a concept."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .errors import UsageError, UserError, printable, reason
from .files import read_text, read_toml
from .parsing import did_you_mean
from .preset_check import PRESET_FILE, SLOT, Defect, check, names, names_file

T = TypeVar("T")

FREE_TEMPLATES = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a painting of {}", "a drawing of {}", "a close-up of {}",
    "{}, highly detailed", "{} in a city", "{} in nature", "{} at night", "a black and white photo of {}",
)  # fmt: skip
GENERIC = ("something", "an object", "a thing", "")


@dataclass(frozen=True)
class Concept:
    """A concept, the words that name it, and what takes its place.

    `pairs` are (forget prompt, neutral prompt); the second is the same sentence with the anchor in the concept's place.
    """

    name: str
    title: str
    kind: str
    summary: str
    explicit: bool  # its pictures are shown blurred
    anchor: str  # what takes its place, in a word
    pairs: tuple[tuple[str, str], ...]
    neighbours: tuple[str, ...]  # near the concept, and to be retained
    labels: tuple[str, ...]  # NudeNet labels that show it
    words: tuple[str, ...] = ()  # what the pairs call it, its own name first
    templates: tuple[str, ...] = ()  # sentences with "{}" where the concept goes
    paraphrases: tuple[str, ...] = ()  # other names, which no pair uses
    generic: tuple[str, ...] = ("",)  # vaguer words in the concept's place, "" for nothing at all
    beside: tuple[str, ...] = ()  # prompts of what often comes with it, which do not name it; nothing learns from them
    translations: tuple[
        tuple[str, tuple[str, ...]], ...
    ] = ()  # language, prompts that name it; nothing learns from them
    judge: str = ""  # who decides where no --judge is given, as it is given there
    judge_names: tuple[tuple[str, str], ...] = ()  # label of that judge, the word that prompts have for it

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """Every prompt of the pairs -> its template, with "{}" in the concept's place, and the word that fills it."""
        return {t.replace("{}", word): (t, word) for word in self.words for t in self.templates}

    @property
    def vague(self) -> tuple[str, ...]:
        """Prompts that leave open what the concept would name: every template with a generic word, and the empty prompt."""
        filled = (" ".join(t.replace("{}", word).split()) for word in self.generic for t in self.templates)
        return tuple(dict.fromkeys([*filled, ""]))


def prompts_dir() -> Path:
    """Where the presets lie: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "prompts"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "prompts"


def presets() -> list[Concept]:
    """Every preset, by name."""
    return [
        _read(file, read_toml(file)) for file in (prompts_dir() / f"{name}{PRESET_FILE}" for name in preset_names())
    ]


def preset_names() -> tuple[str, ...]:
    """The names of the presets, sorted; nothing is read."""
    return tuple(sorted(file.stem for file in prompts_dir().glob(f"*{PRESET_FILE}")))


def listed_names() -> tuple[str, ...]:
    """The presets' names, and those of the embedded world's concepts."""
    from .tiny import world

    return (*preset_names(), *(name for concepts in world.CATEGORIES.values() for name in concepts))


def preset(name: str, anchor: str | None = None) -> Concept | None:
    """The preset of a name, or the user's own of a path, with another anchor if one is given; None where there is none.

    Raises:
        UserError: a path, see `names_file`, where no file lies that can be used.
    """
    if names_file(name):
        return _read(Path(name), _own(name), anchor)
    file = prompts_dir() / f"{name}{PRESET_FILE}"
    return _read(file, read_toml(file), anchor) if file.exists() else None


def findings(text: str) -> list[Defect]:
    """Everything that is wrong with a preset, by its path or its name; see `preset_check.check`.

    Raises:
        UsageError: there is none, or it is no TOML.
    """
    file = Path(text) if names_file(text) else prompts_dir() / f"{text}{PRESET_FILE}"
    if not names_file(text) and not file.exists():
        raise UsageError(
            f"--check {text!r} is no preset{did_you_mean(text, preset_names())} (see sdscissor concepts): name one, or the path of a .toml"
        )
    try:
        return check(read_toml(file, "--check"))
    except UserError as error:
        raise UsageError(str(error)) from None


def _own(text: str) -> dict[str, Any]:
    """A user's own preset as its TOML has it.

    Raises:
        UserError: it is not there, or cannot be used.
    """
    if not (text.endswith(PRESET_FILE) and Path(text).exists()):
        raise UserError(
            f"--concept {printable(text)} is a path, by its beginning or its .toml, and no .toml file lies there: name one that does, "
            "or a preset (sdscissor concepts)"
        )
    data = read_toml(Path(text), "--concept")
    if unusable := [one for one in check(data) if one.unusable]:
        more = f"; and {len(unusable) - 1} more" if len(unusable) > 1 else ""
        raise UserError(
            f"--concept {printable(f'{text}: {unusable[0]}')} (sdscissor concepts --check {printable(text)}{more})"
        )
    return data


def free_text(text: str, anchor: str) -> Concept:
    """Any text as a concept, in general templates."""
    pairs = tuple((template.format(text), template.format(anchor)) for template in FREE_TEMPLATES)
    summary = f"The text {text!r}."
    return Concept(text, text, "text", summary, False, anchor, pairs, (), (), (text,), FREE_TEMPLATES, (), GENERIC)


def _read(file: Path, data: dict[str, Any], anchor: str | None = None) -> Concept:
    words, templates = data["words"], data["templates"]
    pairs = [(t.replace(SLOT, word), t.replace(SLOT, anchor or words[word])) for word in words for t in templates]
    texts = {key: tuple(data.get(key, ())) for key in ("paraphrases", "generic", "beside")}
    translations = tuple((language, tuple(prompts)) for language, prompts in data.get("translations", {}).items())
    return Concept(
        file.stem, data.get("title", file.stem), data.get("kind", "own"), data.get("summary", f"What {file.name} names."),
        data.get("explicit", True), anchor or next(iter(words.values())), tuple(pairs), tuple(data.get("neighbours", ())),
        tuple(data.get("labels", ())), tuple(words), tuple(templates), **texts, translations=translations,
        judge=data.get("judge", ""), judge_names=tuple(data.get("judge_names", {}).items()),
    )  # fmt: skip


def general_captions() -> list[str]:
    """The package's own diverse captions."""
    return read_prompts(prompts_dir() / "general.txt", "")


def unlisted_words() -> list[str]:
    """Nouns that no preset, no general caption and no word of the embedded world names; no training ever reads them."""
    return (prompts_dir() / "unlisted.txt").read_text().split()


def read_prompts(path: Path, flag: str) -> list[str]:
    """One prompt a line, or the column `prompt` of a CSV; blank ones are skipped.

    Lines end with LF or CR LF alone: whatever else Python takes for an end (U+2028, a vertical tab) is a part of a prompt.

    Raises:
        UserError: unreadable or empty file, or a CSV without that column.
    """
    text = read_text(path, flag)
    header = [cell.strip().strip('"') for cell in text.partition("\n")[0].split(",")]
    if path.suffix.lower() == ".csv" or (
        len(header) > 1 and "prompt" in header and not any(" " in cell for cell in header)
    ):
        lines = _column(path, flag, text)
    else:
        lines = text.replace("\r\n", "\n").split("\n")
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise UserError(f"{flag} {path} holds no prompt: write one a line")
    return prompts


def _column(path: Path, flag: str, text: str) -> list[str]:
    """The column `prompt` of a CSV."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if "prompt" in (reader.fieldnames or ()):
            return [row["prompt"] or "" for row in reader]
        columns = ", ".join(map(printable, reader.fieldnames or ())) or "none"
    except csv.Error as error:
        raise UserError(
            f"{flag} {path} is no sound CSV ({reason(error)}): mend it, or name a text with one prompt a line"
        ) from None
    raise UserError(
        f"{flag} {path} is a CSV without a column 'prompt' (it has {columns[:200]}): name the column so, or give a text with one prompt a line"
    )


def shuffled(items: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` items in a seeded random order; every item is used before any is used again."""
    rng = np.random.default_rng(seed)
    order = [int(i) for _ in range(math.ceil(count / len(items))) for i in rng.permutation(len(items))]
    return [items[i] for i in order[:count]]


def filled(concept: Concept) -> list[tuple[str, str]]:
    """Every template of a concept, with its slot and filled with each of its words."""
    return [(template, template.replace(SLOT, word)) for word in concept.words for template in concept.templates]


def without_conflicts(concepts: Sequence[Concept], erased: Sequence[str] = ()) -> list[Concept]:
    """Concepts that are erased in one run, without the pairs whose neutral prompt names another of them or what is `erased` already.

    "A red circle" for "a red square" would keep red alive while red is erased.

    Raises:
        UserError: no pair of a concept is left, as when its anchor is erased too.
    """
    found = []
    for concept in concepts:
        others = {word for name in erased for word in names_of(name)}
        others |= {word for other in concepts if other is not concept for word in other.words}
        pairs = tuple(pair for pair in concept.pairs if not any(names(pair[1], word) for word in others))
        if not pairs:
            raise UserError(
                f"--concept {concept.name}: all that takes its place ({concept.anchor}) is erased too: choose another --anchor"
            )
        found.append(dataclasses.replace(concept, pairs=pairs))
    return found


def called(concept: Concept) -> tuple[str, ...]:
    """What prompts call a concept."""
    return (concept.name, *concept.words, *concept.paraphrases)


def check_distinct(concepts: Sequence[Concept]) -> None:
    """Refuse different concepts of one name: reports and folders could not tell them apart.

    Raises:
        UserError: naming it.
    """
    first = {concept.name: concept for concept in reversed(concepts)}
    if other := next((concept for concept in concepts if first[concept.name] != concept), None):
        raise UserError(f"--concept {other.name} is the name of two different concepts: rename one of the files")


def names_of(name: str) -> tuple[str, ...]:
    """What prompts call a concept, given as with --concept: a preset's words and paraphrases, any other concept's name."""
    return _names_of(name, Path(name).stat().st_mtime_ns if name.endswith(PRESET_FILE) else 0)


@cache
def _names_of(name: str, changed: int) -> tuple[str, ...]:
    """As `names_of`; `changed`, in nanoseconds, is when its file was."""
    found = preset(name) if changed or not names_file(name) else None
    return called(found) if found else (name,)
