"""Families of denoisers: what sets Stable Diffusion 1 and 2, SDXL, SD 3 and FLUX apart, each behind `Family`."""

from __future__ import annotations

from typing import Any

from .base import Family
from .flux import Flux
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL

__all__ = ["FAMILIES", "Family", "StableDiffusion", "family_of"]

# By the pipeline's class, as model_index.json names it.
FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}


def family_of(pipeline: Any) -> Family:
    """The family of a loaded pipeline, with it inside."""
    return FAMILIES[type(pipeline).__name__](pipeline)
