"""`sdscissor export`, `diff` and `verify`: models as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..settings import OUTPUT_FORMATS, UserError
from .options import Json, Public, PushToHub, Quiet, in_panel, printable, repo_to_push

what, how = map(in_panel, ("What", "Run"))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of erase, or what else names a model; to upload it also an exported file.")],
    to: Annotated[str | None, what(f"{', '.join(OUTPUT_FORMATS[:0:-1])}, or diffusers.", "single-file; to upload it the model as it is")] = None,
    output: Annotated[Path | None, what("File, for diffusers directory; must not exist yet.", "in RUN, by its name")] = None,
    dtype: Annotated[str | None, what("float32, float16 or bfloat16.", "as saved; with --base as there")] = None,
    base: Annotated[Path | None, what("For single-file: your .safetensors, of which the UNet alone is replaced.")] = None,
    push_to_hub: PushToHub = None,
    public: Public = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Write an erased model in the format that your program reads, and read it back before it counts.

    single-file is for A1111 and ComfyUI (LDM names); unet-only is the UNet under diffusers' names; delta is what changed, for sdscissor apply.

    Examples:

        sdscissor export runs/nudity --to single-file --dtype float16

        sdscissor export runs/nudity --base my-model.safetensors --output my-model-clean.safetensors

        sdscissor export runs/nudity --push-to-hub me/sd14-without-nudity
    """
    from .. import show

    show.still_libraries()
    from ..models.export import export as run_export
    from ..publishing import publish

    if push_to_hub and base:
        raise UserError(
            f"--push-to-hub is not for --base {base}, whose licence no card here knows: upload the file yourself"
        )
    repo, shown = repo_to_push(push_to_hub, public), show.progress(quiet)
    if repo and not (to or output or dtype):
        return show.said({"uploaded": str(run), "hub": publish(run, repo, progress=shown)}, as_json)
    to = to or ("diffusers" if repo else "single-file")
    show.one_thread_if_small(str(run))
    told = run_export(run, to, output=output, dtype=dtype, base=base, progress=shown)
    if repo:
        told["hub"] = publish(Path(told["output"]), repo, source=run, progress=shown)
    if as_json:
        return show.said(told, True)
    lines = {"exported": f"{run} to {to}", "tensors": f"{told['tensors']:,}, read back and equal"}
    lines |= {"base": f"{base}: everything but the UNet is as it was, byte by byte"} if base else {}
    lines |= {"bytes": f"{told['bytes']:,}", "seconds": told["seconds"], "output": told["output"]}
    show.said(lines | ({"hub": told["hub"]} if repo else {}), False)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Run or diffusers directory, .safetensors, hub id, or tiny.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; layouts may differ.")],
    by: Annotated[str, what("block, layer or parameter.", True)] = "block",
    plot: Annotated[Path | None, what("Also draw it, into this .svg.")] = None,
    limit: Annotated[int, what("Rows of the table at most, those that differ most; --json has all.", True)] = 40,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Show which layers two checkpoints differ in, and how much.

    Where the precisions differ, both are compared in the coarser one.

    Example:

        sdscissor diff CompVis/stable-diffusion-v1-4 runs/nudity --plot difference.svg
    """
    if plot is not None and plot.suffix != ".svg":
        raise typer.BadParameter(f"{plot} does not end with .svg", param_hint="--plot")
    from .. import show

    show.still_libraries()
    from ..models.diff import difference

    show.one_thread_if_small(b)
    told = difference(a, b, by=by, progress=show.progress(quiet))
    if plot is not None:
        from ..disk import write_text
        from ..report.diff_page import difference_plot

        if drawn := difference_plot(told):
            write_text(plot, drawn)
            told |= {"plot": str(plot)}
    _show_difference(told, as_json, limit)


def verify(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory of erase.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hold a run directory against its run.json: hashes, files, recipe, base, delta and exports.

    Says what holds, what does not and what nobody looked at; ends with 1 if anything does not. Nothing is fetched.

    Example:

        sdscissor verify runs/nudity
    """
    from .. import show

    show.still_libraries()
    from ..models.verify import verify as run_verification

    show.one_thread_if_small(str(run / "model"))
    told = run_verification(run, progress=show.progress(quiet))
    _show_verification(told, as_json)
    for check in told["checks"]:
        if check["holds"] is False:
            raise UserError(f"{run} does not hold: {check['what']}: {check['found']}")


# ---------------------------------------------------------------- what the terminal sees


def _show_difference(told: dict[str, Any], as_json: bool, limit: int) -> None:
    """What two checkpoints differ in."""
    if as_json:
        return print(json.dumps(told))
    from .. import show

    rows, most = told["rows"], sorted(told["rows"], key=lambda row: -(row["relative_l2"] or 0))[:limit]
    table = Table(told["by"], "weights", "changed", "relative L2", "max abs", box=SIMPLE)
    for row in [row for row in rows if row in most]:
        table.add_row(*_compared(row["name"], row))
    table.add_row(*_compared("all that was compared", {**told, "size": told["weights"]}), style="bold")
    show.console.print(table)
    lines = {f"only in {told[side]}": told[f"only_{side}"] for side in ("a", "b")} | {
        "of another shape": told["other_shape"]
    }
    lines = {name: f"{len(found)} tensors, as {_plain(found[0])}" for name, found in lines.items() if found}
    if told["rounded"]:
        lines["precision"] = f"{told['rounded']} tensors are in another one, and were compared in the coarser"
    show.said({
        "compared": f"{told['tensors']:,} tensors; {len(rows)} of {len(rows) + told['same']} {told['by']}s differ"
        + (f", {len(most)} are shown" if len(most) < len(rows) else ""),
        **lines, **({"plot": told["plot"]} if "plot" in told else {}),
        "identical": "yes" if told["identical"] else "no",
    }, False)  # fmt: skip


def _compared(name: str, row: dict[str, Any]) -> list[str]:
    sizes = ["not finite" if row[key] is None else f"{row[key]:.3g}" for key in ("relative_l2", "max_abs")]
    return [_plain(name), f"{row['size']:,}", f"{row['share']:.2%}", *sizes]


def _show_verification(told: dict[str, Any], as_json: bool) -> None:
    """What holds of a run directory, what does not, and what nobody looked at."""
    if as_json:
        return print(json.dumps(told))
    from .. import show

    for check in told["checks"]:
        mark = {True: "[green]holds[/green]  ", False: "[red]FAILS[/red]  ", None: "not checked  "}[check["holds"]]
        show.console.print(f"{mark}{_plain(check['what'])}: {_plain(check['found'])}", highlight=False)
    for text in told["never_checked"]:
        show.console.print(f"not checked  {escape(text)}", highlight=False, style="dim")


def _plain(text: str) -> str:
    return escape(printable(text))
