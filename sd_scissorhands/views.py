"""What the terminal shows of each kind of result: tables and lines on stderr."""

from __future__ import annotations

import base64
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path

from .drawing import Sheet
from .evaluation.gone import proves_nothing
from .evaluation.metrics import METRICS
from .report.comparison_page import ORIGINAL, PLAIN, figures, grouped, remarks
from .report.declared import figure
from .report.phrases import between, judge_errs, known, percent, worded
from .results.attack import AttackResult
from .results.base import Record
from .results.comparison import ComparisonResult, RecipeLine
from .results.demo import DemoResult
from .results.erase import EraseResult
from .results.evaluation import ConceptEvaluation, NudityCounts, NudityEvaluation
from .results.forecast import Forecast
from .results.forget import ForgetResult
from .results.rehearsal import Rehearsal
from .results.suite import SuiteResult
from .terminal import Column, console, lines, table

EMA_WORDS = {
    "used": "used, the others lie beside them",
    "beside, not used": "not used: they stand beside those that are",
}
NAME, TEXT = "name", "text"  # kinds of columns
JUDGED = (
    Column("figure", NAME, "figure"), Column("original", small="original"), Column("model", small="model"),
    Column("95 %", small="95 %"), Column("another seed"), Column("n"),
)  # fmt: skip
ATTACKED = (
    Column("attack", TEXT, "attack"), Column("model", small="model shows it"), Column("original", small="original does"),
    Column("95 %"), Column("n"), Column("seconds"), Column("verdict", TEXT, "verdict"),
)  # fmt: skip
FORGOTTEN = (
    Column("figure", NAME, "figure"), Column("original", small="original"), Column("retrained", small="retrained"),
    Column("model", small="model"), Column("95 %"), Column("n"),
)  # fmt: skip
INLINE = ("iTerm.app", "WezTerm", "mintty", "vscode")  # terminals that show pictures


@singledispatch
def view(result: Record) -> None:
    """Tables and lines of a result."""
    lines(result.to_json())


@view.register
def _erased(result: EraseResult) -> None:
    trimmed, scope, rate = result.trimmed, result.scope_size, result.conflict_rate
    proof, verb = result.proof, {None: "not verified", True: "erased", False: "NOT erased"}[result.converged]
    lines({
        verb: _replaced(result.concepts, result.anchors),
        "proof": proof and proof.sentence,
        "remedy": proof and (proof.remedy or None),
        "recipe": result.recipe,
        "pairs": None if result.pair_correlation is None else f"correlation {result.pair_correlation:.2f}",
        "EMA weights": EMA_WORDS.get(result.ema or ""),
        "trimmed": f"{trimmed:,} of {scope:,} weights in scope ({trimmed / scope:.3%})" if trimmed else "nothing",
        "repaired": f"{result.steps} steps" + ("" if rate is None else f", a conflict in {rate:.0%} of them"),
        "seconds": result.seconds,
        "model": result.model_dir,
        "left out": result.left_out,
        "delta": result.delta and f"{result.delta} ({result.delta_bytes:,} bytes)",
        "exported": result.exported,
        "note": result.export_note,
        "hub": result.hub,
        "report": result.report,
        "next": result.folder and f"sdscissor eval --model {shlex.quote(str(result.folder))} --concept {shlex.quote(result.concepts[0])}",
    })  # fmt: skip


@view.register
def _drawn(result: Sheet) -> None:
    inline(Path(result.picture))
    blurred = "blurred (--no-blur shows them as they are)" if result.blurred else None
    lines({"rows": ", ".join(result.models), "pictures": blurred, "drawn": result.picture})


def inline(picture: Path) -> None:
    """Show a PNG in a terminal that can (iTerm2's protocol, which WezTerm, Konsole and others speak too); else nothing."""
    if console.is_terminal and os.environ.get("TERM_PROGRAM") in INLINE:
        data = base64.b64encode(picture.read_bytes()).decode()
        sys.stderr.write(f"\033]1337;File=inline=1;preserveAspectRatio=1:{data}\a\n")


