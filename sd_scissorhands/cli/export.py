"""`sdscissor export`, `diff` and `verify`: models as files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..results.models import AddOnFit, Difference, DifferenceRow, Verification
from ..settings import OUTPUT_FORMATS
from ..terminal import Column, console, table
from .options import Json, Public, PushToHub, Quiet, in_panel, repo_to_push

what, how = map(in_panel, ("What", "Run"))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of erase, or what else names a model; to upload it also an exported file.")],
    to: Annotated[str | None, what(f"{', '.join(OUTPUT_FORMATS[:0:-1])}, or diffusers.", "single-file; to upload it the model as it is")] = None,
    output: Annotated[Path | None, what("File, for diffusers directory; must not exist yet.", "in RUN, by its name")] = None,
    dtype: Annotated[str | None, what("float32, float16 or bfloat16.", "as saved; with --base as there")] = None,
    base: Annotated[Path | None, what("For single-file: your .safetensors, of which the UNet alone is replaced.")] = None,
    rank: Annotated[int | None, what("For lycoris: a LoRA of this rank instead of the whole change; refused if it loses too much.")] = None,
    unet: Annotated[Path | None, what("The UNet's weights from this .safetensors; the rest is RUN's.")] = None,
    push_to_hub: PushToHub = None,
    public: Public = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Write an erased model in the format that your program reads, and read it back before it counts.

    single-file is for A1111 and ComfyUI (LDM names); unet-only is the UNet under diffusers' names; delta is what changed, for sdscissor apply.

    lycoris is an add-on to your base, loaded as a LoRA: at a strength below 1, or left out, the concept is back.

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
    upload = partial(publish, progress=shown, on_skipped=show.note)
    if repo and not (to or output or dtype or unet or rank):
        return show.values({"uploaded": str(run), "hub": upload(run, repo)}, as_json)
    to = to or ("diffusers" if repo else "single-file")
    show.one_thread_if_small(str(run))
    source = Path(show.with_unet(str(run), unet))
    exported = run_export(source, to, output=output, dtype=dtype, base=base, rank=rank, progress=shown)
    if repo:
        exported = replace(exported, hub=upload(Path(exported.output), repo, source=source))
    if as_json:
        return show.values(exported.to_json(), True)
    lines = {"exported": f"{run} to {to}", "tensors": f"{exported.tensors:,}, read back and equal"}
    lines |= {"base": f"{base}: everything but the UNet is as it was, byte by byte"} if base else {}
    if fit := exported.addon:
        lines |= {"goes over": fit.base, "holds": in_words(fit)}
    lines |= {"left out": exported.left_out} if exported.left_out else {}
    lines |= {"bytes": f"{exported.bytes:,}", "seconds": str(exported.seconds), "output": exported.output}
    show.lines(lines | {"note": exported.note, "hub": exported.hub})


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Run or diffusers directory, .safetensors, hub id, or tiny.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; layouts may differ.")],
    by: Annotated[str, what("block, layer or parameter.", True)] = "block",
    unet: Annotated[Path | None, what("B's UNet has the weights of this .safetensors.", True)] = None,
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
    if plot is not None and plot.suffix.lower() != ".svg":
        raise typer.BadParameter(f"{plot} does not end with .svg", param_hint="--plot")
    from .. import show

    show.still_libraries()
    from ..models.diff import difference

    show.one_thread_if_small(b)
    b = show.with_unet(b, unet)
    found = difference(a, b, by=by, progress=show.progress(quiet))
    if plot is not None:
        from ..disk import write_text
        from ..report.plots import difference_plot

        if drawn := difference_plot(found):
            write_text(plot, drawn)
            found = replace(found, plot=str(plot))
    if as_json:
        return show.values(found.to_json(), True)
    _show_difference(found, limit)


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
    found = run_verification(run, progress=show.progress(quiet))
    if as_json:
        show.values(found.to_json(), True)
    else:
        _show_verification(found)
    for check in found.checks:
        if check.holds is False:
            raise UserError(f"{run} does not hold: {check.what}: {check.found}")


# ---------------------------------------------------------------- for people


def in_words(fit: AddOnFit) -> str:
    """How near an add-on comes to the erased model."""
    what = "the whole change" if fit.rank is None else f"the change at rank {fit.rank}"
    equal = f"over the base {fit.equal} of {fit.unet_tensors} tensors equal the erased model's"
    return f"{what}: {equal}, {fit.energy_lost:.2g} of the change's energy is lost"


def _show_difference(found: Difference, limit: int) -> None:
    from .. import show

    most = sorted(found.rows, key=lambda row: -(row.relative_l2 or 0))[:limit]
    total = DifferenceRow(
        "all that was compared", found.weights, found.changed, found.share, found.relative_l2, found.max_abs
    )
    rows = [_cells(row) for row in found.rows if row in most]
    table([Column(found.by, "name", found.by), *DIFFERS], [*rows, _cells(total)], all_in="--json")
    groups = f"{len(found.rows)} of {len(found.rows) + found.same} {found.by}s differ"
    shown = f", {len(most)} are shown" if len(most) < len(found.rows) else ""
    lines = {"compared": f"{found.tensors:,} tensors; {groups}{shown}"}
    unmatched = ((f"only in {found.a}", found.only_a), (f"only in {found.b}", found.only_b), ("of another shape", found.other_shape))  # fmt: skip
    lines |= {label: f"{len(names)} tensors, as {names[0]}" for label, names in unmatched if names}
    if found.rounded:
        lines["precision"] = f"{found.rounded} tensors are in another one, and were compared in the coarser"
    lines |= {"plot": found.plot} if found.plot else {}
    show.lines(lines | {"identical": "yes" if found.identical else "no"})


DIFFERS = (
    Column("changed", small="changed"), Column("relative L2", small="relative L2"), Column("max abs", small="max abs"), Column("weights"),
)  # fmt: skip


def _cells(row: DifferenceRow) -> list[str]:
    sizes = ["not finite" if value is None else f"{value:.3g}" for value in (row.relative_l2, row.max_abs)]
    return [row.name, f"{row.share:.2%}", *sizes, f"{row.size:,}"]


def _show_verification(found: Verification) -> None:
    for check in found.checks:
        mark, colour = {True: ("holds", "green"), False: ("FAILS", "red"), None: ("not checked", "")}[check.holds]
        console.print(mark, end="  ", style=colour, highlight=False)
        console.print(f"{check.what}: {check.found}", highlight=False, soft_wrap=True)
    for text in found.never_checked:
        console.print(f"not checked  {text}", highlight=False, style="dim")
