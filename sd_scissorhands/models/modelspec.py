"""A file's metadata: ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec), and under our own prefix what was erased."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .. import __version__
from ..naming import without_folder
from .pipeline_directory import PipelineDirectory
from .prediction import ZERO_KEYS, Prediction

SPEC, OWN = "modelspec.", "sdscissor."
HASH = SPEC + "hash_sha256"
LDM_CODE, DIFFUSERS = "https://github.com/Stability-AI/generative-models", "diffusers"  # as trainers write it
ARCHITECTURES = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2", 2048: "stable-diffusion-xl-v1-base"}
STALE = ("sshs_model_hash", "sshs_legacy_hash", *ZERO_KEYS)  # of a base's tensors, which ours are not


def metadata(
    model: PipelineDirectory,
    *,
    weights: str,
    ldm: bool,
    base: Mapping[str, str] | None = None,
    adapter: str | None = None,
) -> dict[str, str]:
    """A file's metadata but for the hash of the tensors, which is known when they are written.

    The date is that of the weights and not of the export, so that the same model gives the same file.

    Args:
        weights: sha256 of the denoiser.
        ldm: whether the tensors have LDM's names, or diffusers'.
        base: metadata of the file whose other tensors are retained; ours lies over it.
        adapter: what the file is, if it is laid over a model: lora or lycoris.
    """
    retained = {name: text for name, text in (base or {}).items() if name not in STALE}
    spec = _spec(model, ldm)
    if adapter:
        spec[SPEC + "architecture"] += f"/{adapter}"
        spec |= _for_a1111(model)
    return retained | spec | _own(model, weights)


def _for_a1111(model: PipelineDirectory) -> dict[str, str]:
    """How kohya's scripts name the base's family, by which A1111 lists an add-on."""
    width = model.config("unet").get("cross_attention_dim")
    family = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}.get(width or 0)
    named = {"ss_base_model_version": family} if family else {}
    return named | ({"ss_v2": "True"} if family == "sd_v2" else {})


def _spec(model: PipelineDirectory, ldm: bool) -> dict[str, str]:
    denoiser, vae, scheduler = (model.config(one) for one in (model.family.part, "vae", "scheduler"))
    prediction = Prediction.of_scheduler(scheduler)
    base = without_folder((model.manifest and model.manifest.source.model) or "")
    title, description = base.rpartition("/")[2] or model.directory.name, f"written by sd_scissorhands {__version__}"
    if (erased := model.manifest and model.manifest.erased) and erased.concepts:
        concepts, how = ", ".join(erased.concepts), f"{erased.recipe}, seed {erased.seed}"
        title = f"{title} without {concepts}"
        description = (
            f"{base} with {concepts} erased by sd_scissorhands {__version__} ({how}); an erasure is no guarantee"
        )
    written = datetime.fromtimestamp(int(model.denoiser.files[0].path.stat().st_mtime), UTC)
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture(denoiser, prediction.name),
        "implementation": LDM_CODE if ldm else DIFFUSERS,
        "title": title,
        "description": description,
        "date": written.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    size, levels = denoiser.get("sample_size"), vae.get("block_out_channels")
    if isinstance(size, int) and isinstance(levels, Sequence):
        side = size * 2 ** (len(levels) - 1)  # of a picture, in pixels
        spec["resolution"] = f"{side}x{side}"
    named = prediction.metadata() if model.family.part == "unet" else {}  # flow matching has no name there
    return {SPEC + name: text for name, text in spec.items()} | named


def architecture(denoiser: Mapping[str, Any], prediction: str) -> str:
    """ModelSpec's name of what a program must know to run it; a model of another size has a name that none knows."""
    if denoiser.get("_class_name") == "FluxTransformer2DModel":
        return "flux-1-dev" if denoiser.get("guidance_embeds") else "flux-1-schnell"
    if denoiser.get("_class_name") == "SD3Transformer2DModel":
        return "stable-diffusion-3"
    name = ARCHITECTURES.get(denoiser.get("cross_attention_dim") or 0, "stable-diffusion-of-another-size")
    if name == "stable-diffusion-v2":
        return f"{name}-768-v" if prediction == "v" else f"{name}-512"
    return name


def _own(model: PipelineDirectory, weights: str) -> dict[str, str]:
    values: dict[str, Any] = {"version": __version__, "weights_sha256": weights}
    if (manifest := model.manifest) and (erased := manifest.erased):
        values |= {
            "recipe": erased.recipe, "concepts": json.dumps(erased.concepts), "anchors": json.dumps(erased.anchors),
            "seed": erased.seed, "base": without_folder(manifest.source.model or ""), "base_revision": manifest.settings.get("revision"),
            "base_sha256": manifest.source.weights_sha256,
        }  # fmt: skip
    return {OWN + name: str(value) for name, value in values.items() if value is not None}
