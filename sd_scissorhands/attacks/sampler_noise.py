"""More noise in the sampler: fresh noise at each step, and start noise of another strength.

After the noise-based probes of Lu et al. 2025, arXiv 2505.17013, with DDIM's own noise in the place of theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..places import file_name
from . import ATTACKS
from .base import Attack, Outcome
from .kinds import rows_of_a_kind, strongest

if TYPE_CHECKING:
    from ..diffusion.families import Family
    from ..diffusion.sampler import Changes
    from .base import Data
    from .context import AttackContext, Side

ETAS = (0.5, 1.0)
SCALES = (0.9, 1.1, 1.2)


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Draw under each kind of noise."""
    rows, hits = rows_of_a_kind(context), {}
    for kind, changes in noises(side.denoiser.family).items():
        noisy = replace(side, sampling=replace(side.sampling, changes=changes))
        hits[kind] = context.hits(noisy, file_name(kind), rows=rows)
    return strongest(context, side, hits)


def noises(family: Family) -> dict[str, Changes]:
    """Kind -> what it changes; a family without DDIM has the samplers of its own, whose noise has no share."""
    from ..diffusion.sampler import Changes

    ddim = {f"DDIM, eta {eta:g}": Changes(scheduler="DDIM", eta=eta) for eta in ETAS}
    fresh = ddim if "DDIM" in family.samplers else {name: Changes(scheduler=name) for name in family.samplers}
    return fresh | {f"start noise times {scale:g}": Changes(noise_scale=scale) for scale in SCALES}


ATTACKS.add(
    "sampler-noise", Attack("fresh noise at each step, and start noise of another strength", "sampler noise", run)
)
