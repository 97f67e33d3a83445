"""What the commands share: common options, panels of `--help`, default directories, gates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, UserError
from ..lineage import meant
from ..models.hub import Repo
from ..naming import Name, check_model, is_path, may_be_on_hub
from ..parsing import did_you_mean
from ..terminal import lines
from ..tiny import MODEL_DIR

NEARLY = 0.8  # how alike a word of free text must be to a preset's name to be a mistyped one

Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.", rich_help_panel="Run"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Run")]
Own = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", rich_help_panel="Scores, selection, edit",
        help="A setting that the scorer or the edit declares, such as init=kaiming or damping=0.2, or one that else only "
        "a file gives. Repeatable. What they declare is a flag, too: --init kaiming.",
    ),
]  # fmt: skip
PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="Also upload the model to this repository of the hub.",
        rich_help_panel="Hub",
        show_default=False,
    ),
]
Public = Annotated[
    bool, typer.Option("--public", help="Everybody may read the repository; else you alone.", rich_help_panel="Hub")
]
NoBlur = Annotated[
    bool, typer.Option("--no-blur", help="Show explicit pictures in the report as they are.", rich_help_panel="Run")
]


Gate = tuple[str, float, bool]  # figure, bound, whether more is bad


class NotConverged(Exception):
    """An erased model does not stand its proof; exit code 4."""


class GateMissed(Exception):
    """A figure that a gate does not let through; exit code 3."""


def in_panel(panel: str) -> Callable[..., Any]:
    """Options of one panel of `--help`: `option("its text", "what stands for None", *names)`."""

    def option(text: str, default: str | bool = False, *names: str, metavar: str | None = None) -> Any:
        return typer.Option(*names, help=text, show_default=default, rich_help_panel=panel, metavar=metavar)

    return option


def in_one_process(command: str) -> None:
    """Refuse several processes where only one is of use.

    Raises:
        UserError: a launcher started several.
    """
    from ..machine import process_count

    if process_count() > 1:
        raise UserError(f"{command} runs in one process: start it without accelerate launch or torchrun")


# ---------------------------------------------------------------- checks


def check_concepts(concepts: Iterable[str], anchor: str | None, model: str, *, on_hub: bool = True) -> None:
    """Refuse a model that is not there, and a concept or an anchor that its domain does not know, before torch is imported.

    A single word of free text that is nearly a preset's name may be meant as it is: a line on stderr names the preset. Of a
    single file, and of a model that may be on the hub, nothing is known yet.

    Args:
        on_hub: whether a name such as owner/name that is no path means a model of the hub; else a path may be mistyped.

    Raises:
        UserError: see `check_model` and `Domain.resolve`.
    """
    if concepts := list(dict.fromkeys(concepts)):
        check_model(model)
    location = Name.parse(model).location
    directory = MODEL_DIR if location == "tiny" else Path(location).expanduser()
    if not (directory.is_dir() or (on_hub and may_be_on_hub(location) and not is_path(location))):
        return
    from ..concepts import preset_names  # imports numpy
    from ..domains import domain_of

    domain = domain_of(directory)
    for text in dict.fromkeys(map(domain.spell, concepts)):
        found = domain.resolve(meant(text, model), anchor)
        near = did_you_mean(text.lower(), preset_names(), NEARLY) if found.kind == "text" else ""
        if near and text.isalnum() and first_process():
            lines({"note": f"--concept {text!r} is no preset, and erased as free text{near}"})


def first_process() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") in ("", "0")


def repo_to_push(name: str | None, public: bool) -> Repo | None:
    """The repository that a model is to go into, if any; that it may is known before the work.

    Raises:
        UserError: it may not.
    """
    if name is None:
        if public:
            raise UsageError("--public has no effect without --push-to-hub")
        return None
    repo = Repo(name, public)
    repo.check()
    return repo


# ---------------------------------------------------------------- gates


def parse_gates(known: Sequence[str], above: Sequence[str] | None, below: Sequence[str] | None) -> list[Gate]:
    """The gate of every NAME=VALUE.

    Raises:
        typer.BadParameter: a figure that this measurement has not, or no number.
    """
    gates = []
    for texts, hint, is_above in ((above, "--fail-above", True), (below, "--fail-below", False)):
        for text in texts or ():
            name, _, bound = text.partition("=")
            if name not in known:
                raise typer.BadParameter(f"{name!r} is no figure of this: choose {', '.join(known)}", param_hint=hint)
            try:
                gates.append((name, number := float(bound), is_above))
            except ValueError:
                raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=hint) from None
            if not math.isfinite(number):
                raise typer.BadParameter(f"{text!r} holds every model or none: give a finite number", param_hint=hint)
    return gates


def check_gates(
    gates: Sequence[Gate],
    found: Mapping[str, float | None],
    of_erased: Collection[str] = (),
    why: str = "",
) -> None:
    """Hold the figures against the gates; a figure that could not be measured, or proves nothing, misses every gate.

    Args:
        of_erased: the figures that prove nothing where there is a reason `why`.

    Raises:
        GateMissed: saying which figures were.
    """
    missed = []
    for name, bound, is_above in gates:
        value = found.get(name)
        if why and name in of_erased:
            missed.append(f"{name} proves nothing ({why})")
        elif value is None:
            missed.append(f"{name} could not be measured")
        elif value > bound if is_above else value < bound:
            missed.append(f"{name} is {value:g}, {'above' if is_above else 'below'} {bound:g}")
    if missed:
        raise GateMissed("; ".join(missed))


def as_typed() -> list[str]:
    """The command as it was typed, for whoever wants the figures again."""
    import sys

    return ["sdscissor", *sys.argv[1:]]
