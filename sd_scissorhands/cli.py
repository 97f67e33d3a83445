"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .settings import DEFAULT_MODEL, UserError, load_settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not burn the core that others need

app = typer.Typer(
    name="sdscissor",
    help="Take a concept out of a Stable Diffusion model, keep the rest of it whole, and show both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)

Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.", rich_help_panel="Run"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Run")]
Device = Annotated[str | None, typer.Option(help="cuda, mps, cpu or auto.", show_default="auto", rich_help_panel="Run")]


def main() -> None:
    """Run the command line with errors as one line each: exit 0 done, 1 failed, 2 usage, 3 a gate missed."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; repeat the command with --resume (erase) or as it is (eval) to continue", code=130)
    except MemoryError:
        _fail("out of memory: lower --batch-size, choose a smaller --scope, or see --dry-run for what it takes")
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate" not in str(error).lower():
            raise
        _fail("out of memory: lower --batch-size, choose a smaller --scope, or see --dry-run for what it takes")


def _fail(message: str, code: int = 1) -> None:
    print(f"sdscissor: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Shared options."""


def in_panel(panel: str) -> Callable[..., Any]:
    """Options of one panel of `--help`: `option("what it says", "what stands for None", *names)`."""

    def option(says: str, default: str | bool = False, *names: str) -> Any:
        return typer.Option(*names, help=says, show_default=default, rich_help_panel=panel)

    return option


what, data, cut, mend, how = map(in_panel, ("What", "Data", "Scores, selection, edit", "Repair", "Run"))


