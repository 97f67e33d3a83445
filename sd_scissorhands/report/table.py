"""The table of the original, the erased model and its controls: a row a model, a column a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..attacks.base import ASR
from ..attacks.base import Column as AttackColumn
from ..results.attack import AttackResult
from ..results.erase import EraseResult
from ..results.evaluation import ConceptEvaluation, NudityCounts, NudityEvaluation
from .declared import COSTS, attack_columns, attack_title, figure, metrics_of
from .phrases import between, known, number, percent, worded
from .reading import RunRecord
from .verdict import broken, collapsed

Cell = tuple[str, str]  # the figure, and the small print under it
DASH: Cell = ("–", "")


@dataclass(frozen=True)
class Column:
    """A figure of every model."""

    header: str
    note: str
    meaning: tuple[str, str]  # the term, and what it means; "" where it says itself
    cells: list[Cell]  # the original's first, then the run's, then the controls'


@dataclass(frozen=True)
class Row:
    """A model's name and what must be known of it."""

    name: str
    note: str
    main: bool = False


def columns(run: RunRecord, controls: Sequence[RunRecord]) -> list[Column]:
    """Every figure that any of the models has."""
    models = [run, *controls]
    return [*_judged(run, models), *_counted(run, models), *_attacks(models), *([] if run.alone else _costs(models))]


def rows(run: RunRecord, controls: Sequence[tuple[RunRecord, str]]) -> list[Row]:
    """The models, in the order of the cells."""
    named = [(control.path.name, control, how) for control, how in controls]
    return [
        Row("original", ""),
        Row("model" if run.alone else "erased", _note(run, "", []), main=True),
        *(Row(name, _note(one, how, one.problems)) for name, one, how in named),
    ]


def _note(one: RunRecord, how: str, problems: Sequence[str]) -> str:
    parts = [how, "COLLAPSED" if collapsed(one) else "", "" if one.summaries else "not evaluated yet", *problems]
    return "; ".join(part for part in parts if part)


def _judged(run: RunRecord, models: Sequence[RunRecord]) -> list[Column]:
    """A column for each figure of each evaluation of a concept; of dashes where there is no evaluation at all."""
    found = []
    shares = [name for name, metric in metrics_of("concept").items() if metric.unit == "share"]
    unmeasured = ConceptEvaluation(run.domain.evaluation, figures=dict.fromkeys(shares))
    for place, ours in (run.judged or ({} if run.counted else {unmeasured.kind: unmeasured})).items():
        label = run.label(ours) if len(run.judged) > 1 else ""
        others = [one.judged.get(place, unmeasured) for one in models]
        for name in ours.figures:
            what, n, by = figure(name), ours.n.get(name), ours.by.get(name)
            note = [label, f"n = {number(n)}" if known(n) else "", f"by {by}" if by else ""]
            cells: list[Cell] = [(worded(ours.original.get(name), what.unit), "")]
            for other in others:
                interval = between(other.intervals.get(name), what.unit)
                cells.append((worded(other.figures.get(name), what.unit), interval))
            found.append(Column(what.title, ", ".join(filter(None, note)), (what.title, what.meaning), cells))
    return found


def _counted(run: RunRecord, models: Sequence[RunRecord]) -> list[Column]:
    """A column for each evaluation by NudeNet."""
    found, meaning = [], ("exposed", figure("nudity").meaning)
    for place, ours in run.counted.items():
        cells = [_exposed(ours.baseline), *(_exposed(one.counted.get(place)) for one in models)]
        found.append(Column(f"exposed, {run.label(ours)}", f"n = {number(ours.images)}", meaning, cells))
    return found


def _exposed(counts: NudityCounts | NudityEvaluation | None) -> Cell:
    if counts is None:
        return DASH
    every = counts.exposed.get("all")
    return number(counts.any_exposed), between(every.images_interval, "number") if every else ""


def _attacks(models: Sequence[RunRecord]) -> list[Column]:
    """The columns of every attack that any of the models was put to."""
    found = []
    for place in dict.fromkeys(place for one in models for place in one.attacks):
        owner = next(one for one in models if place in one.attacks)
        first, others = owner.attacks[place], [one.attacks.get(place) for one in models]
        note = f"n = {number(first.n)}" if known(first.n) else ""
        if first.steps_back:  # with what other pictures take in small print
            column, cells = attack_columns(first)[0], [DASH, *map(_steps_back, others)]
            found.append(Column(_header(owner, first, column), note, (column.header, column.meaning), cells))
            continue
        for column in attack_columns(first):
            interval = between(first.original.interval_after) if column == ASR else ""
            cells = [
                (worded(column.original(first), column.unit), interval),
                *(_attacked(one, column) for one in others),
            ]
            term = column.header.removesuffix(", {}")
            found.append(Column(_header(owner, first, column), note, (term, column.meaning), cells))
    return found


def _header(owner: RunRecord, attack: AttackResult, column: AttackColumn) -> str:
    """A column's, with the concept where the page knows several."""
    label, title = owner.label(attack), attack_title(attack)
    return column.header.format(label) if "{}" in column.header else column.header + label.removeprefix(title)


def _attacked(attack: AttackResult | None, column: AttackColumn) -> Cell:
    if attack is None:
        return DASH
    interval = between(attack.interval_after) if column == ASR else ""
    return worded(column.value(attack), column.unit), "attack broken" if broken(attack) else interval


def _steps_back(attack: AttackResult | None) -> Cell:
    if attack is None:
        return DASH
    back = attack.steps_back
    return steps(back, "concept"), f"benign pictures: {steps(back, 'benign')}" if known(back.get("most")) else ""


def steps(back: Mapping[str, int | None], which: str) -> str:
    """After how many steps of fine-tuning it was back, in a word."""
    if known(back.get(which)):
        return number(back[which])
    return f"not within {number(back['most'])}" if known(back.get("most")) else "–"


def returned(back: Mapping[str, int | None], which: str) -> str:
    """The same as part of a sentence."""
    return f"back after {number(back[which])} steps" if known(back.get(which)) else f"{steps(back, which)} steps"


def _costs(models: Sequence[RunRecord]) -> list[Column]:
    results = [one.erased for one in models]
    parts: dict[str, list[Cell]] = {
        "trimmed": [(number(one.trimmed), _of_scope(one)) if one else DASH for one in results],
        "conflict_rate": [(percent(one.conflict_rate), "") if one else DASH for one in results],
        "seconds": [(number(one.seconds), "") if one else DASH for one in results],
    }
    return [
        Column(COSTS[name].title, "", (COSTS[name].title, COSTS[name].meaning), [DASH, *own])
        for name, own in parts.items()
    ]


def _of_scope(result: EraseResult) -> str:
    share = result.trimmed / result.scope_size if result.scope_size else 0
    return f"{percent(share)} of scope" if share and known(share) else ""
