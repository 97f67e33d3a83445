"""What a file says of itself: ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec), and under our own prefix what was erased."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from .source import Source

SPEC, OWN = "modelspec.", "sdscissor."
HASH = SPEC + "hash_sha256"
LDM_CODE, DIFFUSERS = "https://github.com/Stability-AI/generative-models", "diffusers"  # as trainers write it
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
FAMILIES = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2", 2048: "stable-diffusion-xl-v1-base"}
STALE = ("sshs_model_hash", "sshs_legacy_hash")  # of a base's tensors, which ours are not


def metadata(source: Source, *, weights: str, ldm: bool, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The header's names and texts but for the hash of the tensors, which is known when they are written.

    The date is that of the weights and not of the export, so that the same model gives the same file.

    Args:
        weights: sha256 of the denoiser.
        ldm: whether the tensors have LDM's names, or diffusers'.
        base: what the file says whose other tensors are kept; it stays, where ours says nothing of the same name.
    """
    kept = {name: text for name, text in (base or {}).items() if name not in STALE}
    return kept | _spec(source, ldm) | _own(source, weights)


def _spec(source: Source, ldm: bool) -> dict[str, str]:
    denoiser, vae, scheduler = (source.config(part) for part in (source.family.part, "vae", "scheduler"))
    prediction = PREDICTIONS.get(scheduler.get("prediction_type", "epsilon"), "epsilon")
    base, result = _told(source)
    erased = ", ".join(result.get("concepts") or ())
    name = Path(base).name or source.directory.name
    written = source.denoiser.file.path.stat().st_mtime
    told = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture(denoiser, prediction),
        "implementation": LDM_CODE if ldm else DIFFUSERS,
        "title": f"{name} without {erased}" if erased else name,
        "description": _description(base, erased, result),
        "date": datetime.fromtimestamp(int(written), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if source.family.part == "unet":  # flow matching has no name there
        told["prediction_type"] = prediction
    if side := _side(denoiser, vae):
        told["resolution"] = f"{side}x{side}"
    return {SPEC + name: text for name, text in told.items()}


def _told(source: Source) -> tuple[str, Mapping[str, Any]]:
    """The base's name and the run's result."""
    manifest = source.manifest or {}
    return str((manifest.get("source") or {}).get("model", "")), manifest.get("result") or {}


def _description(base: str, erased: str, result: Mapping[str, Any]) -> str:
    if not erased:
        return f"written by sd_scissorhands {__version__}"
    how = f"{result.get('recipe')}, seed {result.get('seed')}"
    return f"{base} with {erased} erased by sd_scissorhands {__version__} ({how}); an erasure is no guarantee"


def _side(denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int | None:
    """The side of a picture in pixels."""
    size, levels = denoiser.get("sample_size"), vae.get("block_out_channels")
    return size * 2 ** (len(levels) - 1) if isinstance(size, int) and isinstance(levels, Sequence) else None


def architecture(denoiser: Mapping[str, Any], prediction: str) -> str:
    """ModelSpec's name of what a program must know to run it; a model of another size has a name that none knows."""
    if denoiser.get("_class_name") == "FluxTransformer2DModel":
        return "flux-1-dev" if denoiser.get("guidance_embeds") else "flux-1-schnell"
    if denoiser.get("_class_name") == "SD3Transformer2DModel":
        return "stable-diffusion-3"
    family = FAMILIES.get(denoiser.get("cross_attention_dim") or 0, "stable-diffusion-of-another-size")
    if family == "stable-diffusion-v2":
        return f"{family}-768-v" if prediction == "v" else f"{family}-512"
    return family


def _own(source: Source, weights: str) -> dict[str, str]:
    base, result = _told(source)
    told: dict[str, Any] = {"version": __version__, "weights_sha256": weights}
    if result:
        settings = (source.manifest or {})["settings"]
        told |= {
            "recipe": result.get("recipe"), "concepts": json.dumps(result.get("concepts") or []),
            "anchors": json.dumps(result.get("anchors") or []), "seed": result.get("seed"), "base": base,
            "base_revision": settings.get("revision"), "base_sha256": (source.manifest or {})["source"]["weights_sha256"],
        }  # fmt: skip
    return {OWN + name: str(value) for name, value in told.items() if value is not None}
