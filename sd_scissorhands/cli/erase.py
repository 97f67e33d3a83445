"""`sdscissor erase`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ..errors import UserError
from ..settings import OUTPUT_FORMATS, EraseSettings, load_settings
from .flags import with_flags_of
from .options import Json, NotConverged, Own, Public, PushToHub, Quiet, in_panel, repo_to_push

what, how = map(in_panel, ("What", "Run"))


@with_flags_of(EraseSettings)
def erase(
    given: dict[str, Any],
    output_dir: Annotated[Path | None, what("The run directory; the erased model is its model/.", "runs/MODEL-CONCEPTS-seedN")] = None,
    output_format: Annotated[str, what(f"Beside model/ also a file for other programs: {', '.join(OUTPUT_FORMATS[1:])}.", True)] = "diffusers",
    config: Annotated[Path | None, what("Settings as TOML; flags win over the file.")] = None,
    own: Own = None,
    resume: Annotated[bool, how("Continue the run in --output-dir.", False, "--resume")] = False,
    dry_run: Annotated[bool, how("Say what would be done, with memory and time, and stop.", False, "--dry-run")] = False,
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
    from .. import api, show
    from ..forecast import forecast
    from ..machine import Processes

    show.still_libraries()
    if dry_run:
        show.one_thread_if_small(settings.model)
        return show.result(forecast(settings), as_json)
    repo, shown = repo_to_push(push_to_hub, public), show.progress(quiet)
    result = api.erase(
        settings,
        output_dir,
        output_format=output_format,
        resume=resume,
        progress=shown,
        consider=partial(_consider, yes),
    )
    if Processes.here().main:
        if repo:
            from ..publishing import publish

            result = replace(
                result, hub=publish(Path(result.exported or result.run_dir), repo, progress=shown, on_skipped=show.note)
            )
        show.result(result, as_json)
        if result.proof and not result.proof.converged:
            raise NotConverged(
                f"{result.model_dir} is saved and not converged: {result.proof.sentence}; {result.proof.remedy}"
            )


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
