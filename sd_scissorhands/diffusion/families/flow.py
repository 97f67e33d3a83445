"""What the families with flow matching have in common: a transformer, joint attention, shifted sigmas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..noise_process import FlowMatching, Process
from .base import Family

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal")


class Flow(Family):
    """A transformer in which the picture's and the words' tokens attend to each other jointly.

    There is no cross-attention. `xattn` is what comes closest: the projections of the words' keys and values, which are
    all that the picture reads of them.
    """

    part = "transformer"
    called = "the transformer"
    scopes: ClassVar[Mapping[str, str]] = {"xattn": r"\.attn\.add_[kv]_proj\.", "attn": r"\.attn2?\.", "full": ""}
    dtype = "bf16"  # as they are published; activations of FLUX pass what fp16 can hold
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
        "Euler with fresh noise": (SCHEDULER, {"stochastic_sampling": True})
    }
    few_steps = None
    patch = 2  # side of the patches that the transformer sees, in latents

    @classmethod
    def objection(cls, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
        """See `Family.objection`: other noise, or more input than the noised picture, is refused."""
        scheduler, own = configs["scheduler"], configs["transformer"]
        if (name := scheduler.get("_class_name")) != SCHEDULER:
            return f"its scheduler is {name}, not {SCHEDULER}"
        if other := next((option for option in OTHER_SIGMAS if scheduler.get(option)), None):
            return f"its scheduler has {other}, which goes by other noise"
        if own.get("out_channels") not in (None, own.get("in_channels")):
            return f"its transformer has {own.get('in_channels')} input channels, it sees more than the noised picture"
        return None

    def process(self) -> Process:
        side = self.latent_shape[-1] // self.patch
        return FlowMatching.of(self.pipeline.scheduler, self.device, tokens=side * side)

    @property
    def multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.patch
