"""How pictures are sampled where it is not as the pipeline has it: another scheduler, fresh noise, a negative prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from .families import Family


@dataclass(frozen=True)
class Changes:
    """What is changed in a sampling; as it is made, nothing."""

    scheduler: str = ""  # a name of `Family.samplers`, or few-step; none: the pipeline's own
    eta: float = 0.0  # share of the noise that DDIM adds afresh at each step (Song et al. 2021, eq. 16)
    noise_scale: float = 1.0  # standard deviation of the start noise
    negative: str = ""  # prompt that guidance leads away from; none: the family's own, empty for most

    def to_json(self) -> dict[str, Any]:
        """Those that are made."""
        return {name: value for name, value in asdict(self).items() if value != getattr(UNCHANGED, name)}


UNCHANGED = Changes()
FEW_STEP = "few-step"  # the scheduler of `Family.few_steps`


@contextmanager
def scheduled(family: Family, name: str) -> Iterator[None]:
    """Within it the pipeline samples by one of the family's `samplers` or its `few_steps`; without a name by its own."""
    import diffusers

    own = family.pipeline.scheduler
    if name:
        kind, options = (name == FEW_STEP and family.few_steps) or family.samplers[name]
        family.pipeline.scheduler = getattr(diffusers, kind).from_config(own.config, **options)
    try:
        yield
    finally:
        family.pipeline.scheduler = own
