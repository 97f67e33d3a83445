"""As `guided`, with errors that weigh more the more noise there is."""

from __future__ import annotations

from torch import Tensor

from ..samples import NoisedSamples
from . import RETAIN_LOSSES, RetainLoss
from .guided import TWICE, Guided


class Weighted(Guided):
    """`Guided` with its errors weighted by `Process.retain_weight` (ours): what a picture shows is decided where noise is high."""

    def weight(self, x: NoisedSamples) -> Tensor:
        return x.retain_weight


RETAIN_LOSSES.add(
    "weighted",
    RetainLoss(
        "as guided, with more weight where there is more noise",
        Weighted(),
        any_words=True,
        empty_share=0.0,
        shown_twice=TWICE,
    ),
)