@view.register
def _judged(result: ConceptEvaluation) -> None:
    rows = []
    for name, value in result.figures.items():
        if value is not None:
            unit, by = figure(name).unit, f"\n(by {result.by[name]})" if name in result.by else ""
            seed = result.another_seed.get(name)
            ends = [worded(end, unit) for end in result.intervals.get(name) or ()]
            beside = "" if seed is None else worded(seed, unit)
            cells = [worded(result.original.get(name), unit), worded(value, unit), " to ".join(ends), beside]
            rows.append([name + by, *cells, str(result.n.get(name, ""))])
    retained = result.kept or {}
    for name, _ in METRICS:
        if known(value := retained.get(name)):
            rows.append([name, "", f"{value:.3g}", "", f"{retained['floor'][name]:.3g}", str(retained["n"])])
        elif isinstance(value, Mapping):
            rows.append([name, f"{value['original']:.3g}", f"{value['model']:.3g}", "", "", str(retained["n"])])
    table(JUDGED, rows, all_in=result.report)
    lines({"verdict": result.verdict, "judge": judge_errs(result.judge_error)})
    _conclude(result, result.collapse.says)


@view.register
def _counted(result: NudityEvaluation) -> None:
    title = f"{result.images} pictures, NudeNet {result.nudenet}, score >= {result.threshold}"
    sides: dict[str, NudityCounts | NudityEvaluation] = {"baseline": result.baseline} if result.baseline else {}
    sides["model"] = result
    columns = [Column("label", NAME, "label")]
    columns += [
        Column(f"{name} {what}", small=f"{name} {what}" if what == "pictures" else "")
        for name in sides for what in ("boxes", "pictures")
    ]  # fmt: skip
    rows = []
    for label in sorted({label for side in sides.values() for label in side.boxes}):
        seen = [found.get(label, 0) for side in sides.values() for found in (side.boxes, side.images_with)]
        rows.append([label, *map(str, seen)])
    for name, key in (("any exposed", "all"), ("without feet, belly, armpits", "core")):
        cells = [side.exposed[key] for side in sides.values()]
        rows.append([name, *(str(count) for cell in cells for count in (cell.boxes, cell.images))])
    table(columns, rows, title=title, all_in=result.report)
    lines({"verdict": proves_nothing(result) or None})
    _conclude(result, result.collapse.says, result.calibration.says if result.calibration else "")


def _conclude(result: ConceptEvaluation | NudityEvaluation, *remarks: str) -> None:
    """What must be known beside the figures, and where the page is."""
    for remark in filter(None, remarks):
        console.print(remark, style="bold red" if remark.startswith("COLLAPSED") else "", highlight=False)
    lines({"report": result.report})


@view.register
def _attacked(result: AttackResult) -> None:
    low, high = result.interval_after or (None, None)
    original, back = result.original, result.steps_back
    steps = (
        f"{what} pictures: {f'back after {back[what]}' if back[what] else 'not back within ' + str(back['most'])}"
        for what in ("concept", "benign") if back
    )  # fmt: skip
    utility = {"IRA": (result.IRA, result.original_IRA), "CRA": (result.CRA, result.original_CRA)}
    rest = (
        f"{name} {percent(now)} (original {percent(was)})" for name, (now, was) in utility.items() if now is not None
    )
    lines({
        "attack": f"{result.attack} on {result.concept}, n = {result.n}",
        "before": f"{percent(result.asr_before)} of pictures show it (original: {percent(original.asr_before)})",
        "after": f"{percent(result.asr_after)}, 95 % {percent(low)} to {percent(high)} (original: {percent(original.asr_after)})",
        "verdict": result.verdict,
        "steps": ", ".join(steps) or None,
        **result.figures,
        "the rest": ", ".join(rest) or "not measured",
        "seconds": result.seconds,
        "report": result.report,
    })  # fmt: skip


@view.register
def _suite(result: SuiteResult) -> None:
    rows = []
    for row in result.attacks:
        kind = f": {row.kind}" if row.kind and row.asr_after else ""
        cells = [percent(row.asr_after), percent(row.original_asr_after), between(row.interval_after), str(row.n)]
        rows.append([row.title + kind, *cells, f"{row.seconds or 0:.0f}", row.verdict])
    title = f"{result.suite} suite on {result.concept}: pictures that show it, the worst first"
    table(ATTACKED, rows, title=title, all_in=result.report)
    lines({
        "worst": percent(result.asr_after), "attacks that succeed on the original": percent(result.working),
        "seconds": result.seconds, "report": result.report,
    })  # fmt: skip


@view.register
def _forgotten(result: ForgetResult) -> None:
    rows = []
    for name, value in result.figures.items():
        others = [_figure(name, (side or {}).get(name)) for side in (result.original, result.retrained)]
        low, high = (_figure(name, end) for end in result.intervals[name])
        rows.append([name, *others, _figure(name, value), f"{low} to {high}", str(result.n[name])])
    table(FORGOTTEN, rows, title=f"forgot {result.forget}", all_in=result.report)
    lines({"recipe": result.recipe, "seconds": result.seconds, "model": result.model_dir, "report": result.report})


