"""`sdscissor erase`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..settings import DEFAULT_MODEL, load_settings
from .options import Device, Json, Quiet, default_run, in_panel

what, data, cut, mend, how = map(in_panel, ("What", "Data", "Scores, selection, edit", "Repair", "Run"))


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
    from .. import show

    show.still_libraries()
    from ..erase import erase as run_erasure
    from ..forecast import forecast

    show.one_thread_if_small(settings.model)
    if dry_run:
        return show.forecast(forecast(settings), as_json)
    result = run_erasure(settings, folder, resume=resume, progress=show.progress(quiet))
    from ..report import write_card, write_report

    write_card(folder)
    write_report(folder)
    show.result(result, as_json)
