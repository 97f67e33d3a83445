"""What a model card has by its pipeline's family: the first lines, which the hub reads, and how the model is used."""

from __future__ import annotations

from typing import Any

from ..attacks import ATTACKS
from ..diffusion.families import FAMILIES
from ..errors import UserError
from ..files import read_json
from ..lineage import base_of
from ..models.licence import for_derived_card
from ..models.locate import find_pipeline
from ..naming import Name
from .commands import hub_id
from .reading import RunRecord

OWN_TAGS = ("concept-erasure", "sd_scissorhands")


def card_facts(run: RunRecord) -> dict[str, Any]:
    """front (YAML), family, edited (the part that is), licence and untried (attacks), for the card's template."""
    from huggingface_hub import ModelCardData

    family, base = FAMILIES[loader_of(run)], base_on_hub(run)
    licence = for_derived_card(run.erased.licence if run.erased else {}, base)
    front = ModelCardData(
        base_model=base, library_name="diffusers", pipeline_tag="text-to-image", tags=[*family.hub_tags, *OWN_TAGS],
        license=licence.get("license"), license_name=licence.get("license_name"), license_link=licence.get("license_link"),
    )  # fmt: skip
    edited = family.called.removeprefix("the ")
    tried = {attack.attack for attack in run.attacks.values()}
    untried = [attack.title for name, attack in ATTACKS if name not in tried and attack.graded]
    return {"front": front.to_yaml(), "family": family, "edited": edited, "licence": licence, "untried": untried}


def loader_of(run: RunRecord) -> str:
    """The pipeline's class, by the model's index; that of Stable Diffusion where there is none."""
    try:
        loader = read_json(run.path / "model" / "model_index.json")["_class_name"]
    except (OSError, ValueError, LookupError, TypeError):
        loader = None
    return loader if loader in FAMILIES else "StableDiffusionPipeline"


def base_on_hub(run: RunRecord) -> str | None:
    """The hub id of the model that a run started from, itself or by way of other runs; without revision and variant."""
    names = (run.source.model, base_of(str(run.path / "model")))
    found = (hub_id(Name.parse(str(name)).location) for name in names if name)
    return next(filter(None, found), None)


# ---------------------------------------------------------------- use

LOAD = """```python
{torch}from diffusers import {loader}

pipeline = {loader}.{how}("{place}"{options})
image = pipeline("your prompt").images[0]
```"""
PUT_IN = """```python
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.{part}.load_state_dict(load_file(hf_hub_download("{repo}", "{file}")))
image = pipeline("your prompt").images[0]
```"""
LAY_OVER = (
    "An add-on for the base alone, in LyCORIS's layout: load it in ComfyUI or A1111 as a LoRA, at strength 1. **At a strength below 1, or left "
    "out, the concept is back.** {whose} What it makes of a base is a model like any other, to be measured as one:"
)
OF_THE_WHOLE = "The {measured} on this card {be} of the whole erased model, not of this add-on."
APPLY = """```bash
hf download {repo} {file} --local-dir .
sdscissor apply {base} {file} --output-dir erased
```"""


def use(run: RunRecord, repo: str | None, file: str | None, to: str) -> str:
    """How the model is used, in Markdown; see `page.card_text`."""
    loader, base = loader_of(run), base_on_hub(run) or "BASE-MODEL"
    if to in ("delta", "lycoris"):
        made = APPLY.format(repo=repo, file=file, base="tiny" if run.source.model == "tiny" else base)
        return f"{LAY_OVER.format(whose=_of_the_whole(run))}\n\n{made}" if to == "lycoris" else made
    if to == "unet-only":
        return PUT_IN.format(repo=repo, file=file, base=base, part=FAMILIES[loader].part)
    if to == "single-file":
        place = f"https://huggingface.co/{repo}/blob/main/{file}"
        return LOAD.format(loader=loader, how="from_single_file", place=place, options="", torch="")
    place, options = repo or "path/to/this/directory", load_options(run)
    torch = "import torch\n" if "torch." in options else ""
    return LOAD.format(loader="DiffusionPipeline", how="from_pretrained", place=place, options=options, torch=torch)


def _of_the_whole(run: RunRecord) -> str:
    """What of an add-on's card is about another model: nothing that was not measured."""
    proof, figures = run.erased and run.erased.proof, run.summaries
    if not (proof or figures):
        return "Neither it nor the whole erased model was measured."
    measured = " and the ".join(["proof"] * bool(proof) + ["figures"] * bool(figures))
    return OF_THE_WHOLE.format(measured=measured, be="are" if figures else "is")


def load_options(run: RunRecord) -> str:
    """What diffusers must be given to load a run's model: the variant, and half precision where the text encoder's config has it."""
    try:
        files = find_pipeline(run.path)
        config = files.config(files.family.texts[0])
    except UserError:
        return ""
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    options = {
        "variant": files.variant and f'"{files.variant}"',
        "torch_dtype": dtype in ("float16", "bfloat16") and f"torch.{dtype}",
    }
    return "".join(f", {name}={value}" for name, value in options.items() if value)
