"""The table of the original, the erased model and its controls: a row a model, a column a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..attacks.base import ASR, AttackMetric
from ..results.attack import AttackResult
from ..results.evaluation import ConceptEvaluation, NudityCounts, NudityEvaluation, SecondJudge
from .declared import Figure, attack_columns, attack_title, figure
from .phrases import between, known, number, percent, worded
from .reading import RunRecord
from .verdict import broken, collapsed

Cell = tuple[str, ...]  # the figure, and lines of small print under it
DASH: Cell = ("–",)


@dataclass(frozen=True)
class TableColumn:
    """A figure of every model."""

    header: str
    note: str
    figure: Figure  # its title and meaning
    cells: list[Cell]  # the original's first, then the run's, then the controls'


@dataclass(frozen=True)
class TableRow:
    """A model's name and what must be known of it."""

    name: str
    note: str
    main: bool = False


def columns(run: RunRecord, controls: Sequence[RunRecord]) -> list[TableColumn]:
    """Every figure that any of the models has."""
    models = [run, *controls]
    found = [*_judged(run, models), *_counted(run, models), *_attacks(models), *([] if run.alone else _costs(models))]
    return [column for column in found if any(cell[0] != DASH[0] for cell in column.cells)]


def rows(run: RunRecord, controls: Sequence[tuple[RunRecord, str]]) -> list[TableRow]:
    """The models, in the order of the cells."""
    named = [(control.path.name, control, how) for control, how in controls]
    return [
        TableRow("original", ""),
        TableRow("model" if run.alone else "erased", _note(run, "", []), main=True),
        *(TableRow(name, _note(one, how, one.problems)) for name, one, how in named),
    ]


def _note(one: RunRecord, how: str, problems: Sequence[str]) -> str:
    parts = [how, "COLLAPSED" if collapsed(one) else "", "" if one.summaries else "not evaluated yet", *problems]
    return "; ".join(part for part in parts if part)


def _judged(run: RunRecord, models: Sequence[RunRecord]) -> list[TableColumn]:
    """A column for each figure of each evaluation of a concept."""
    found, unmeasured = [], ConceptEvaluation("")
    for place, ours in run.judged.items():
        label = run.label(ours) if len(run.judged) > 1 else ""
        others = [one.judged.get(place, unmeasured) for one in models]
        for name in ours.figures:
            what, by = figure(name), f"by {ours.by[name]}" if name in ours.by else ""
            note = ", ".join(filter(None, [label, _n(ours.n.get(name)), by]))
            second = ours.second or SecondJudge({})
            notes = {"second judge": second.original.get(name), "another seed": ours.another_seed.get(name)}
            before = worded(ours.original.get(name), what.unit)
            cells: list[Cell] = [(before, *(_beside(whose, value, what) for whose, value in notes.items()))]
            for other in others:
                by_second = (other.second or SecondJudge({})).figures.get(name)
                shown = worded(other.figures.get(name), what.unit), between(other.intervals.get(name), what.unit)
                cells.append((*shown, _beside("second judge", by_second, what)))
            found.append(TableColumn(what.title, note, what, cells))
    return found


def _beside(whose: str, value: float | None, what: Figure) -> str:
    return f"{whose}: {worded(value, what.unit)}" if known(value) else ""


def _n(count: int | None) -> str:
    return f"n = {number(count)}" if known(count) else ""


def _counted(run: RunRecord, models: Sequence[RunRecord]) -> list[TableColumn]:
    """A column for each evaluation by NudeNet."""
    found, what = [], figure("nudity")
    for place, ours in run.counted.items():
        cells = [_exposed(ours.baseline), *(_exposed(one.counted.get(place)) for one in models)]
        found.append(TableColumn(f"{what.title}, {run.label(ours)}", f"n = {number(ours.images)}", what, cells))
    return found


def _exposed(counts: NudityCounts | NudityEvaluation | None) -> Cell:
    if counts is None:
        return DASH
    every = counts.exposed.get("all")
    return number(counts.any_exposed), between(every.images_interval, "number") if every else ""


def _attacks(models: Sequence[RunRecord]) -> list[TableColumn]:
    """The columns of every attack that any of the models was put to."""
    found = []
    for place in dict.fromkeys(place for one in models for place in one.attacks):
        owner = next(one for one in models if place in one.attacks)
        first, label = owner.attacks[place], owner.label(owner.attacks[place])
        concept = label.removeprefix(attack_title(first))  # where the page knows several
        for column in attack_columns(first):
            header = column.header.format(label) if "{}" in column.header else column.header + concept
            what = figure("asr") if column == ASR else Figure(header, column.meaning)
            if first.steps_back:  # one column: the steps on other pictures are in small print
                cells = [DASH, *(_steps_back(one.attacks.get(place)) for one in models)]
                found.append(TableColumn(header, _n(first.n), what, cells))
                break
            interval = between(first.original.interval_after) if column == ASR else ""
            cells = [(worded(column.original(first), column.unit), interval)]
            cells += [_attacked(one.attacks.get(place), column) for one in models]
            found.append(TableColumn(header, _n(first.n), what, cells))
    return found


def _attacked(attack: AttackResult | None, column: AttackMetric) -> Cell:
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


def _costs(models: Sequence[RunRecord]) -> list[TableColumn]:
    """What the erasures changed and took."""
    cells: dict[str, list[Cell]] = {"trimmed": [DASH], "conflict_rate": [DASH], "seconds": [DASH]}
    for one in models:
        result = one.erased
        share = percent(result.trimmed / result.scope_size) if result and result.trimmed and result.scope_size else "–"
        cells["trimmed"].append((number(result and result.trimmed), f"{share} of scope" if share != "–" else ""))
        cells["conflict_rate"].append((percent(result and result.conflict_rate), ""))
        cells["seconds"].append((number(result and result.seconds), ""))
    return [TableColumn(figure(name).title, "", figure(name), own) for name, own in cells.items()]
