"""A LoRA of the concept, trained on the original and added to both models, as those are that people share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..declaration import setting
from . import ATTACKS
from .base import Attack, Outcome, images_setting

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion.denoiser import Denoiser
    from .base import Data
    from .context import AttackContext, Side

START_SEED = 5_000  # of the LoRA's own start, apart from the seeds of its steps
DOWN, UP = ".down", ".up"  # after a weight's name: (rank, inputs) and (outputs, rank)


@dataclass(frozen=True)
class LoraOptions:
    """How the LoRA is trained."""

    images: str | None = images_setting()
    learn_from: int = setting(48, "Pictures of the concept that are learned from.", least=1)
    steps: int = setting(200, "Steps of training.", least=1)
    rank: int = setting(4, "Rank of what is added to each attention projection.", least=1)
    lr: float = setting(1e-3, "Adam's learning rate.", least=0, open_ends=True)
    batch_size: int = setting(4, "Pictures per step.", least=1)


def prepare(context: AttackContext, original: Side) -> Data:
    """The LoRA: trained on the original, on pictures of the concept under prompts that name it."""
    pairs = context.training(context.options.learn_from)
    latents, d = context.concept_latents(original, pairs), original.denoiser
    conditions = d.encode([plain for _, plain in pairs])
    return trained(context, d, latents.to(d.device), conditions)


def trained(context: AttackContext, denoiser: Denoiser, latents: Tensor, conditions: Tensor) -> Data:
    """Both factors of every attention projection after training; the denoiser stays as it is."""
    import torch

    o, seed, d = context.options, context.settings.seed, denoiser
    factors = started(d, o.rank, seed)
    adam = torch.optim.Adam(factors.values(), lr=o.lr)
    with added_in_passing(d, factors), context.progress("LoRA on the original", o.steps) as tick:
        for step in range(o.steps):
            generator = torch.Generator().manual_seed(seed * (1 << 24) + step)
            rows = torch.randint(len(latents), (o.batch_size,), generator=generator)
            t = torch.randint(d.timesteps, (len(rows),), generator=generator).to(d.device)
            noise = torch.randn(latents[rows].shape, generator=generator).to(d.device)
            adam.zero_grad(set_to_none=True)
            d.loss(latents[rows], conditions[rows], noise, t).mean().backward()
            adam.step()
            tick(1)
    return {name: factor.detach() for name, factor in factors.items()}


def started(denoiser: Denoiser, rank: int, seed: int) -> dict[str, Tensor]:
    """Both factors of every attention projection before training, whose product is zero (Hu et al. 2022, section 4.1)."""
    import torch

    generator, factors = torch.Generator().manual_seed(START_SEED + seed), {}
    for name, weight in denoiser.scope("attn").items():
        if weight.ndim == 2:
            outputs, inputs = weight.shape
            down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            factors[name + DOWN] = down.to(weight.device).requires_grad_(True)
            factors[name + UP] = torch.zeros(outputs, rank, device=weight.device, requires_grad=True)
    return factors


def _names(factors: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(UP) for name in factors if name.endswith(UP)]


@contextmanager
def added_in_passing(denoiser: Denoiser, factors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it every projection adds its factors' output, differentiable in them."""
    with ExitStack() as stack:
        for name in _names(factors):
            layer = denoiser.module.get_submodule(name.removesuffix(".weight"))
            stack.callback(layer.register_forward_hook(_adding(factors[name + DOWN], factors[name + UP])).remove)
        yield


def _adding(down: Tensor, up: Tensor) -> Any:
    from torch.nn.functional import linear

    def add(module: Any, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        return output + linear(linear(inputs[0], down), up).to(output.dtype)

    return add


def added(weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the projections with the LoRA added."""

    def factor(name: str) -> Tensor:
        return factors[name].to(weights[name.removesuffix(UP).removesuffix(DOWN)].device)

    return {name: weights[name].detach() + factor(name + UP) @ factor(name + DOWN) for name in _names(factors)}


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Draw the prompts with the LoRA added; weights end as they were."""
    from ..methods.distributed import swapped_weights

    parameters = side.denoiser.parameters
    with swapped_weights(parameters, added(parameters, data)):
        hits = context.hits(side, "after")
    return Outcome(hits, [f"{row.prompt}, with the LoRA" for row in context.rows], "after")


ATTACKS.add("lora", Attack(
    "add a LoRA of the concept that was trained on the original", "LoRA", run, options=LoraOptions,
    profiles={"small": {"batch_size": 16, "steps": 100}}, prepare=prepare,
))  # fmt: skip
