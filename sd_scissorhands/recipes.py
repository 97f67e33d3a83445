"""Named ways to erase. A recipe says what makes it what it is; `COMMON` and the model's profile say the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]  # fields of EraseSettings


@dataclass(frozen=True)
class Recipe:
    """One way to erase."""

    summary: str
    source: str
    values: Values
    profiles: Mapping[str, Values] = field(default_factory=dict)  # what differs by the model's profile


COMMON: dict[str, Any] = dict(
    trim=False, scorer="contrast", score_draws=10, granularity="weight", top_k=0.001, threshold_scope="scope", init="layer",
    scope="attn", forget_target="anchor", conditions="name", forget_weight=0.3, anchor_share=0.0, retain_loss="distil",
    projection="none", memories=1, memory_every=50, relearn_every=0,
)  # fmt: skip

# What is right for the embedded model of a million weights is not right for Stable Diffusion's 860 million.
PROFILES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        forget_count=48, retain_count=160, sampling_steps=12, guidance=3.0, steps=150, lr=1e-3, batch_size=16
    ),
    "sd": dict(
        forget_count=64, retain_count=256, sampling_steps=30, guidance=7.5, steps=200, lr=1e-5, batch_size=4
    ),
}  # fmt: skip

DEFAULT_RECIPE = "scissorhands-robust"
RECIPES: dict[str, Recipe] = {
    "scissorhands-robust": Recipe(
        "Paired targets under any condition: the UNet unlearns to denoise towards the concept at all.",
        "ours",
        dict(forget_target="paired", conditions="mixture", forget_weight=0.2, anchor_share=0.3, relearn_every=2),
        {"tiny": dict(scope="full", steps=200, lr=4e-4)},
    ),
    "scissorhands-anchored": Recipe(
        "Contrast scores, a light trim, the frozen original's anchor prediction, projected gradients.",
        "ours, after Scissorhands",
        dict(trim=True, anchor_share=0.5, projection="scale-free"),
    ),
    # As the paper has it, and its code where the paper is silent: the threshold over all weights, the reset inside two
    # blocks. Not as the released code: it never projects, repeats one batch, and aims at the trimmed model's own output.
    "scissorhands": Recipe(
        "The paper: plain sensitivity, top .5 % of all weights reinitialised in two self-attentions, projected repair.",
        "Wu and Harandi, ECCV 2024, arXiv 2401.06187",
        dict(
            trim=True, scorer="plain", top_k=0.005, threshold_scope="global", init="kaiming", forget_weight=0.1,
            scope=r"up_blocks\.[12]\.attentions\.1\..*attn1", retain_loss="denoise", projection="paper",
        ),
        {"sd": dict(batch_size=16)},
    ),
    "substitution": Recipe(
        "Baseline: the original's anchor prediction on concept prompts, nothing trimmed or projected.",
        "Kumari et al., ICCV 2023, arXiv 2303.13516",
        {},
    ),
}  # fmt: skip