@app.command()
def erase(
    concept: Annotated[list[str] | None, what("A preset, a word of the embedded world, or any text with --anchor. Repeatable.")] = None,
    anchor: Annotated[str | None, what("What takes the concept's place.", "the preset's own")] = None,
    model: Annotated[str | None, what("Hub id, diffusers directory, or tiny, the embedded model.", DEFAULT_MODEL)] = None,
    revision: Annotated[str | None, what("Branch, tag or commit of a hub model.")] = None,
    output_dir: Annotated[Path | None, what("The run directory; the erased model is its model/.", "runs/MODEL-CONCEPTS-seedN")] = None,
    config: Annotated[Path | None, what("Settings as TOML; flags win over the file.")] = None,
    retain_prompts: Annotated[str | None, data("File with one prompt a line, for the general captions.")] = None,
    forget_images: Annotated[str | None, data("Directory of pictures of the concept, for the model's own.")] = None,
    retain_images: Annotated[str | None, data("Directory of pictures to keep, for the model's own.")] = None,
    trim: Annotated[bool | None, cut("Reinitialise the selected weights.", "trim", "--trim/--no-trim")] = None,
    top_k: Annotated[float | None, cut("Share of the scope to trim, in (0, 1).", "0.001")] = None,
    scope: Annotated[str | None, cut("Weights that may change: xattn, attn, full, or a regular expression.", "attn")] = None,
    threshold_scope: Annotated[str | None, cut("Where the top k is taken: scope, or global as the authors do.", "scope")] = None,
    scorer: Annotated[str | None, cut("contrast, plain (the paper's) or random.", "contrast")] = None,
    init: Annotated[str | None, cut("New values: layer, kaiming, trunc_normal or zero.", "layer")] = None,
    steps: Annotated[int | None, mend("Steps; 0 stops after the edit.", "200; tiny 150")] = None,
    lr: Annotated[float | None, mend("Learning rate.", "1e-5; tiny 1e-3")] = None,
    batch_size: Annotated[int | None, mend("Forget and retain samples, each, per step.", "4; tiny 16")] = None,
    forget_weight: Annotated[float | None, mend("Weight of the forget term against the retain term.", "0.3")] = None,
    retain_loss: Annotated[str | None, mend("distil (match the original model) or denoise.", "distil")] = None,
    projection: Annotated[str | None, mend("scale-free, paper or none.", "scale-free")] = None,
    mixed_precision: Annotated[str | None, how("no or bf16.", "no")] = None,
    seed: Annotated[int | None, how("The same seed gives the same weights.", "0")] = None,
    device: Device = None,
    resume: Annotated[bool, how("Continue the run in --output-dir.", False, "--resume")] = False,
    dry_run: Annotated[bool, how("Say what would be done, with memory and time, and stop.", False, "--dry-run")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Erase concepts from a model and save it as a directory that diffusers loads.

    Examples:

        sdscissor erase --concept nudity --model CompVis/stable-diffusion-v1-4

        sdscissor erase --model tiny --concept heart --output-dir runs/heart

        sdscissor erase --concept "a red fox" --anchor "a grey cat" --dry-run
    """
    given = dict(
        concepts=tuple(concept) if concept else None, model=model, revision=revision, anchor=anchor, trim=trim, top_k=top_k,
        scope=scope, threshold_scope=threshold_scope, scorer=scorer, init=init, steps=steps, lr=lr, batch_size=batch_size,
        forget_weight=forget_weight, retain_loss=retain_loss, projection=projection, retain_prompts=retain_prompts,
        forget_images=forget_images, retain_images=retain_images, mixed_precision=mixed_precision, seed=seed, device=device,
    )  # fmt: skip
    settings = load_settings(config, given)
    folder = output_dir or default_run(settings.model, settings.concepts, settings.seed)
    from . import show

    show.still_libraries()
    from .erase import erase as run_erasure
    from .forecast import forecast

    show.one_thread_if_small(settings.model)
    if dry_run:
        return show.forecast(forecast(settings), as_json)
    result = run_erasure(settings, folder, resume=resume, progress=show.progress(quiet))
    from .report import write_card, write_report

    write_card(folder)
    write_report(folder)
    show.result(result, as_json)


def default_run(model: str, concepts: tuple[str, ...], seed: int) -> Path:
    """runs/MODEL-CONCEPTS-seedN."""
    return Path("runs") / f"{file_name(Path(model).name, *concepts)}-seed{seed}"


def file_name(*parts: str) -> str:
    """Words as a name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in "-".join(parts).lower())[:80]


which, draw, out = map(in_panel, ("What", "Drawing and counting", "Run"))


@app.command(name="eval")
def evaluate(
    model: Annotated[str | None, which("Pipeline directory, hub id or tiny.")] = None,
    baseline: Annotated[str | None, which("The model to compare with.", "--canvas: tiny")] = None,
    i2p: Annotated[bool, which("NudeNet on the I2P prompts, each row with its own seed.", False, "--i2p")] = False,
    i2p_file: Annotated[Path | None, which("A local I2P CSV, official or ESD-style columns.", "hub copy AIML-TUDA/i2p")] = None,
    prompts: Annotated[Path | None, which("NudeNet on your own prompts, one a line.")] = None,
    images: Annotated[Path | None, which("NudeNet on a directory of pictures; nothing is generated.")] = None,
    canvas: Annotated[bool, which("The embedded world's own judge; with --concept.", False, "--canvas")] = False,
    concept: Annotated[str | None, which("With --canvas: the concept that was erased.")] = None,
    limit: Annotated[int | None, draw("First rows only; with --canvas pictures for UA and IRA, each.", "all; canvas 500")] = None,
    threshold: Annotated[float, draw("A detection counts from this score on.", True)] = 0.6,
    steps: Annotated[int | None, draw("Sampling steps.", "50; tiny 20")] = None,
    guidance: Annotated[float | None, draw("Guidance scale.", "7.5; tiny 3")] = None,
    batch_size: Annotated[int | None, draw("Pictures at a time.", "4; canvas 32")] = None,
    seed: Annotated[int, draw("For --prompts and --canvas; I2P brings its own.", True)] = 0,
    output_dir: Annotated[Path | None, out("Where results go.", "RUN/eval/KIND of a run's model, else runs/eval-MODEL-KIND")] = None,
    fail_above: Annotated[list[str] | None, out("NAME=VALUE: exit 3 if the figure is above. Repeatable.")] = None,
    fail_below: Annotated[list[str] | None, out("NAME=VALUE: exit 3 if the figure is below. Repeatable.")] = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure what a model still draws. A killed evaluation continues when the command is repeated.

    Examples:

        sdscissor eval --model runs/nudity/model --baseline CompVis/stable-diffusion-v1-4 --i2p --limit 200

        sdscissor eval --model runs/heart/model --canvas --concept heart --json

        sdscissor eval --images pictures/ --fail-above nudity=0
    """
    kind = one_kind(i2p=i2p or bool(i2p_file), prompts=bool(prompts), images=bool(images), canvas=canvas)
    if kind != "images" and model is None:
        raise typer.BadParameter("missing: name a pipeline directory, a hub id or tiny", param_hint="--model")
    if kind == "canvas" and concept is None:
        raise typer.BadParameter("missing: name the concept that --canvas is to judge", param_hint="--concept")
    if not 0 <= threshold <= 1:
        raise typer.BadParameter(f"{threshold} is outside [0, 1]", param_hint="--threshold")
    for name, value in (("--limit", limit), ("--steps", steps), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise typer.BadParameter(f"{value} is too small: it must be at least 1", param_hint=name)
    gates = [parse_gate(kind, text, True) for text in fail_above or ()]
    gates += [parse_gate(kind, text, False) for text in fail_below or ()]
    named, subject = str(model or images), str(concept or "")
    folder = output_dir or default_eval(named, kind, *([subject] if subject else []))
    from . import show

    show.still_libraries()
    show.one_thread_if_small(named)
    from .evaluate import canvas as world_judge
    from .evaluate import nudity
    from .evaluate.prompts import read_i2p, read_rows

    common: dict[str, Any] = dict(device=device or "auto", progress=show.progress(quiet))
    if kind == "canvas":
        summary = world_judge.evaluate(
            named, baseline or "tiny", subject, folder, seed=seed, count=limit or 500, batch_size=batch_size or 32, **common
        )  # fmt: skip
    elif kind == "images":
        summary = nudity.evaluate_images(
            Path(named), folder, threshold=threshold, limit=limit, progress=common["progress"]
        )
    else:
        rows = read_rows(prompts, seed, limit) if prompts else read_i2p(i2p_file, limit)
        summary = nudity.evaluate_prompts(
            named, baseline, rows, folder, kind=kind, threshold=threshold, steps=steps, guidance=guidance,
            batch_size=batch_size or 4, **common,
        )  # fmt: skip
    refresh_report(folder)
    show.evaluation(summary, as_json)
    if missed := [text for text in (gate(summary) for gate in gates) if text]:
        _fail("; ".join(missed), code=3)


def one_kind(**asked: bool) -> str:
    """The one kind of evaluation that was asked for."""
    kinds = [name for name, wanted in asked.items() if wanted]
    if len(kinds) != 1:
        raise typer.BadParameter("choose exactly one of --i2p, --prompts FILE, --images DIR and --canvas")
    return kinds[0]


def default_eval(model: str, *what: str) -> Path:
    """Beside the run that the model belongs to, else under runs/."""
    path = Path(model)
    if path.name == "model" and (path.parent / "run.json").exists():
        return path.parent / "eval" / what[0]
    return Path("runs") / file_name("eval", path.name, *what)


def parse_gate(kind: str, text: str, above: bool) -> Callable[[dict[str, Any]], str | None]:
    """A check of one figure of an evaluation; what it returns is said when it is missed."""
    hint, (name, _, limit) = "--fail-above" if above else "--fail-below", text.partition("=")
    from .evaluate import canvas, nude

    known: tuple[str, ...] = canvas.FIGURES if kind == "canvas" else nude.GATES
    if name not in known:
        raise typer.BadParameter(
            f"{name!r} is no figure of this evaluation: choose {', '.join(known)}", param_hint=hint
        )
    try:
        bound = float(limit)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=hint) from None

    def check(summary: dict[str, Any]) -> str | None:
        found = summary.get("figures") or {**summary["images_with"], "nudity": summary["any_exposed"]}
        value = found.get(name, 0)
        missed = value > bound if above else value < bound
        return f"{name} is {value}, {'above' if above else 'below'} {bound:g}" if missed else None

    return check


def refresh_report(folder: Path) -> None:
    """Rebuild page and card of the run that an evaluation belongs to."""
    run = folder.parent.parent
    if folder.parent.name == "eval" and (run / "run.json").exists():
        from .report import write_card, write_report

        write_card(run)
        write_report(run)


@app.command()
def concepts(as_json: Json = False) -> None:
    """List the presets and the words of the embedded world."""
    from . import show
    from .concepts import presets

    show.concepts(presets(), as_json)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    no_blur: Annotated[bool, typer.Option("--no-blur", help="Show pictures of explicit concepts as they are.")] = False,
    as_json: Json = False,
) -> None:
    """Rebuild the page of a run."""
    from . import show
    from .report import write_report

    show.said({"report": str(write_report(run_dir, blur=not no_blur))}, as_json)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the demo goes.")] = Path("runs/demo"),
    concept: Annotated[str, typer.Option(help="A word of the embedded world.")] = "heart",
    limit: Annotated[int, typer.Option(min=8, help="Pictures for UA and for IRA, each, per model.")] = 160,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Erase one concept from the embedded model, with controls, and write a page that shows it. What `make demo` runs."""
    from . import show

    show.still_libraries()
    show.one_thread_if_small("tiny")
    from .demo import demo

    show.demo(demo(output_dir, concept, count=limit, progress=show.progress(quiet)), as_json)
