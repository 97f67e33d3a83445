"""`sdscissor erase`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..recipes import DEFAULT_RECIPE
from ..settings import CHOICES, DEFAULT_MODEL, OUTPUT_FORMATS, REPAIRS, EraseSettings, load_settings
from .options import Device, Json, Public, PushToHub, Quiet, fields_of, in_panel, repo_to_push

BY_RECIPE = "by recipe"
what, data, cut, mend, how = map(in_panel, ("What", "Data", "Scores, selection, edit", "Repair", "Run"))


def erase(
    concept: Annotated[list[str] | None, what("A preset, a word of the embedded world, or any text with --anchor. Repeatable.")] = None,
    anchor: Annotated[str | None, what("What takes the concept's place.", "the preset's own")] = None,
    recipe: Annotated[str | None, what("The method, see sdscissor recipes.", DEFAULT_RECIPE)] = None,
    model: Annotated[str | None, what("Hub id (owner/name, owner/name@revision:variant), diffusers directory, single .safetensors file, or tiny, the embedded model.", DEFAULT_MODEL)] = None,
    revision: Annotated[str | None, what("Branch, tag or commit of a hub model.")] = None,
    variant: Annotated[str | None, what("Which of several sets of weights: fp16, non_ema.")] = None,
    model_config: Annotated[str | None, what("Of a single file: diffusers directory or hub id of its family, for configs and tokenizer.", "by the file")] = None,
    output_dir: Annotated[Path | None, what("The run directory; the erased model is its model/.", "runs/MODEL-CONCEPTS-seedN")] = None,
    output_format: Annotated[str, what(f"Beside model/ also a file for other programs: {', '.join(OUTPUT_FORMATS[1:])}.", True)] = "diffusers",
    config: Annotated[Path | None, what("Settings as TOML; flags win over the file.")] = None,
    retain_prompts: Annotated[str | None, data("File with one prompt a line, for the general captions.")] = None,
    forget_images: Annotated[str | None, data("Directory of pictures of the concept, for the model's own.")] = None,
    retain_images: Annotated[str | None, data("Directory of pictures to keep, for the model's own.")] = None,
    scorer: Annotated[str | None, cut(f"Which weights: {', '.join(CHOICES['scorer'])}.", BY_RECIPE)] = None,
    edit: Annotated[str | None, cut(f"What is done to them: {', '.join(CHOICES['edit'])}.", BY_RECIPE)] = None,
    top_k: Annotated[float | None, cut("Share of the scope to select, in (0, 1).", BY_RECIPE)] = None,
    scope: Annotated[str | None, cut("Weights that may change: xattn, attn, full, or a regular expression.", BY_RECIPE)] = None,
    threshold_scope: Annotated[str | None, cut("Where the top k is taken: scope, layer, or global (over all weights).", BY_RECIPE)] = None,
    granularity: Annotated[str | None, cut("What is selected as one: weight or channel.", BY_RECIPE)] = None,
    init: Annotated[str | None, cut("New values of reinitialise: layer, kaiming or trunc_normal.", BY_RECIPE)] = None,
    repair: Annotated[str | None, mend(f"What takes the concept's place: {', '.join(REPAIRS)}.", BY_RECIPE)] = None,
    steps: Annotated[int | None, mend("Steps; 0 stops after the edit.", BY_RECIPE)] = None,
    lr: Annotated[float | None, mend("Learning rate.", BY_RECIPE)] = None,
    batch_size: Annotated[int | None, mend("Forget and retain samples, each, per step.", "4; tiny 16")] = None,
    conditions: Annotated[str | None, mend("Words it is unlearned under: name, mixture (any at all), or longer (any, and longer prompts).", BY_RECIPE)] = None,
    forget_weight: Annotated[float | None, mend("Weight of the forget term against the retain term.", BY_RECIPE)] = None,
    retain_loss: Annotated[str | None, mend("distil (match the original model), guided (also under guidance), denoise or none.", BY_RECIPE)] = None,
    projection: Annotated[str | None, mend("scale-free, paper or none.", BY_RECIPE)] = None,
    train: Annotated[str | None, mend("Weights that the repair may change: scope or selection.", BY_RECIPE)] = None,
    relearn_every: Annotated[int | None, mend("Steps between looks ahead at what fine-tuning would bring back; 0 for none.", BY_RECIPE)] = None,
    memory: Annotated[str | None, how("How much memory to take: low, balanced or fast.", "balanced for SD, else fast")] = None,
    mixed_precision: Annotated[str | None, how("no or bf16.", "by --memory; no on a CPU")] = None,
    compiled: Annotated[bool | None, how("Compile the denoiser with torch.compile first.", False, "--compile/--no-compile")] = None,
    seed: Annotated[int | None, how("The same seed gives the same weights.", "0")] = None,
    device: Device = None,
    resume: Annotated[bool, how("Continue the run in --output-dir.", False, "--resume")] = False,
    dry_run: Annotated[bool, how("Say what would be done, with memory and time, and stop.", False, "--dry-run")] = False,
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
    given = fields_of(EraseSettings, locals(), concepts=tuple(concept) if concept else None, compile=compiled)
    settings = load_settings(EraseSettings, config, given)
    from .. import api, show
    from ..forecast import forecast
    from ..machine import Processes

    show.still_libraries()
    if dry_run:
        show.one_thread_if_small(settings.model)
        return show.forecast(forecast(settings), as_json)
    repo, shown = repo_to_push(push_to_hub, public), show.progress(quiet)
    told = api.erase(settings, output_dir, output_format=output_format, resume=resume, progress=shown)
    if Processes.here().main:
        if repo:
            from ..publishing import publish

            told["hub"] = publish(Path(told.get("exported", told["run_dir"])), repo, progress=shown)
        show.result(told, as_json)
