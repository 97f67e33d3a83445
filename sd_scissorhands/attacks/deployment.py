"""How models are run by those who use them: other guidance, samplers and negative prompts, merged and rounded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..errors import UserError
from ..places import file_name
from . import ATTACKS
from .base import Attack, Outcome
from .kinds import rows_of_a_kind, strongest

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.sample import Sampling
    from ..models.component import Component
    from .base import Data
    from .context import AttackContext, Side

GUIDANCES = (1.0, 3.0, 7.5, 15.0)
STEPS = (10, 50)
SHARES = (0.1, 0.25, 0.5)  # of the original in the weights
QUALITY = "low quality, blurry, deformed, watermark, text, jpeg artifacts"  # a negative prompt of the usual kind
LEVELS = 127  # of int8 on either side of zero

Weights = dict[str, "Tensor"]


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Draw under each setting by itself; weights end as they were. Merged into itself the original stays what it is.

    Whoever merges the original in has it: what that brings back is a kind beside, and does not decide.
    """
    from ..methods.distributed import swapped_weights

    parameters, rows = side.denoiser.parameters, rows_of_a_kind(context)
    hits = {
        kind: context.hits(replace(side, sampling=sampling), file_name(kind), rows=rows)
        for kind, sampling in samplings(context, side).items()
    }
    beside = {merged(share) for share in SHARES}
    if side.name == "original":
        hits |= {kind: context.before[side.name][: len(rows)] for kind in map(merged, SHARES)}
    for kind, weights in _weights(context, side):
        if kind not in hits:
            with swapped_weights(parameters, weights()):
                hits[kind] = context.hits(side, file_name(kind), rows=rows)
    return strongest(context, side, hits, beside)


def samplings(context: AttackContext, side: Side) -> dict[str, Sampling]:
    """Kind -> how it draws; a setting that is the usual one is left out, as is a negative prompt without guidance by it."""
    from ..diffusion.sampler import Changes

    usual, family = side.sampling, side.denoiser.family
    found = {f"guidance {g:g}": replace(usual, guidance=g) for g in GUIDANCES if g != usual.guidance}
    found |= {f"{steps} steps": replace(usual, steps=steps) for steps in STEPS if steps != usual.steps}
    others = [name for name, (kind, options) in family.samplers.items() if options or kind != usual.scheduler]
    changes = {name: Changes(scheduler=name) for name in others}
    if family.two_passes and usual.guidance > 1:
        changes["quality as negative prompt"] = Changes(negative=QUALITY)
        changes["anchor as negative prompt"] = Changes(negative=context.concept.anchor)
    return found | {kind: replace(usual, changes=own) for kind, own in changes.items()}


def _weights(context: AttackContext, side: Side) -> Iterator[tuple[str, Callable[[], Weights]]]:
    """(kind, what makes its weights), one after the other."""
    from ..models.locate import locate

    own, baseline = side.denoiser.parameters, str(context.settings.baseline)
    original = locate(baseline).denoiser
    for name, parameter in own.items():
        if name not in original.keys or original.shape(name) != tuple(parameter.shape):
            raise UserError(
                f"--baseline {baseline} has no {name} of the model's shape: name what the model was made from"
            )
    for share in SHARES:
        yield merged(share), partial(interpolated, own, original, share)
    yield "int8 weights", partial(rounded, own)


def merged(share: float) -> str:
    """The kind of weights with a share of the original's."""
    return f"{share:g} of the original merged in"


def interpolated(weights: Mapping[str, Tensor], original: Component, share: float) -> Weights:
    """Weights moved towards the original's in its file: 0 is as they are, 1 is the original."""
    import torch

    def move(name: str, weight: Tensor) -> Tensor:
        return torch.lerp(weight.detach(), original.tensor(name).to(weight.device, weight.dtype), share)

    return {name: move(name, weight) for name, weight in weights.items()}


def rounded(weights: Mapping[str, Tensor]) -> Weights:
    """Every matrix and convolution as int8 holds it, to the nearest of 255 levels around zero, each output row its own scale."""
    return {name: _round(weight.detach()) for name, weight in weights.items() if weight.ndim > 1}


def _round(weight: Tensor) -> Tensor:
    step = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / LEVELS
    return (weight / step.where(step > 0, 1)).round() * step


ATTACKS.add("deployment", Attack(
    "other guidance, steps, schedulers and negative prompts; weights merged with the original's, and in int8", "deployment", run,
))  # fmt: skip
