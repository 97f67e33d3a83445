"""What an erasure would do and take, without doing it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .diffusion.dataset import at_once
from .diffusion.denoiser import Denoiser
from .erasure import slices_of
from .evaluations import evaluations_of, looks, shown_twice
from .machine import PeakMemory
from .methods.distributed import gradient_hooks
from .methods.project import PROTECTING_RETAINED, RULES
from .methods.scorers import SCORERS
from .methods.selection import SCORES_AT_ONCE
from .preparation import Prepared, prepare
from .results.forecast import Forecast
from .settings import EraseSettings
from .speeds import kind_of, learned

MOMENTS = {
    "adam": 8,
    "adam-8bit": 2,
    "sgd": 4,
    "soap": 16,
}  # bytes a weight; of SOAP for matrices about as wide as they are long
SLOW = 0.5  # hours from which on an erasure on a CPU is slow
FEWER = (16, 64)  # pictures of a concept and of the rest that take less
SCRATCH = 16 * SCORES_AT_ONCE  # bytes at most of a selection, beside its result


@dataclass(frozen=True)
class Probe:
    """What one sample takes, measured."""

    alone: float  # seconds of a sample's forward pass
    among: float  # and of one among as many as are sampled together, which an accelerator takes at once
    forward: int = 0  # bytes at most, beyond what was there
    backward: int = 0  # bytes of a forward and a backward pass, gradients of weights apart
    resident: int = 0  # bytes in use with the model loaded


def forecast(settings: EraseSettings) -> Forecast:
    """What `erase` would do, without doing it: weights, memory and time to expect.

    A forward and a backward pass are made on one sample, timed and their memory measured, on an accelerator also a forward pass on
    as many as are sampled together; the rest is counted: a backward pass as two forward and as three with checkpointing, guidance
    as two samples, and of every stage the tensors that it holds at a time. Where an erasure of its kind ran here, times are its.
    Scorers that take more than gradients, and the Newton step, are not counted.
    """
    prepared = prepare(settings)
    s, probe = prepared.settings, _probe(prepared)
    seconds, most = _seconds(prepared, probe), peaks(prepared, probe)
    concepts, opened = prepared.concepts, prepared.opened
    return Forecast(
        concepts=tuple(c.name for c in concepts), anchors=tuple(c.anchor for c in concepts),
        explicit=any(c.explicit for c in concepts), model=opened.name, weights_sha256=opened.weights_sha256,
        ema=opened.files.ema, scope=s.scope, scope_size=prepared.scope_size, tensors=len(prepared.parameters),
        trimmed=prepared.trimmed, memory_bytes=max(most.values()), peak_bytes=most,
        picture_seconds=2 * opened.sampling["steps"] * probe.among, pass_seconds=probe.among, profile=opened.profile,
        seconds={stage: round(expected, 1) for stage, expected in seconds.items() if expected},
        evaluations=evaluations_of(s, two_passes=opened.family.two_passes), learned=bool(_learned(prepared)), settings=s.to_json(),
    )  # fmt: skip


def slowness(prepared: Prepared) -> str:
    """That an erasure from a full-size model takes hours on this CPU, and what takes fewer; empty where it does not.

    Forward passes are timed where no erasure of its kind was timed here.
    """
    s, d = prepared.settings, prepared.denoiser
    if d.device.type != "cpu" or prepared.opened.profile != "large":
        return ""
    probe = Probe(0.0, 0.0) if {"data", "repair"} <= _learned(prepared).keys() else Probe(*_times(d, s.memory))
    less = dataclasses.replace(prepared, settings=dataclasses.replace(s, forget_count=FEWER[0], retain_count=FEWER[1]))
    hours, fewer = (sum(_seconds(one, probe).values()) / 3600 for one in (prepared, less))
    if hours < SLOW:
        return ""
    return (
        f"on this CPU the erasure takes about {hours:.1f} hours, and minutes on a GPU (--device cuda); with --set forget_count={FEWER[0]} "
        f"--set retain_count={FEWER[1]} about {fewer:.1f}; --dry-run has it by stage"
    )


def _seconds(prepared: Prepared, probe: Probe) -> dict[str, float]:
    """By stage: of the last erasure of its kind on this machine, or from what a forward pass takes."""
    s = prepared.settings
    found = evaluations_of(s, two_passes=prepared.opened.family.two_passes)
    both = 3 + s.checkpointing  # forward and backward
    again = (both - 1) * (s.projection in PROTECTING_RETAINED)  # backward
    trained = s.steps * (2 * s.batch_size + shown_twice(s))  # of the repair, beside as many of the teacher
    passes = found | {
        "scores": found.get("scores", 0) * both,
        "repair": trained * (1 + both + again) + (found.get("repair", 0) - 2 * trained - looks(s)) * both + looks(s),
    }
    one = {"repair": probe.alone if s.micro_batch == 1 else probe.among}
    seconds = {stage: count * one.get(stage, probe.among) for stage, count in passes.items() if count}
    known = _learned(prepared)
    known |= {"proof": known["held out"]} if "held out" in known else {}
    return {stage: found[stage] * known[stage] if stage in known else value for stage, value in seconds.items()}


def _learned(prepared: Prepared) -> dict[str, float]:
    """See `speeds.learned`."""
    d = prepared.denoiser
    return learned(kind_of(d.module, prepared.settings.memory, d.latent_shape[-1]))


def peaks(prepared: Prepared, probe: Probe) -> dict[str, int]:
    """Bytes at most by stage, of the stages that the settings ask for."""
    s, denoiser, scope = prepared.settings, prepared.denoiser, _bytes(prepared.parameters.values())
    scored = prepared.scored
    latents = math.prod(denoiser.latent_shape)
    words = denoiser.encode([""]).numel()
    cached = 4 * (latents + words) * (2 * len(prepared.pairs) + s.retain_count)
    together = min(at_once(denoiser, s.memory), max(len(prepared.pairs), s.retain_count))
    found = {"data": probe.resident + cached + 2 * together * probe.forward}
    resident = probe.resident + cached + scope // (2 if prepared.casts_frozen else 1)  # and the teacher
    if prepared.casts_frozen:
        frozen = _bytes(denoiser.scope("full").values()) - _bytes(scored.values())
        resident -= (frozen + _bytes(weight for part in denoiser.texts for weight in part.parameters())) // 2
    selected = scope
    if s.edit != "none" or s.train == "selection":
        scores = 4 * sum(p.numel() for p in scored.values())
        passes = SCORERS[s.scorer].passes
        found["scores"] = resident + passes * scores + s.batch_size * probe.backward
        found["selection"] = resident + scores + min(SCRATCH, 2 * scores) + int(2 * s.top_k * scores)
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
        found["repair"] = resident + held + samples * probe.backward
    return found


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _forward(d: Denoiser, samples: int) -> Tensor:
    """The sum of what the denoiser makes of some noise."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(samples, *d.latent_shape, generator=generator).to(d.device)
    words, t = d.encode([""]), torch.full((samples,), 500, device=d.device)
    return d.predict(noisy, t, words.expand(samples, -1, -1)).sum()


