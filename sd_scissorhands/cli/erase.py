"""`sdscissor erase`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ..declaration import BASIC
from ..errors import UsageError, UserError
from ..settings import OUTPUT_FORMATS, EraseSettings, load_settings
from ..then import FORMS, check_judges, parts_of
from ..tracking import TRACKERS, check_tracker
from .chain import finish, gates_after
from .flags import with_flags_of
from .options import Json, Own, Public, PushToHub, Quiet, check_concepts, in_one_process, in_panel, repo_to_push

basic, what, how = map(in_panel, (BASIC, "What", "Run"))


@with_flags_of(EraseSettings)
def erase(
    given: dict[str, Any],
    output_dir: Annotated[Path | None, basic("The run directory; the erased model is its model/.", "runs/MODEL-CONCEPTS-seedN")] = None,
    output_format: Annotated[str, what(f"Beside model/ also a file for other programs: {', '.join(OUTPUT_FORMATS[1:])}.", True)] = "diffusers",
    config: Annotated[Path | None, what("Settings as TOML; flags win over the file.")] = None,
    own: Own = None,
    resume: Annotated[bool, basic("Continue the run in --output-dir.", False, "--resume")] = False,
    dry_run: Annotated[bool, basic("Say what would be done, with memory and time, and stop.", False, "--dry-run")] = False,
    rehearse: Annotated[bool, how("Erase, evaluate and attack on a few samples, say whether that works and what the run would take, and stop.", False, "--rehearse")] = False,
    then: Annotated[str | None, how(f"Measure the result at once: {FORMS}; several with commas.", "nothing")] = None,
    fail_above: Annotated[list[str] | None, how("NAME=VALUE of what --then measures: exit 3 if the figure is above. Repeatable.")] = None,
    fail_below: Annotated[list[str] | None, how("NAME=VALUE of what --then measures: exit 3 if the figure is below. Repeatable.")] = None,
    log_with: Annotated[str | None, how(f"Figures and pictures for {', '.join(TRACKERS)}, in logs/ of the run.", "none")] = None,
    yes: Annotated[bool, how("Go on where it takes hours, for there is no GPU; without a terminal it goes on anyway.", False, "--yes")] = False,
    push_to_hub: PushToHub = None,
    public: Public = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Erase concepts from a model and save it as a directory that diffusers loads.

    Examples:

        sdscissor erase --concept nudity --model CompVis/stable-diffusion-v1-4

        sdscissor erase --model tiny --concept heart --output-dir runs/heart

        sdscissor erase --concept "a red fox" --anchor "a grey cat" --dry-run
    """
    settings = load_settings(EraseSettings, config, given, own=own or ())
    settings.check_named()
    check_concepts(settings.concepts, settings.anchor, settings.model)
    if dry_run and rehearse:
        raise UsageError("--dry-run and --rehearse: leave out one; a rehearsal says all that a dry run does")
    parts = parts_of(then) if then else ()
    gates = gates_after(parts, fail_above, fail_below)
    check_tracker(log_with)
    from .. import api, show

    show.still_libraries()
    if dry_run or rehearse:
        show.one_thread_if_small(settings.model)
        return show.result(_foreseen(settings, output_dir, rehearse, resume, quiet), as_json)
    repo, shown = repo_to_push(push_to_hub, public), show.progress(quiet)
    if parts:
        check_judges(settings)
    result = api.erase(
        settings, output_dir, output_format=output_format, resume=resume, log_with=log_with, progress=shown,
        consider=partial(_consider, yes),
    )  # fmt: skip
    finish(result, gates, settings, repo=repo, progress=shown, as_json=as_json)


def _foreseen(settings: EraseSettings, output_dir: Path | None, rehearse: bool, resume: bool, quiet: bool) -> Any:
    """What a run would do, with a rehearsal or without."""
    from .. import show

    if not rehearse:
        from ..forecast import forecast

        return forecast(settings)
    in_one_process("sdscissor erase --rehearse")
    from ..rehearsal import rehearse as run_rehearsal

    return run_rehearsal(settings, output_dir, resume=resume, progress=show.progress(quiet))


def _consider(yes: bool, prepared: Any) -> None:
    """Say what takes hours before it does.

    Raises:
        UserError: in a terminal, without --yes.
    """
    from .. import show
    from ..forecast import slowness

    if not (slow := slowness(prepared)):
        return
    if show.console.is_terminal and not yes:
        raise UserError(f"{slow}: add --yes to go on as it is")
    show.note(slow)
