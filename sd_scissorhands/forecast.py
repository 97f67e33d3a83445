"""What an erasure would do and take, without doing it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .erase import Prepared, prepare
from .settings import EraseSettings
from .unlearn import methods


def forecast(settings: EraseSettings) -> dict[str, Any]:
    """What `erase` would do, without doing it: weights, memory and time to expect.

    One forward pass on one sample is timed and its saved activations are counted; a backward pass counts as two
    forward passes, guidance doubles sampling.
    """
    prepared = prepare(settings)
    s, parameters = prepared.settings, prepared.parameters
    seconds, activations = _probe(prepared)
    pictures = len(prepared.pairs) * (2 - bool(s.forget_images)) + s.retain_count * (not s.retain_images)
    looks_ahead = s.steps / s.relearn_every if s.relearn_every else 0
    passes = {
        "data": pictures * s.sampling_steps * 2,
        "scores": (s.edit != "none") * methods.passes(s.scorer) * s.score_draws * s.batch_size * 3,
        "repair": s.steps * 2 * s.batch_size * 4
        + (s.steps / s.memory_every) * s.memories * s.batch_size * 3
        + looks_ahead * s.batch_size * 1.5,
    }
    parts = [part for part in prepared.opened.pipeline.components.values() if isinstance(part, nn.Module)]
    fixed = sum(_bytes(part.parameters()) for part in parts)
    fixed += _bytes(prepared.denoiser.module.parameters())  # the teacher
    copies = 3 + (s.memories if s.projection != "none" else 0)  # gradient, two Adam moments, memories
    copies += 5 * bool(s.relearn_every)  # the simulated attacker's displacement, moments, gradient and weights
    return {
        "concepts": [c.name for c in prepared.concepts], "anchors": [c.anchor for c in prepared.concepts], "explicit": any(c.explicit for c in prepared.concepts),
        "model": prepared.opened.name, "weights_sha256": prepared.opened.weights, "scope": s.scope,
        "scope_size": prepared.scope_size, "tensors": len(parameters), "trimmed": prepared.trimmed,
        "memory_bytes": fixed + copies * _bytes(parameters.values()) + activations * 2 * s.batch_size,
        "seconds": {stage: round(count * seconds, 1) for stage, count in passes.items()},
        "settings": s.to_json(),
    }  # fmt: skip


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _probe(prepared: Prepared) -> tuple[float, int]:
    """Seconds of a forward pass per sample, and bytes of activations that a backward pass would need per sample."""
    d = prepared.denoiser
    count = 8 if prepared.opened.world else 1
    config = d.module.config
    noisy = torch.randn(count, config.in_channels, config.sample_size, config.sample_size, device=d.device)
    condition, t = d.encode([""]).expand(count, -1, -1), torch.full((count,), 500, device=d.device)
    weights = {p.untyped_storage().data_ptr() for p in d.module.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in prepared.parameters.values():
        parameter.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = d.predict(noisy, t, condition)
    del kept
    began = time.monotonic()
    with torch.no_grad():
        float(d.predict(noisy, t, condition).sum())
    return (time.monotonic() - began) / count, sum(saved.values()) // count
