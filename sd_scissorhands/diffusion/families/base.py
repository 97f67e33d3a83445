"""What a family defines: its denoiser, its words, its noise, and how its pipeline samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...concepts import SLOT
from ..noise_process import Discrete, Process

DISCRETE = tuple(  # the schedulers whose noise goes by discrete steps with a cumulated alpha each
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete",
        "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD",
        "UniPCMultistep",
    )
)  # fmt: skip
UNET_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "LMS": ("LMSDiscreteScheduler", {}),
}
# Spaced over all timesteps, whatever the pipeline's config has: fewer than that begin where noise is not yet all there is.
FEW_STEPS: tuple[str, dict[str, Any]] = (
    "DPMSolverMultistepScheduler",
    {"algorithm_type": "dpmsolver++", "solver_order": 2, "timestep_spacing": "linspace"},
)
UNET_SCOPES = {"xattn": r"\.attn2\.", "attn": r"\.attn[12]\.", "full": ""}


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and its text encoder."""

    tokenizer: Any
    model: Any
    length: int  # tokens that every prompt is padded or cut to

    @classmethod
    def of_clip(cls, tokenizer: Any, model: Any) -> Encoder:
        """A CLIP's, with the tokenizer's length or, where that is missing or more, as many tokens as the model has positions."""
        return cls(tokenizer, model, min(tokenizer.model_max_length, model.config.max_position_embeddings))

    @property
    def embedding(self) -> nn.Embedding:
        """The module that looks up tokens; `get_input_embeddings` of a T5 is another, tied to it."""
        stack: Any = getattr(self.model, "encoder", None)
        return stack.embed_tokens if hasattr(stack, "embed_tokens") else self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """Numbers in a token's embedding."""
        return self.embedding.weight.shape[1]

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids: (B, length) int64."""
        return self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids  # fmt: skip

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than are read."""
        return len(prompt.encode()) + 2 > self.length and len(self.tokenizer(prompt).input_ids) > self.length

    def slotted(self, prompt: str, width: int) -> tuple[Tensor, Tensor]:
        """Ids (length,) of a prompt with `width` positions for vectors in its slot, or at its end, and which these are, (length,) bool.

        What does not fit is cut off behind them. They hold a token that is not the last one, where a CLIP reads its pooled
        embedding.
        """
        pad, last = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        first = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]  # T5 has none
        before, _, after = prompt.partition(SLOT)
        head, tail = (
            self.tokenizer(part, add_special_tokens=False).input_ids for part in (before.strip(), after.strip())
        )
        most = self.length - 1 - len(first)
        head = head[: most - width]
        inside = [*first, *[*head, *[first[0] if first else pad] * width, *tail][:most], last]
        ids, free = torch.full((self.length,), pad), torch.zeros(self.length, dtype=torch.bool)
        ids[: len(inside)] = torch.tensor(inside)
        free[len(first) + len(head) : len(first) + len(head) + width] = True
        return ids, free


