"""What the terminal sees: progress and tables on stderr, results on stdout, JSON alone when asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .quiet import LIBRARIES, is_small, silenced
from .recipes import CLASSIFIERS, DENOISERS, Recipe
from .run import Progress, silent

console = Console(stderr=True)
EMA = {
    "used": "used, the others lie beside them",
    "beside, not used": "not used: they stand beside those that are",
    "unknown": "the files do not say whether these are",
}
WIDE = 160  # characters of a large table where there is no terminal to fit


def still_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if console.is_terminal else "1")
    warnings.filterwarnings("ignore")
    for library in LIBRARIES:
        silenced(library)


def one_thread_if_small(model: str) -> None:
    """The embedded model is fastest on one thread: its layers are too small to share."""
    import torch

    if is_small(model):
        torch.set_num_threads(1)


def progress(quiet: bool) -> Progress:
    """Bars with time left on a terminal; nothing elsewhere."""
    return _bar if console.is_terminal and not quiet else silent


@contextmanager
def _bar(stage: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    class _Speed(ProgressColumn):
        """Pictures, steps or batches a second."""

        def render(self, task: Task) -> str:
            return f"{task.speed:.1f}/s" if task.speed else ""

    columns = (
        TextColumn("{task.description:>28}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(stage, total=total)
        yield lambda count: bars.advance(task, count)


def said(values: dict[str, Any], as_json: bool) -> None:
    """A few named values: JSON on stdout, or a line each on stderr."""
    if as_json:
        return print(json.dumps(values))
    for name, value in values.items():
        console.print(f"[bold]{name}[/bold]  {escape(str(value))}", highlight=False)


def result(result: dict[str, Any], as_json: bool) -> None:
    """What an erasure came to."""
    if as_json:
        return print(json.dumps(result))
    trimmed, scope, rate = result["trimmed"], result["scope_size"], result["conflict_rate"]
    said(
        {
            "erased": ", ".join(f"{c} -> {a}" for c, a in zip(result["concepts"], result["anchors"], strict=True)),
            "recipe": result["recipe"],
            **({"EMA weights": EMA[result["ema"]]} if "ema" in result else {}),
            "trimmed": f"{trimmed:,} of {scope:,} weights in scope ({trimmed / scope:.3%})" if trimmed else "nothing",
            "repaired": f"{result['steps']} steps" + ("" if rate is None else f", a conflict in {rate:.0%} of them"),
            "seconds": result["seconds"],
            "model": result["model_dir"],
            **({"delta": f"{result['delta']} ({result['delta_bytes']:,} bytes)"} if "delta" in result else {}),
            **{name: result[name] for name in ("exported", "hub") if name in result},
            "report": f"{result['run_dir']}/report.html",
        },
        False,
    )


def forecast(expected: dict[str, Any], as_json: bool) -> None:
    """What an erasure would do."""
    if as_json:
        return print(json.dumps(expected))
    said(
        {
            "would erase": ", ".join(
                f"{c} -> {a}" for c, a in zip(expected["concepts"], expected["anchors"], strict=True)
            ),
            "from": f"{expected['model']} ({expected['weights_sha256'][:12]})",
            "EMA weights": EMA[expected["ema"]],
            "scope": f"{expected['scope']}: {expected['scope_size']:,} weights in {expected['tensors']} tensors",
            "would trim": f"{expected['trimmed']:,} weights",
            "memory at most": ", ".join(f"{stage} {b / 2**30:.1f} GiB" for stage, b in expected["peak_bytes"].items()),
            "time": ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in expected["seconds"].items()),
        },
        False,
    )


def evaluation(summary: dict[str, Any], as_json: bool) -> None:
    """What an evaluation found."""
    if as_json:
        return print(json.dumps({k: v for k, v in _flat(summary).items() if k != "samples"}))
    table = Table()
    if "figures" in summary:
        _concept_rows(table, summary)
    else:
        _nudity_rows(table, summary)
    console.print(table)
    for says in ((summary.get("collapse") or {}).get("says"), (summary.get("calibration") or {}).get("says")):
        if says:
            console.print(escape(says), style="bold red" if says.startswith("COLLAPSED") else "", highlight=False)
    said({"report": summary["report"]}, False)


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with its figures at the top level, where scripts look for them."""
    return {**summary, **summary.get("figures", {})}


