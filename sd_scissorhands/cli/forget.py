"""`sdscissor forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..recipes import recipes_for
from ..settings import CHOICES, DIGITS, ForgetSettings, load_settings
from .erase import BY_RECIPE
from .options import Device, Json, Quiet, fields_of, in_one_process, in_panel

what, cut, mend, how = map(in_panel, ("What", "Scores, selection, edit", "Repair", "Run"))
REPAIRS = ("none", "retain", "ascent", "random-label")


def forget(
    forget_class: Annotated[str | None, what("A class, by its name or number.")] = None,
    forget_indices: Annotated[str | None, what("File with the numbers of training pictures, one a line, from 0.")] = None,
    forget_random: Annotated[float | None, what("A share of the training pictures, drawn by the seed.")] = None,
    model: Annotated[str | None, what("Hub id or directory of an image classifier, or digits, the embedded one.", DIGITS)] = None,
    revision: Annotated[str | None, what("Branch, tag or commit of a hub model.")] = None,
    data: Annotated[str | None, what("Image folder (train/CLASS/*.png, test/ or val/ beside it) or .npz.", "the digits")] = None,
    recipe: Annotated[str | None, what(f"The method: {', '.join(recipes_for('classifier'))}.", "scissorhands")] = None,
    retrained: Annotated[str | None, what("A model trained without it, to measure against.", "the digits' is trained here")] = None,
    output_dir: Annotated[Path | None, what("The run directory; the model is its model/.", "runs/MODEL-WHAT-RECIPE-seedN")] = None,
    config: Annotated[Path | None, what("Settings as TOML; flags win over the file.")] = None,
    scorer: Annotated[str | None, cut(f"Which weights: {', '.join(CHOICES['scorer'])}.", BY_RECIPE)] = None,
    edit: Annotated[str | None, cut(f"What is done to them: {', '.join(CHOICES['edit'])}.", BY_RECIPE)] = None,
    top_k: Annotated[float | None, cut("Share of the scope to select, in (0, 1).", BY_RECIPE)] = None,
    scope: Annotated[str | None, cut("Weights that may change: full, head or a regular expression.", BY_RECIPE)] = None,
    threshold_scope: Annotated[str | None, cut("Where the top k is taken: scope, layer, or global (over all weights).", BY_RECIPE)] = None,
    granularity: Annotated[str | None, cut("What is selected as one: weight or channel.", BY_RECIPE)] = None,
    init: Annotated[str | None, cut("New values of reinitialise: layer, kaiming or trunc_normal.", BY_RECIPE)] = None,
    repair: Annotated[str | None, mend(f"What takes its place: {', '.join(REPAIRS)}.", BY_RECIPE)] = None,
    steps: Annotated[int | None, mend("Steps; 0 stops after the edit.", BY_RECIPE)] = None,
    lr: Annotated[float | None, mend("Learning rate.", BY_RECIPE)] = None,
    batch_size: Annotated[int | None, mend("Forget and retain samples, each, per step.", BY_RECIPE)] = None,
    forget_weight: Annotated[float | None, mend("Weight of the forget term against the retain term.", BY_RECIPE)] = None,
    projection: Annotated[str | None, mend("scale-free, paper or none.", BY_RECIPE)] = None,
    train: Annotated[str | None, mend("Weights that the repair may change: scope or selection.", BY_RECIPE)] = None,
    seed: Annotated[int | None, how("The same seed gives the same weights.", "0")] = None,
    device: Device = None,
    resume: Annotated[bool, how("Continue the run in --output-dir.", False, "--resume")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Make an image classifier forget a class or single training pictures, and measure what is left of them.

    Examples:

        sdscissor forget --forget-class 3

        sdscissor forget --forget-random 0.1 --recipe l-codec

        sdscissor forget --model my-resnet --data pictures --forget-class cat --output-dir runs/no-cats
    """
    settings = load_settings(ForgetSettings, config, fields_of(ForgetSettings, locals()))
    from .. import api, show

    show.still_libraries()
    in_one_process("sdscissor forget")
    show.forgotten(api.forget(settings, output_dir, resume=resume, progress=show.progress(quiet)), as_json)
