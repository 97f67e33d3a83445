"""What a model card says by its pipeline's kind: the first lines, which the hub reads, and how the model is used."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..lineage import base_of
from ..models.licence import linked
from ..naming import Name
from .commands import hub_id
from .reading import RunRecord

OWN_TAGS = ("concept-erasure", "sd_scissorhands")


class Kind(NamedTuple):
    """A kind of pipeline."""

    loader: str  # diffusers' class
    called: str
    edited: str  # the part that is
    tags: tuple[str, ...]  # the hub's


KINDS = (
    Kind("StableDiffusionPipeline", "Stable Diffusion", "UNet", ("stable-diffusion",)),
    Kind("StableDiffusionXLPipeline", "Stable Diffusion XL", "UNet", ("stable-diffusion", "stable-diffusion-xl")),
    Kind("StableDiffusion3Pipeline", "Stable Diffusion 3", "transformer", ("stable-diffusion", "stable-diffusion-3")),
    Kind("FluxPipeline", "FLUX.1", "transformer", ("flux",)),
)


def card_facts(run: RunRecord) -> dict[str, Any]:
    """front (YAML), kind and licence, for the card's template."""
    from huggingface_hub import ModelCardData

    kind, base = kind_of(run), base_on_hub(run)
    licence = linked(run.erased.licence if run.erased else {}, base)
    front = ModelCardData(
        base_model=base, library_name="diffusers", pipeline_tag="text-to-image", tags=[*kind.tags, *OWN_TAGS],
        license=licence.get("license"), license_name=licence.get("license_name"), license_link=licence.get("license_link"),
    )  # fmt: skip
    return {"front": front.to_yaml(), "kind": kind, "licence": licence}


def kind_of(run: RunRecord) -> Kind:
    """By the model's index; the first where there is none."""
    try:
        loader = json.loads((run.path / "model" / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, LookupError, TypeError):
        loader = None
    return next((kind for kind in KINDS if kind.loader == loader), KINDS[0])


def base_on_hub(run: RunRecord) -> str | None:
    """The hub id of the model that a run started from, itself or by way of other runs; without revision and variant."""
    names = (run.source.model, base_of(str(run.path / "model")))
    found = (hub_id(Name.parse(str(name)).place) for name in names if name)
    return next(filter(None, found), None)


# ---------------------------------------------------------------- use

LOAD = """```python
from diffusers import {loader}

pipeline = {loader}.{how}("{place}")
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
APPLY = """```bash
hf download {repo} {file} --local-dir .
sdscissor apply {base} {file} --output-dir erased
```"""


def use(run: RunRecord, repo: str | None, file: str | None, to: str) -> str:
    """How the model is used, in Markdown; see `page.card_text`."""
    kind, base = kind_of(run), base_on_hub(run) or "BASE-MODEL"
    if to == "delta":
        return APPLY.format(repo=repo, file=file, base="tiny" if run.source.model == "tiny" else base)
    if to == "unet-only":
        return PUT_IN.format(repo=repo, file=file, base=base, part=kind.edited.lower())
    if to == "single-file":
        place = f"https://huggingface.co/{repo}/blob/main/{file}"
        return LOAD.format(loader=kind.loader, how="from_single_file", place=place)
    return LOAD.format(loader="DiffusionPipeline", how="from_pretrained", place=repo or "path/to/this/directory")