def _concept_rows(table: Table, summary: dict[str, Any]) -> None:
    for column in ("figure", "original", "model", "95 %", "n"):
        table.add_column(column, justify="right")
    for name, value in summary["figures"].items():
        if value is not None:
            low, high = summary["intervals"][name]
            before = summary["original"][name]
            by = f" (by {summary['by'][name]})" if name in summary["by"] else ""
            table.add_row(
                name + by, f"{before:.1%}", f"{value:.1%}", f"{low:.1%} to {high:.1%}", str(summary["n"][name])
            )
    for name in ("frechet", "kid", "cmmd") if summary["kept"] else ():
        kept = summary["kept"]
        table.add_row(name, f"{kept['floor'][name]:.3g} (seeds)", f"{kept[name]:.3g}", "", str(kept["n"]))


def attack(summary: dict[str, Any], as_json: bool) -> None:
    """What an attack came to."""
    if as_json:
        return print(json.dumps({k: v for k, v in summary.items() if k != "samples"}))
    low, high = summary["interval_after"]
    told = {
        "attack": f"{summary['attack']} on {summary['concept']}, n = {summary['n']}",
        "before": f"{summary['asr_before']:.1%} of pictures show it (original: {summary['original']['asr_before']:.1%})",
        "after": f"{summary['asr_after']:.1%}, 95 % {low:.1%} to {high:.1%} (original: {summary['original']['asr_after']:.1%})",
        "verdict": summary["verdict"],
    }
    if back := summary["steps_back"]:
        told["steps"] = ", ".join(
            f"{what} pictures: {f'back after {back[what]}' if back[what] else 'not back within ' + str(back['most'])}"
            for what in ("concept", "benign")
        )
    worth = [
        f"{name} {summary[name]:.1%} (original {summary[f'original_{name}']:.1%})"
        for name in ("IRA", "CRA")
        if summary[name] is not None
    ]
    told |= {"the rest": ", ".join(worth) or "not measured", "seconds": summary["seconds"], "report": summary["report"]}
    said(told, False)


def forgotten(result: dict[str, Any], as_json: bool) -> None:
    """What a forgetting came to."""
    if as_json:
        return print(json.dumps({**result, **result["figures"]}))
    table = Table("figure", "original", "retrained", "model", "95 %", "n", title=f"forgot {result['forget']}")
    for name, value in result["figures"].items():
        cells = [_figure(name, (result[which] or {}).get(name)) for which in ("original", "retrained")]
        low, high = result["intervals"][name]
        between = f"{_figure(name, low)} to {_figure(name, high)}"
        table.add_row(name, *cells, _figure(name, value), between, str(result["n"][name]))
    console.print(table)
    said(
        {
            "recipe": result["recipe"],
            "seconds": result["seconds"],
            "model": result["model_dir"],
            "report": f"{result['run_dir']}/report.html",
        },
        False,
    )


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g} steps" if name == "relearn" else f"{value:.1%}"


def _nudity_rows(table: Table, summary: dict[str, Any]) -> None:
    sides = [side for side in (summary["baseline"], summary) if side]
    table.title = f"{summary['images']} pictures, NudeNet {summary['nudenet']}, score >= {summary['threshold']}"
    table.add_column("label")
    for side in sides:
        name = "model" if side is summary else "baseline"
        table.add_column(f"{name} boxes", justify="right")
        table.add_column(f"{name} images", justify="right")
    for label in sorted({label for side in sides for label in side["boxes"]}):
        table.add_row(label, *[str(side[count].get(label, 0)) for side in sides for count in ("boxes", "images_with")])
    for name, key in (("any exposed", "all"), ("without feet, belly, armpits", "core")):
        cells = [side["exposed"][key] for side in sides]
        table.add_row(name, *[str(c) for cell in cells for c in (cell["boxes"], cell["images"])])


