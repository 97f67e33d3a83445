"""As `guided`, with errors that weigh more the more noise there is."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..samples import NoisedSamples
from . import RETAIN_LOSSES
from .guided import Guided


class Weighted(Guided):
    """`Guided` with its errors weighted by `Process.retain_weight` (ours): what a picture shows is decided where noise is high."""

    def weight(self, x: NoisedSamples) -> Tensor:
        return x.retain_weight


RETAIN_LOSSES.add(
    "weighted",
    replace(
        RETAIN_LOSSES["guided"], summary="as guided, with more weight where there is more noise", diffusion=Weighted()
    ),
)