def _figure(name: str, value: float | None) -> str:
    """A classifier's figure in its unit."""
    if value is None:
        return "-"
    return f"{value:g} steps" if figure(name).unit == "number" else f"{value:.1%}"


@view.register
def _compared(result: ComparisonResult) -> None:
    for group, recipes in grouped(result.table).items():
        _recipes_table(group, recipes, result)
    lines({"figures": "mean over the runs, then the smallest, the largest and n; shares in %"})
    for row in result.rows:
        if row.failed:
            where = f"diverged: {row.recipe} on {row.target}, seed {row.seed}: {row.failed}"
            console.print(where, style="bold red")
        if row.nothing_to_erase and row.recipe == ORIGINAL:
            nothing = f"nothing to erase on {row.target}, seed {row.seed}: the original shows it in under half of the pictures"
            lines({"note": nothing})
    lines({"rows": f"{result.folder}/rows.csv", "report": result.report})


def _recipes_table(group: str, recipes: Sequence[RecipeLine], result: ComparisonResult) -> None:
    """The rows of one group by recipe, with their spread."""
    columns = figures(result, group)
    rows = []
    for line in recipes:
        cells = []
        for name, column in columns.items():
            one = line.figures.get(name)
            values = [] if one is None else [one.mean] if one.runs == 1 else [one.mean, one.least, one.most]
            parts = [worded(value, column.unit).removesuffix("%") for value in values] or ["–"]
            cells.append("\n".join([*parts, f"n {one.n}"] if one and one.n else parts))
        notes = remarks(line).split("; ") if line.recipe not in PLAIN else []
        rows.append(["\n".join([line.recipe, *notes]), *cells])
    headings = (Column(column.title, small=column.in_words) for column in columns.values())
    table([Column("recipe", NAME, "recipe"), *headings], rows, title=group, all_in=result.report)


@view.register
def _expected(result: Forecast) -> None:
    lines({
        "would erase": _replaced(result.concepts, result.anchors),
        "from": f"{result.model} ({result.weights_sha256[:12]})",
        "EMA weights": EMA_WORDS.get(result.ema),
        "scope": f"{result.scope}: {result.scope_size:,} weights in {result.tensors} tensors",
        "would trim": f"{result.trimmed:,} weights",
        "memory at most": ", ".join(f"{stage} {b / 2**30:.1f} GiB" for stage, b in result.peak_bytes.items()),
        "time": ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
        + " (as the last of its kind here)" * result.learned,
        "evaluations": ", ".join(f"{stage} {count:,}" for stage, count in result.evaluations.items()),
    })  # fmt: skip


@view.register
def _rehearsed(result: Rehearsal) -> None:
    took, expected = (
        [f"{name} {seconds:.0f} s" for name, seconds in each.items()] for each in (result.rehearsed, result.seconds)
    )
    minutes = sum(result.seconds.values()) / 60
    view(result.forecast)
    lines({
        "rehearsed": f"{', '.join(took)}: all of it works; this was no run, and nothing of it is left",
        "judges": ", ".join(result.judges),
        "writes to": f"{result.output_dir}, where files can be written",
        "time to expect": f"{', '.join(expected)}; about {minutes:.0f} minutes in all, judging and loading apart",
    })  # fmt: skip


@view.register
def _shown(result: DemoResult) -> None:
    names = [name for name, metric in METRICS if metric.question and name in result.rows[0].figures]
    headings = [figure(name) for name in (*names, "asr", "seconds")]
    rows = []
    for row in result.rows:
        shares = [*(row.figures[name] for name in names), row.asr]
        rows.append([row.name, *map(percent, shares), f"{row.seconds:.0f}"])
    columns = [Column("", NAME, " "), *(Column(one.title, small=one.in_words) for one in headings)]
    table(columns, rows, all_in=result.report)
    attacks = [
        [name, percent(one.asr_after), percent(one.original), one.verdict] for name, one in result.attacks.items()
    ]
    table([Column("attack", NAME), Column("back in"), Column("original"), Column("verdict", TEXT)], attacks)
    lines({"erased": result.concept, "model": result.model_dir, "report": result.report})


def _replaced(concepts: Sequence[str], anchors: Sequence[str]) -> str:
    return ", ".join(f"{concept} -> {anchor}" for concept, anchor in zip(concepts, anchors, strict=True))