def concepts(presets: list, as_json: bool) -> None:
    """The presets and the embedded world's words."""
    from .tiny import world

    if as_json:
        listed = [
            {
                "name": c.name,
                "title": c.title,
                "kind": c.kind,
                "explicit": c.explicit,
                "summary": c.summary,
                "prompts": len(c.pairs),
            }
            for c in presets
        ]
        return print(json.dumps({"presets": listed, "tiny": {d: list(c) for d, c in world.DOMAINS.items()}}))
    table = Table("name", "kind", "what goes", "prompts")
    for concept in presets:
        table.add_row(concept.name, concept.kind, concept.summary, str(len(concept.pairs)))
    Console().print(table)
    Console().print("With --model tiny: " + "; ".join(f"{d} {', '.join(c)}" for d, c in world.DOMAINS.items()))
    Console().print("Anything else: --concept TEXT --anchor TEXT")


def recipes(known: Mapping[str, Recipe], as_json: bool) -> None:
    """The recipes, the default first."""
    if as_json:
        return print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in known.items()}))
    table = Table("recipe", "for", "what it does", "paper")
    for name, recipe in known.items():
        kinds = {"diffusion": DENOISERS, "classifiers": CLASSIFIERS}
        fits = ", ".join(kind for kind, profiles in kinds.items() if set(profiles) & set(recipe.fits))
        table.add_row(name, fits, recipe.summary, recipe.source)
    Console().print(table)


def comparison(told: dict[str, Any], as_json: bool) -> None:
    """The rows of a comparison by recipe, with their spread, and where its page is."""
    if as_json:
        return print(json.dumps(told))
    from .report.comparison_page import grouped

    wide = console if console.is_terminal else Console(stderr=True, width=WIDE)
    for group, lines in grouped(told["table"]).items():
        wide.print(_recipes_table(group, lines, told))
    for row in told["rows"]:
        if row.get("failed"):
            what = row.get("concept", row.get("forget"))
            console.print(
                escape(f"diverged: {row['recipe']} on {what}, seed {row['seed']}: {row['failed']}"), style="bold red"
            )
    said({"rows": f"{told['output_dir']}/rows.csv", "report": told["report"]}, False)


def _recipes_table(group: str, lines: list[dict[str, Any]], told: dict[str, Any]) -> Table:
    from .report.comparison_page import PLAIN, remarks, shown, worded

    caption = "mean over the runs, under it the smallest, the largest and n; shares in %"
    table = Table(box=SIMPLE, title=group or None, caption=caption)
    table.add_column("recipe", no_wrap=True)
    figures = shown(told, group)
    for figure in figures.values():
        table.add_column(figure.header, justify="right", overflow="fold")
    for line in lines:
        cells = []
        for name, figure in figures.items():
            one = line["figures"][name] or {}
            told_of = ("mean", "least", "most") if one.get("runs", 0) > 1 else ("mean",)
            parts = [worded(one.get(which), figure).removesuffix("%") for which in told_of]
            cells.append("\n".join([*parts, f"n {one['n']}"] if one.get("n") else parts))
        notes = remarks(line).split("; ") if line["recipe"] not in PLAIN else []
        table.add_row("\n".join([line["recipe"], *notes]), *cells)
    return table


def demo(told: dict[str, Any], as_json: bool) -> None:
    """The demo's table and where its page is."""
    if as_json:
        return print(json.dumps(told))
    table = Table("", "UA", "UA synonyms", "UA generic", "IRA", "CRA", "CRA forget", "ASR", "trimmed", "seconds")
    for row in told["rows"]:
        shares = [
            f"{row['figures'][name]:.1%}" for name in ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA", "CRA_forget")
        ]
        table.add_row(row["name"], *shares, f"{row['asr']:.1%}", str(row["trimmed"]), str(row["seconds"]))
    console.print(table)
    for name, one in told["attacks"].items():
        said({f"attack, {name}": f"brings it back in {one['asr_after']:.1%} (original: {one['original']:.1%})"}, False)
    said({"erased": told["concept"], "model": told["model_dir"], "report": told["report"]}, False)