class Family:
    """A pipeline of one family.

    A condition is one tensor, (B, tokens, width), whatever the family: a pooled embedding is its last row, with zeros up
    to the width. Ids are one tensor too, (B, ids): those of every encoder side by side.
    """

    title: ClassVar[str] = "Stable Diffusion"  # for people
    hub_tags: ClassVar[tuple[str, ...]] = ("stable-diffusion",)  # of its models
    part: ClassVar[str] = "unet"  # of the pipeline, the denoiser
    called: ClassVar[str] = "the UNet"
    texts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    optional: ClassVar[tuple[str, ...]] = ()  # text encoders that may be left out
    scopes: ClassVar[Mapping[str, str]] = UNET_SCOPES
    guidance: ClassVar[float] = 7.5  # where nothing else is asked for
    two_passes: ClassVar[bool] = True  # whether guidance takes a second pass, without the words
    dtype: ClassVar[str] = "fp16"  # of its passes on an accelerator
    # Schedulers that its pictures can be drawn with beside its own: name -> diffusers' class, and what its config is given.
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = UNET_SAMPLERS
    few_steps: ClassVar[tuple[str, Mapping[str, Any]] | None] = (
        FEW_STEPS  # of these, the one for few steps; None: none known
    )

    def __init__(self, pipeline: Any):
        self.pipeline: Any = pipeline
        self.module: Any = getattr(pipeline, self.part)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.module.device

    # ------------------------------------------------------------ what each family defines

    @classmethod
    def objection(cls, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Why a pipeline cannot be used, by the config.json of its parts and of its scheduler; None if it can."""
        raise NotImplementedError

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """Its text encoders, in the order of their ids."""
        raise NotImplementedError

    def condition(self, ids: Tensor) -> Tensor:
        """Conditions of ids (B, ids), differentiable in what the token embeddings give: (B, tokens, width) float32."""
        raise NotImplementedError

    def predict(self, noisy: Tensor, t: Tensor, condition: Tensor, process: Process) -> Tensor:
        """The module's output: (B, c, h, w)."""
        raise NotImplementedError

    def sample(self, condition: Tensor, without: Tensor, **how: Any) -> Tensor:
        """Latents by the pipeline itself: (B, c, h, w).

        Args:
            without: the condition that guidance leads away from.
            how: num_inference_steps, guidance_scale, height, width and generator, as the pipeline calls them; latents,
                (B, c, h, w), where the noise is given; eta where it is not 0.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ what most have in common

    def process(self) -> Process:
        """How it adds noise."""
        return Discrete(self.pipeline.scheduler, self.device)

    def unconditional(self, count: int) -> Tensor:
        """What guidance leads away from, the empty prompt for most: (count, tokens, width) float32."""
        return self.condition(self.ids([""] * count))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a picture of the model's own size."""
        side = self.module.config.sample_size
        return self.module.config.in_channels, side, side

    @property
    def picture_size(self) -> int:
        """Side of the pictures that the denoiser was made for, in pixels."""
        return self.latent_shape[-1] * self.pipeline.vae_scale_factor

    @property
    def multiple(self) -> int:
        """What a picture's sides must be multiples of, in pixels."""
        return self.pipeline.vae_scale_factor * 2 ** (len(self.module.config.block_out_channels) - 1)

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids of prompts, every encoder's: (B, ids) int64."""
        return torch.cat([encoder.ids(prompts) for encoder in self.encoders], 1).to(self.device)

    def remarks_on(self, prompts: Sequence[str]) -> list[str]:
        """A sentence on the prompts of which no encoder reads the end, if there are any."""
        cut = sum(all(encoder.cuts(prompt) for encoder in self.encoders) for prompt in prompts)
        most = max(encoder.length for encoder in self.encoders)
        sentence = (
            f"{cut:,} of {len(prompts):,} prompts are longer than the text encoder reads, {most} tokens, and were cut"
        )
        return [sentence] * bool(cut)

    def apart(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Ids, or what is shaped like them, by encoder: (B, length) each."""
        return ids.split([encoder.length for encoder in self.encoders], 1)

    @cached_property
    def groups(self) -> list[list[Encoder]]:
        """Its encoders, in their order; neighbours that share a vocabulary are one group."""
        return [list(group) for _, group in groupby(self.encoders, lambda encoder: encoder.tokenizer.get_vocab())]

    def vocabularies(self) -> list[Tensor]:
        """Token embeddings of every group, its encoders' side by side: (tokens, d) float32 each, without gradient."""
        weights = [[encoder.embedding.weight.detach().float() for encoder in group] for group in self.groups]
        return [own[0] if len(own) == 1 else torch.cat(own, 1) for own in weights]

    @contextmanager
    def instead(self, free: Tensor, vectors: Tensor) -> Iterator[None]:
        """Put vectors in the free places of what the token embeddings give, for as long as the block lasts.

        Args:
            free: (B, ids) bool.
            vectors: (B, width, d), d being all encoders' side by side. An encoder with fewer places takes the first.
        """
        parts = vectors.split([encoder.width for encoder in self.encoders], -1)
        with ExitStack() as stack:
            for encoder, own, part in zip(self.encoders, self.apart(free), parts, strict=True):
                stack.callback(encoder.embedding.register_forward_hook(_putting(own, part)).remove)
            yield


def _putting(free: Tensor, vectors: Tensor):
    number = (free.cumsum(1) - 1).clamp_min(0)[..., None]  # of the vector for each free place: (B, ids, 1)

    def put(module: nn.Module, ids: Any, embedded: Tensor) -> Tensor:
        own = vectors.gather(1, number.expand(-1, -1, vectors.shape[-1])).to(embedded.dtype)
        return torch.where(free[..., None], own, embedded)

    return put


def with_pooled(tokens: Tensor, pooled: Tensor) -> Tensor:
    """A pooled embedding (B, p) as one more row of the tokens (B, n, width), p <= width: (B, n + 1, width)."""
    return torch.cat([tokens, F.pad(pooled, (0, tokens.shape[2] - pooled.shape[1]))[:, None]], 1)


def without_pooled(condition: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, n, d) and pooled embedding (B, width) of a condition (B, n + 1, d)."""
    return condition[:, :-1], condition[:, -1, :width]


def sampled_with_pooled(pipeline: Any, condition: Tensor, without: Tensor, own: int, **how: Any) -> Tensor:
    """`Family.sample` of a pipeline that takes tokens and pooled embedding (B, own) apart: (B, c, h, w)."""
    words, pooled = without_pooled(condition, own)
    away, away_pooled = without_pooled(without, own)
    return pipeline(
        prompt_embeds=words, pooled_prompt_embeds=pooled, negative_prompt_embeds=away,
        negative_pooled_prompt_embeds=away_pooled, output_type="latent", **how,
    ).images  # fmt: skip


def unet_objection(configs: Mapping[str, Mapping[str, Any]], *, added: str | None) -> str | None:
    """Why a UNet cannot be used; `added`: the kind of further conditions that the family's have."""
    unet, scheduler = configs["unet"], configs["scheduler"]
    inputs, outputs = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if inputs == 9:
        return "its UNet has 9 input channels, it was made for inpainting"
    if inputs != outputs:
        return (
            f"its UNet has {inputs} input and {outputs} output channels, it takes or gives more than a picture's noise"
        )
    if unet.get("time_cond_proj_dim"):
        return "its UNet takes the guidance as an input, it was distilled"
    if unet.get("addition_embed_type") != added:
        return f"its UNet takes further conditions ({unet.get('addition_embed_type')}, not {added})"
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        return f"it predicts {kind}, neither epsilon nor v_prediction"
    if (name := scheduler.get("_class_name", "DDIMScheduler")) not in DISCRETE:
        return f"its noise goes by {name}, not by discrete steps: put the config of another scheduler into scheduler/"
    if kind == "epsilon" and no_signal_at_the_end(scheduler):
        return (
            "it predicts epsilon and has zero terminal SNR, where the noise says nothing of the picture: in "
            "scheduler/scheduler_config.json set rescale_betas_zero_snr to false, or prediction_type to v_prediction if it was trained so"
        )
    return None


def no_signal_at_the_end(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config leaves nothing of the picture at the last step."""
    betas = scheduler.get("trained_betas")
    return bool(scheduler.get("rescale_betas_zero_snr")) or (isinstance(betas, list) and bool(betas) and betas[-1] == 1)