@torch.no_grad()
def _times(d: Denoiser, memory: str) -> tuple[float, float]:
    """See `Probe`: seconds of a sample's forward pass alone, and among others; a first one, which sets libraries up, never counts."""

    def seconds(samples: int) -> float:
        """Of one sample, after a pass that does not count."""
        float(_forward(d, samples))
        began = time.monotonic()
        float(_forward(d, samples))
        return (time.monotonic() - began) / samples

    alone = seconds(_probed(d))
    return alone, seconds(2 * at_once(d, memory)) if d.device.type != "cpu" else alone  # with guidance


def _probed(d: Denoiser) -> int:
    """Samples of a pass that is measured."""
    return 8 if d.small else 1


def _probe(prepared: Prepared) -> Probe:
    """Measure a forward pass, without and with the backward."""
    d, parameters, count = prepared.denoiser, prepared.parameters, _probed(prepared.denoiser)
    times = _times(d, prepared.settings.memory)
    peak = PeakMemory(d.device)
    with torch.no_grad():
        float(_forward(d, count))
    forward = peak.bytes() or 0
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    peak = PeakMemory(d.device)
    with gradient_hooks(parameters, lambda name, gradient: None):
        _forward(d, count).backward()
    back, resident = peak.bytes() or 0, peak.start or sum(_bytes(part.parameters()) for part in _modules(prepared))
    return Probe(*times, forward // count, back // count, resident)


def _modules(prepared: Prepared) -> list[nn.Module]:
    return [part for part in prepared.opened.pipeline.components.values() if isinstance(part, nn.Module)]
