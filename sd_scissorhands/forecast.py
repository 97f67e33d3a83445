"""What an erasure would do and take, without doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .diffusion.dataset import at_once
from .erasure import slices_of
from .machine import PeakMemory
from .methods.distributed import gradient_hooks
from .methods.project import PROTECTING_RETAINED, RULES
from .methods.retain_losses import RETAIN_LOSSES
from .methods.scorers import SCORERS
from .methods.selection import SCORES_AT_ONCE
from .preparation import Prepared, prepare
from .proof import DRAWN, steps_of
from .results.forecast import Forecast
from .settings import EraseSettings

MOMENTS = {
    "adam": 8,
    "adam-8bit": 2,
    "sgd": 4,
    "soap": 16,
}  # bytes a weight; of SOAP for matrices about as wide as they are long
SCRATCH = 16 * SCORES_AT_ONCE  # bytes at most of a selection, beside its result


@dataclass(frozen=True)
class Probe:
    """What one sample takes, measured."""

    alone: float  # seconds of a sample's forward pass
    among: float  # and of one among as many as are sampled together, which an accelerator takes at once
    forward: int  # bytes at most, beyond what was there
    backward: int  # bytes of a forward and a backward pass, gradients of weights apart
    resident: int  # bytes in use with the model loaded


def forecast(settings: EraseSettings) -> Forecast:
    """What `erase` would do, without doing it: weights, memory and time to expect.

    A forward and a backward pass are made on one sample, timed and their memory measured, on an accelerator also a forward pass on
    as many as are sampled together; the rest is counted: a backward pass as two forward and as three with checkpointing, guidance
    as two samples, and of every stage the tensors that it holds at a time. Scorers that take more than gradients, and the Newton
    step, are not counted.
    """
    prepared = prepare(settings)
    s, probe = prepared.settings, _probe(prepared)
    steps = len(prepared.pairs) * (2 - bool(s.forget_images)) * s.sampling_steps  # of the sampling of all pictures
    steps += s.retain_count * (not s.retain_images) * (s.retain_sampling_steps or s.sampling_steps)
    relearned = s.steps / s.relearn_every if s.relearn_every else 0  # steps of the adversary
    chooses = s.edit != "none" or s.train == "selection"
    both = 3 + s.checkpointing  # forward and backward
    again = (both - 1) * (s.projection in PROTECTING_RETAINED)  # backward
    repair = (
        s.steps * (2 * s.batch_size + shown_twice(s)) * (1 + both + again)
        + (RULES[s.projection] is not None) * (s.steps / s.memory_every) * s.batch_size * both
        + relearned * s.batch_size / 2 * both
    )
    seconds = {
        "data": steps * 2 * probe.among,
        "scores": chooses * SCORERS[s.scorer].passes * s.score_draws * s.batch_size * both * probe.among,
        "repair": repair * (probe.alone if s.micro_batch == 1 else probe.among),
        "proof": s.verify * DRAWN * steps_of(s) * 2 * probe.among,
    }
    peaks = _peaks(prepared, probe)
    concepts, opened = prepared.concepts, prepared.opened
    return Forecast(
        concepts=tuple(c.name for c in concepts), anchors=tuple(c.anchor for c in concepts),
        explicit=any(c.explicit for c in concepts), model=opened.name, weights_sha256=opened.weights_sha256,
        ema=opened.files.ema, scope=s.scope, scope_size=prepared.scope_size, tensors=len(prepared.parameters),
        trimmed=prepared.trimmed, memory_bytes=max(peaks.values()), peak_bytes=peaks,
        picture_seconds=2 * opened.sampling["steps"] * probe.among, pass_seconds=probe.among, profile=opened.profile,
        seconds={stage: round(expected, 1) for stage, expected in seconds.items() if expected}, settings=s.to_json(),
    )  # fmt: skip


def _peaks(prepared: Prepared, probe: Probe) -> dict[str, int]:
    """Bytes at most by stage, of the stages that the settings ask for."""
    s, denoiser, scope = prepared.settings, prepared.denoiser, _bytes(prepared.parameters.values())
    scored = prepared.scored
    latents = math.prod(denoiser.latent_shape)
    words = denoiser.encode([""]).numel()
    cached = 4 * (latents + words) * (2 * len(prepared.pairs) + s.retain_count)
    together = min(at_once(denoiser, s.memory), max(len(prepared.pairs), s.retain_count))
    peaks = {"data": probe.resident + cached + 2 * together * probe.forward}
    resident = probe.resident + cached + scope // (2 if prepared.casts_frozen else 1)  # and the teacher
    if prepared.casts_frozen:
        resident -= (_bytes(denoiser.scope("full").values()) - _bytes(scored.values())) // 2
    selected = scope
    if s.edit != "none" or s.train == "selection":
        scores = 4 * sum(p.numel() for p in scored.values())
        passes = SCORERS[s.scorer].passes
        peaks["scores"] = resident + passes * scores + s.batch_size * probe.backward
        peaks["selection"] = resident + scores + min(SCRATCH, 2 * scores) + int(2 * s.top_k * scores)
    if s.train == "selection":
        selected = int(4 * s.top_k * prepared.scope_size)
    if s.steps:
        gradients = 1 + (RULES[s.projection] is not None) + (s.projection in PROTECTING_RETAINED)
        held = selected * gradients + selected // 4 * MOMENTS[s.optimiser]
        held += 4 * scope * bool(s.relearn_every)  # the adversary's displacement, its moments, the weights there
        slices = slices_of(s, 1)
        samples = math.ceil(2 * s.batch_size / slices)
        samples -= s.batch_size // 2 * bool(s.relearn_every) if samples == 2 * s.batch_size else 0
        samples += math.ceil(shown_twice(s) / slices)
        peaks["repair"] = resident + held + samples * probe.backward
    return peaks


def shown_twice(s: EraseSettings) -> int:
    """Retain samples of a batch that the loss shows twice."""
    return int(RETAIN_LOSSES[s.retain_loss].shown_twice * s.batch_size)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _probe(prepared: Prepared) -> Probe:
    """Measure a forward pass, without and with the backward; a first one, which sets libraries up, never counts."""
    d, parameters = prepared.denoiser, prepared.parameters
    count = 8 if prepared.denoiser.small else 1
    words = d.encode([""])

    def forward(samples: int = count) -> Tensor:
        noisy, t = torch.randn(samples, *d.latent_shape, device=d.device), torch.full((samples,), 500, device=d.device)
        return d.predict(noisy, t, words.expand(samples, -1, -1)).sum()

    @torch.no_grad()
    def seconds(samples: int) -> float:
        """How long one forward pass of some samples takes."""
        began = time.monotonic()
        float(forward(samples))
        return (time.monotonic() - began) / samples

    seconds(count)
    peak = PeakMemory(d.device)
    alone, forward_bytes = seconds(count), peak.bytes() or 0
    among = alone
    if d.device.type != "cpu":
        together = 2 * at_once(d, prepared.settings.memory)  # with guidance
        seconds(together)
        among = seconds(together)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    peak = PeakMemory(d.device)
    with gradient_hooks(parameters, lambda name, gradient: None):
        forward().backward()
    back, resident = peak.bytes() or 0, peak.start or sum(_bytes(part.parameters()) for part in _modules(prepared))
    return Probe(alone, among, forward_bytes // count, back // count, resident)


def _modules(prepared: Prepared) -> list[nn.Module]:
    return [part for part in prepared.opened.pipeline.components.values() if isinstance(part, nn.Module)]
