"""The table of the original, the erased model and its controls: a row a model, a column a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .found import Found
from .phrases import between, known, number, percent
from .verdict import broken, collapsed

FIGURES = {
    "UA": "UA", "UA_synonyms": "UA synonyms", "UA_generic": "UA generic", "IRA": "IRA", "CRA": "CRA", "CRA_forget": "CRA on forget prompts",
}  # fmt: skip
MEANING = {
    "UA": "unlearning accuracy: pictures for prompts that name the concept in which the judge no longer sees it; higher is better.",
    "UA_synonyms": "the same for prompts that use other words for the concept, which the erasure was never shown; higher is better.",
    "UA_generic": "the same for prompts that leave open what the concept would say, such as an object, or that say nothing; higher is better.",
    "IRA": "in-domain retain accuracy: pictures for prompts that name a sibling of the concept, such as another shape, in which the judge sees it; higher is better.",
    "CRA": "cross-domain retain accuracy: the other words of those prompts, such as colours, that are drawn right (n counts words); higher is better.",
    "CRA_forget": "the same for prompts that name the concept: whether all but the concept is still drawn; higher is better.",
    "exposed": "pictures in which NudeNet sees an exposed part of a body; lower is better.",
    "ASR": "attack success rate: attacked pictures in which the judge sees the concept again; lower is better. Small print: 95% interval.",
    "relearn": "steps of fine-tuning on pictures of the concept until it is drawn again; more is better.",
    "trimmed weights": "weights reinitialised before the repair, out of those that were allowed to change (the scope).",
    "conflict rate": "repair steps whose gradient would have undone the forgetting and was projected; a dash where nothing is projected.",
}
Cell = tuple[str, str]  # what it says, and the small print under it
DASH: Cell = ("–", "")


@dataclass(frozen=True)
class Column:
    """A figure of every model."""

    header: str
    note: str
    meaning: tuple[str, str] | None  # the term, and what it means
    cells: list[Cell]  # the original's first, then the run's, then the controls'


@dataclass(frozen=True)
class Row:
    """A model's name and what is to be said about it."""

    name: str
    note: str
    main: bool = False


def columns(run: Found, controls: list[Found]) -> list[Column]:
    """Every figure that any of the models has."""
    models = [run, *controls]
    return [*_judged(run, models), *_exposed(run, models), *_attacks(models), *([] if run.alone else _costs(models))]


def rows(run: Found, controls: list[tuple[Found, str]]) -> list[Row]:
    """The models, in the order of the cells."""
    named = [(control.path.name, control, how) for control, how in controls]
    return [
        Row("original", ""),
        Row("model" if run.alone else "erased", _note(run, ""), main=True),
        *(Row(name, _note(one, how, one.problems)) for name, one, how in named),
    ]


def _note(one: Found, how: str, problems: list[str] | None = None) -> str:
    parts = [how, "COLLAPSED" if collapsed(one) else "", "" if one.summaries else "not evaluated yet"]
    return "; ".join(part for part in parts + (problems or []) if part)


def _judged(run: Found, models: list[Found]) -> list[Column]:
    found = []
    labels = {summary["place"]: run.label(summary) for summary in run.judged}
    for place, label in (labels or ({} if run.nudenets else {"canvas": ""})).items():
        ours = run.evaluations.get(place, {})
        for key, header in FIGURES.items():
            if ours.get("kind") == "concept" and key not in ours["figures"]:
                continue
            note = f"n = {number(ours['n'][key])}" if known(ours.get("n", {}).get(key)) else ""
            by = f"by {ours['by'][key]}" if key in ours.get("by", {}) else ""
            note = ", ".join(part for part in (label if len(labels) > 1 else "", note, by) if part)
            cells: list[Cell] = [(percent(ours.get("original", {}).get(key)), "")]
            for one in models:
                summary = one.evaluations.get(place, {"figures": {}, "intervals": {}})
                cells.append((percent(summary["figures"].get(key)), between(summary["intervals"].get(key))))
            found.append(Column(header, note, (header, MEANING[key]), cells))
    return found


def _exposed(run: Found, models: list[Found]) -> list[Column]:
    found = []
    for ours in run.nudenets:
        place, before = ours["place"], ours["baseline"] if isinstance(ours["baseline"], dict) else {}
        cells = [_exposed_cell(before), *(_exposed_cell(one.evaluations.get(place, {})) for one in models)]
        note, header = f"n = {number(ours.get('images'))}", f"exposed, {run.label(ours)}"
        found.append(Column(header, note, ("exposed", MEANING["exposed"]), cells))
    return found


def _exposed_cell(summary: dict[str, Any]) -> Cell:
    exposed = summary.get("exposed")
    every = exposed.get("all") if isinstance(exposed, dict) else None
    interval = every.get("images_interval") if isinstance(every, dict) else None
    return number(summary.get("any_exposed")), between(interval, share=False)


def _attacks(models: list[Found]) -> list[Column]:
    found = []
    for name in dict.fromkeys(name for one in models for name in one.attacks):
        owner = next(one for one in models if name in one.attacks)
        first = owner.attacks[name]
        note = f"n = {number(first['n'])}" if known(first.get("n")) else ""
        if first["attack"] == "relearn":
            cells = [DASH, *(_steps_back(one.attacks.get(name)) for one in models)]
            found.append(
                Column(
                    owner.label(first).replace("relearning", "relearn steps"),
                    note,
                    ("relearn steps", MEANING["relearn"]),
                    cells,
                )
            )
            continue
        original = first["original"]
        cells = [(percent(original.get("asr_after")), between(original.get("interval_after")))]
        cells += [_asr(one.attacks.get(name)) for one in models]
        found.append(Column(f"ASR, {owner.label(first)}", note, ("ASR", MEANING["ASR"]), cells))
    return found


def _asr(summary: dict[str, Any] | None) -> Cell:
    if summary is None:
        return DASH
    interval = between(summary.get("interval_after"))
    return percent(summary.get("asr_after")), "attack broken" if broken(summary) else interval


def _steps_back(summary: dict[str, Any] | None) -> Cell:
    if summary is None:
        return DASH
    back = summary["steps_back"]
    benign = f"benign pictures: {steps(back, 'benign')}" if back.get("most") is not None else ""
    return steps(back, "concept"), benign


def steps(back: dict[str, Any], which: str) -> str:
    """After how many steps it was back, in a word."""
    if known(back.get(which)):
        return number(back[which])
    return f"not within {number(back['most'])}" if known(back.get("most")) else "–"


def returned(back: dict[str, Any], which: str) -> str:
    """The same as part of a sentence."""
    return f"back after {number(back[which])} steps" if known(back.get(which)) else f"{steps(back, which)} steps"


def _costs(models: list[Found]) -> list[Column]:
    results = [one.result for one in models]
    trimmed = [(number(one.get("trimmed")), _of_scope(one)) for one in results]
    conflicts = [(percent(one.get("conflict_rate")), "") for one in results]
    seconds = [(number(one.get("seconds")), "") for one in results]
    parts = [("trimmed weights", trimmed), ("conflict rate", conflicts), ("seconds", seconds)]
    return [
        Column(header, "", (header, MEANING[header]) if header in MEANING else None, [DASH, *cells])
        for header, cells in parts
    ]


def _of_scope(result: dict[str, Any]) -> str:
    trimmed, scope = result.get("trimmed"), result.get("scope_size")
    return f"{percent(trimmed / scope)} of scope" if known(trimmed) and trimmed and known(scope) and scope else ""
