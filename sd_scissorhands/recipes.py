"""Named ways to unlearn. A recipe sets what makes it what it is; `COMMON` and the model's profile set the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]  # fields of EraseSettings or ForgetSettings
BATCH_NORM = "classifier with batch norm"
DENOISERS, CLASSIFIERS = (
    ("small", "large"),
    ("classifier", BATCH_NORM),
)  # profiles of models, by size and kind; see `PipelineDirectory.profile` and `classifier.load.profile_of`


@dataclass(frozen=True)
class Recipe:
    """One way to unlearn."""

    summary: str
    source: str
    values: Values
    profiles: Mapping[str, Values] = field(default_factory=dict)  # what differs by the model's profile
    fits: tuple[str, ...] = DENOISERS + CLASSIFIERS  # profiles that it can be used on
    baseline: bool = False  # there to be compared with, not to be shipped


COMMON: dict[str, Any] = dict(
    scorer="contrast", score_draws=10, granularity="weight", top_k=0.001, threshold_scope="scope",
    scope="attn", edit="none", repair="anchor", conditions="name", forget_weight=0.3, anchor_share=0.0, open_share=0.0,
    retain_loss="distil", other_words=0.5, optimiser="adam", train="scope", projection="none", memory_every=50,
    relearn_every=0, retain_sampling_steps=0, relative_lr=0.0, calibrate=False, solver="own",
)  # fmt: skip

# What is right for a model of a million weights, such as the embedded one, is not right for Stable Diffusion's 860 million.
PROFILES: dict[str, dict[str, Any]] = {
    "small": dict(
        forget_count=48, retain_count=160, sampling_steps=12, guidance=3.0, steps=150, lr=1e-3, batch_size=16
    ),
    "large": dict(
        forget_count=64, retain_count=256, sampling_steps=30, guidance=7.5, steps=200, lr=1e-5, batch_size=4
    ),
    "classifier": dict(
        steps=400, lr=3e-2, batch_size=64, scope="full", optimiser="sgd", memory_every=20, repair="ascent",
        forget_weight=0.05, damping=0.03,
    ),
    # A tenth of the rate and half of the steps: chosen on a ResNet-18, see docs/experiments.md, section 7.
    BATCH_NORM: dict(steps=200, lr=3e-3),
}  # fmt: skip
BASED_ON = {BATCH_NORM: "classifier"}  # a profile -> the one whose values it has where it names none

# How much memory a run may take, from the least to what is there; bf16 is autocast around float32 master weights. `low` also keeps
# what stays frozen and the teacher in bf16, and takes Adam's moments in 8 bits where bitsandbytes is installed.
MEMORY: dict[str, dict[str, Any]] = {
    "low": dict(mixed_precision="bf16", checkpointing=True, micro_batch=1),
    "balanced": dict(mixed_precision="bf16", checkpointing=True, micro_batch=0),
    "fast": dict(mixed_precision="no", checkpointing=False, micro_batch=0),
}
# What differs on a CPU: bf16 is a hundred times slower than float32 on most, and samples take as long together as one by one.
ON_CPU: dict[str, dict[str, Any]] = {
    "low": dict(mixed_precision="no"),
    "balanced": dict(mixed_precision="no", checkpointing=False, micro_batch=1),
    "fast": {},
}

DEFAULT_RECIPE = "scissorhands-open"
PAIRED = dict(
    repair="paired", conditions="mixture", forget_weight=0.2, anchor_share=0.3, relearn_every=2, other_words=0.0,
    relative_lr=0.0047, calibrate=True,
)  # fmt: skip
WHOLE = dict(scope="full", lr=4e-4)  # of a small UNet
# There the pairs weigh more; the rest is held by what guidance makes of it, on more pictures that are drawn in fewer steps each.
PAIRED_WHOLE = PAIRED | WHOLE | dict(
    forget_weight=0.7, steps=260, retain_loss="guided", retain_count=480, retain_sampling_steps=6
)  # fmt: skip
OPEN_TOO = dict(open_share=0.5)
# One threshold over all weights would reset 70 % of a ResNet-18's first layer, and leave a repair nothing to build on.
FEWER_BY_LAYER = dict(top_k=0.005, threshold_scope="layer")
RECIPES: dict[str, Recipe] = {
    "scissorhands-open": Recipe(
        "Paired targets under any condition, and prompts that leave the concept open are retained too.",
        "ours",
        PAIRED | OPEN_TOO,
        {"small": PAIRED_WHOLE | OPEN_TOO | dict(forget_weight=0.15, steps=280, optimiser="soap", retain_loss="weighted")},
        fits=DENOISERS,
    ),
    # Fine-tuning brings the concept back later, and more of what no prompt names turns into the anchor: docs/experiments.md.
    "scissorhands-robust": Recipe(
        "Paired targets under any condition: the UNet unlearns to denoise towards the concept at all.",
        "ours",
        PAIRED,
        {"small": PAIRED_WHOLE},
        fits=DENOISERS,
    ),
    "scissorhands-anchored": Recipe(
        "Contrast scores, a light trim, the frozen original's anchor prediction, projected gradients.",
        "ours, after Scissorhands",
        dict(edit="reinitialise", anchor_share=0.5, projection="scale-free"),
        fits=DENOISERS,
    ),
    # As the paper has it, and its code where the paper is silent: the threshold over all weights, the reset inside two
    # blocks. Not as the released code: it never projects, repeats one batch, and aims at the trimmed model's own output.
    "scissorhands": Recipe(
        "The paper: plain sensitivity, the most sensitive weights reinitialised, projected repair.",
        "Wu and Harandi, ECCV 2024, arXiv 2401.06187",
        dict(scorer="plain", edit="reinitialise", projection="paper"),
        {
            "large": dict(
                scope=r"up_blocks\.[12]\.attentions\.1\..*attn1", top_k=0.005, threshold_scope="global", init="kaiming",
                forget_weight=0.1, retain_loss="denoise", batch_size=16,
            ),
            "small": dict(top_k=0.001, projection="scale-free"),
            "classifier": dict(top_k=0.015, projection="scale-free"),
            BATCH_NORM: FEWER_BY_LAYER,
        },
    ),
    "lra-npp": Recipe(
        "The paper: the units that unseen pictures of the concept owe their outcome to become zero.",
        "arXiv 2410.23693",
        dict(scorer="relevance", granularity="channel", edit="zero", top_k=0.02, threshold_scope="layer", score_draws=3),
        {
            "small": PAIRED_WHOLE,
            "large": PAIRED,
            "classifier": dict(
                scope="head", granularity="weight", path_share=0.05, top_k=0.5, repair="none", score_draws=10
            ),
        },
    ),
    "l-codec": Recipe(
        "The paper: a Newton step on the few units that say something of the loss that no other says.",
        "Mehta et al., CVPR 2022, arXiv 2204.07655",
        dict(scorer="foci", granularity="channel", edit="newton", top_k=0.5, score_draws=20),
        {"small": PAIRED_WHOLE | dict(rounds=2), "large": PAIRED | dict(rounds=2), "classifier": dict(repair="none")},
    ),
    "retain-only": Recipe(
        "Baseline: fine-tuning on what is to be kept, nothing else.",
        "the usual lower bound",
        dict(repair="retain", retain_loss="denoise"),
        baseline=True,
    ),
    "gradient-ascent": Recipe(
        "Baseline: up the loss on what is to be forgotten, down that on the rest.",
        "Thudi et al., EuroS&P 2022, arXiv 2109.13398",
        dict(repair="ascent"),
        baseline=True,
    ),
    "salun": Recipe(
        "Baseline: wrong answers for what is to be forgotten, on the half of the weights that it moves most.",
        "Fan et al., ICLR 2024, arXiv 2310.12508",
        dict(scorer="gradient", top_k=0.5, train="selection", repair="random-label", retain_loss="denoise"),
        {
            "small": WHOLE | dict(steps=200), "large": dict(scope="full"),
            "classifier": dict(forget_weight=1.0, lr=3e-3), BATCH_NORM: dict(lr=1e-3),
        },
        baseline=True,
    ),
    "esd": Recipe(
        "Baseline: away from the concept by negative guidance, on the model's own half-finished pictures.",
        "Gandikota et al., ICCV 2023, arXiv 2303.07345",
        dict(repair="negative-guidance", scope="xattn", forget_weight=1.0, retain_loss="none"),
        {"small": dict(lr=4e-4)},
        fits=DENOISERS,
        baseline=True,
    ),
    "substitution": Recipe(
        "Baseline: the original's anchor prediction on concept prompts, nothing trimmed or projected.",
        "Kumari et al., ICCV 2023, arXiv 2303.13516",
        {},
        fits=DENOISERS,
        baseline=True,
    ),
    "random-k": Recipe(
        "Baseline: scissorhands with as many weights picked by lot.",
        "control",
        dict(scorer="random", edit="reinitialise", projection="paper"),
        {
            "small": dict(top_k=0.001, projection="scale-free"),
            "large": dict(top_k=0.005, init="kaiming"),
            "classifier": dict(top_k=0.015, projection="scale-free"),
            BATCH_NORM: FEWER_BY_LAYER,
        },
        baseline=True,
    ),
}  # fmt: skip


def values_for(recipe: Recipe, profile: str) -> dict[str, Any]:
    """All settings of a recipe on models of a profile: the recipe's own before the profile's, and that before `COMMON`."""
    profiles = [BASED_ON[profile], profile] if profile in BASED_ON else [profile]
    layers = [COMMON, *(PROFILES[name] for name in profiles), recipe.values]
    layers += [recipe.profiles.get(name, {}) for name in profiles]
    return {setting: value for layer in layers for setting, value in layer.items()}


def recipes_for(profile: str) -> tuple[str, ...]:
    """The recipes that can be used on models of a profile."""
    return tuple(name for name, recipe in RECIPES.items() if profile in recipe.fits)
