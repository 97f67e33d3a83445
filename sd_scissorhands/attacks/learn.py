"""The attacks that learn: a word embedding, a suffix of real tokens, and the weights themselves. Each a plain function.

All minimise the denoising loss of the attacked model on pictures of the concept; none needs another classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..diffusion.denoiser import Denoiser
from ..diffusion.slots import Slotted, by_group, encode, looked_up, plain_tokens, side_by_side, vocabularies, width_of
from ..evaluation.prompts import Row
from ..evaluation.sample import Encode
from ..methods.optimisers import restore_into, state_of

FIXED_DRAWS = 4  # timesteps and noises over which candidate suffixes are compared
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """Pictures of the concept and the prompts under which the attacked model is to draw them."""

    denoiser: Denoiser
    latents: Tensor  # (N, c, h, w), scaled
    prompts: Slotted  # N, one a latent

    def loss(
        self, rows: Tensor, vectors: Tensor, generator: torch.Generator, *, each: bool = False, at: int | None = None
    ) -> Tensor:
        """Denoising loss of `rows` with `vectors` in the free places: the mean, or one number a row.

        t is uniform, or `at`, and the noise normal, both from `generator`, on the CPU.
        """
        d, clean = self.denoiser, self.latents[rows]
        t = torch.randint(d.timesteps, (len(rows),), generator=generator).to(d.device)
        t = t if at is None else torch.full_like(t, at)
        noise = torch.randn(clean.shape, generator=generator).to(d.device)
        losses = d.loss(clean, encode(d, self.prompts[rows], vectors), noise, t)  # (B,)
        return losses if each else losses.mean()


@dataclass
class Embedding:
    """The state of an embedding attack."""

    vectors: Tensor  # (width, d)
    mean: Tensor  # Adam's moments
    square: Tensor
    step: int = 0


def start_embedding(target: Target, *, seed: int, restart: int, word: Sequence[Tensor] | None) -> Embedding:
    """Where a restart begins: the first at `word`, (own width, d) a group; others at normal draws with the vocabularies' moments."""
    known, width = vocabularies(target.denoiser), width_of(target.denoiser, target.prompts)
    mean, spread = torch.cat([own.mean(0) for own in known]), torch.cat([own.std(0) for own in known])
    noise = torch.randn(width, len(mean), generator=torch.Generator().manual_seed(seed * 1000 + restart))
    vectors = mean + spread * noise.to(mean)
    if restart == 0 and word is not None:
        for part, own in zip(by_group(target.denoiser, vectors), word, strict=True):
            part[: len(own)] = own[:width]
    return Embedding(vectors, torch.zeros_like(vectors), torch.zeros_like(vectors))


def _parameters(
    denoiser: Denoiser, vectors: Tensor, lr: float, decay: float | None
) -> tuple[list[nn.Parameter], torch.optim.Adam]:
    """Vectors (..., d) as one parameter a group of encoders, and Adam with `lr` of each vocabulary's own spread as its rate.

    Args:
        decay: AdamW's weight decay; its rate is then `lr` itself, as published budgets have it.
    """
    parts = [nn.Parameter(part.clone()) for part in by_group(denoiser, vectors)]
    rates = [lr * float(known.std()) if decay is None else lr for known in vocabularies(denoiser)]
    groups = [{"params": [part], "lr": rate} for part, rate in zip(parts, rates, strict=True)]
    return parts, torch.optim.Adam(groups) if decay is None else torch.optim.AdamW(groups, weight_decay=decay)


def learn_embedding(
    target: Target,
    state: Embedding,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    decay: float | None = None,
    callback: Callable[[Embedding], None] = lambda state: None,
) -> Embedding:
    """Learn vectors in the word slot that make the attacked model denoise pictures of the concept.

    Concept Inversion (Pham et al. 2024, arXiv 2308.01508), which is textual inversion (Gal et al. 2023, eq. 2) on the
    erased model: argmin over v of E |eps - eps_theta(x_t, t, c(v))|^2, by Adam. Departs in its learning rate, which is a
    share of each vocabulary's own spread, so that it fits every text encoder, and which falls linearly to a tenth. With
    `decay` neither: AdamW at a constant rate, as published.

    Args:
        lr: share of the vocabulary's standard deviation that a step may move a number; with `decay` the number itself.
        callback: called after each step; what it is given can be saved and handed in again to continue.
    """
    d = target.denoiser
    parts, adam = _parameters(d, state.vectors, lr, decay)
    for part, mean, square in zip(parts, by_group(d, state.mean), by_group(d, state.square), strict=True):
        taken = torch.tensor(float(state.step))
        adam.state[part] = {"step": taken, "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
    rates = [group["lr"] for group in adam.param_groups]
    for step in range(state.step, steps):
        generator = torch.Generator().manual_seed(seed * (1 << 24) + step)
        rows = torch.randint(len(target.latents), (batch_size,), generator=generator)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - 0.9 * step / steps) if decay is None else rate
        _descend(target.loss(rows, side_by_side(parts), generator), parts, parts, adam)
        moments = [adam.state[part] for part in parts]
        means, squares = ([own[name] for own in moments] for name in ("exp_avg", "exp_avg_sq"))
        state = Embedding(side_by_side(parts).detach(), side_by_side(means), side_by_side(squares), step + 1)
        callback(state)
    return state


def _descend(loss: Tensor, at: Sequence[Tensor], parts: Sequence[nn.Parameter], adam: torch.optim.Adam) -> None:
    """Move `parts` one step against the gradient that is taken at `at`."""
    for part, gradient in zip(parts, torch.autograd.grad(loss, at), strict=True):
        part.grad = gradient
    adam.step()


def learn_tokens(
    target: Target, rows: Tensor, *, steps: int, lr: float, seed: int, decay: float | None = None,
    callback: Tick = lambda count: None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A suffix of real tokens for each of some prompts, each for its own picture of the concept.

    UnlearnDiffAtk's objective (Zhang et al. 2024, arXiv 2310.11868, eq. 4): argmin over the tokens of the attacked model's
    own denoising loss on one target picture. Projected gradient: free vectors are moved by the gradient taken where they
    project to, at their nearest tokens (Wen et al. 2023, arXiv 2302.03668, algorithm 1), which departs from the
    authors' relaxed one-hot vectors (`token_weights` has these); and as there the best tokens met on the way are held, by
    their loss over fixed draws. Every group of encoders has tokens of its own vocabulary.

    Args:
        decay: P4D's (Chin et al. 2024, arXiv 2309.06135): AdamW with this weight decay at a rate of `lr` itself, and the
            nearest tokens by the angle between vectors.
        rows: (P,) which of the target's prompts and latents.

    Returns:
        ids: (P, width, groups) int64. losses: (P,) of these tokens.
    """
    d = target.denoiser
    plain = [torch.tensor(own, device=d.device) for own in plain_tokens(d)]
    choice = looked_up(vocabularies(d), plain)  # (tokens, d) a group
    shape, generator = (len(rows), width_of(d, target.prompts)), torch.Generator().manual_seed(seed)
    first = [torch.randint(len(own), shape, generator=generator).to(d.device) for own in plain]
    parts, adam = _parameters(d, side_by_side(looked_up(choice, first)), lr, decay)  # (P, width, d) a group
    near = _nearest if decay is None else _nearest_by_angle
    best, least = torch.stack(looked_up(plain, first), -1), torch.full((len(rows),), float("inf"), device=d.device)
    for step in range(steps):
        nearest = [near(part.detach(), own) for part, own in zip(parts, choice, strict=True)]  # (P, width) a group
        at = [own.requires_grad_(True) for own in looked_up(choice, nearest)]
        generator = torch.Generator().manual_seed(seed * (1 << 24) + step)
        _descend(target.loss(rows, side_by_side(at), generator, each=True).sum(), at, parts, adam)
        if step % 5 == 0 or step == steps - 1:
            losses = fixed_loss(target, rows, side_by_side(at).detach(), seed)
            better = losses < least
            best = torch.where(better[:, None, None], torch.stack(looked_up(plain, nearest), -1), best)
            least = torch.where(better, losses, least)
        callback(len(rows))
    return best.cpu(), least.cpu()


@torch.no_grad()
def fixed_loss(target: Target, rows: Tensor, vectors: Tensor, seed: int) -> Tensor:
    """(P,) the loss over the same few timesteps and noises every time."""
    draws = [
        target.loss(rows, vectors, torch.Generator().manual_seed(seed + 7_000 + n), each=True)
        for n in range(FIXED_DRAWS)
    ]
    return torch.stack(draws).mean(0)


def _nearest(vectors: Tensor, choice: Tensor) -> Tensor:
    """The nearest rows of `choice` by Euclidean distance: (..., d) to (...)."""
    return torch.cdist(vectors.reshape(-1, vectors.shape[-1]), choice).argmin(1).view(vectors.shape[:-1])


def _nearest_by_angle(vectors: Tensor, choice: Tensor) -> Tensor:
    """The rows of `choice` at the smallest angle: (..., d) to (...)."""
    return _nearest(normalize(vectors, dim=-1), normalize(choice, dim=-1))


def encoder(denoiser: Denoiser, prompts: Slotted, vectors: Tensor) -> Encode:
    """Conditions of rows, which are numbered as the prompts, with vectors in the free places.

    Args:
        vectors: (width, d) for all prompts alike, or (N, width, d), one set each.
    """

    def encode_rows(rows: Sequence[Row]) -> Tensor:
        numbers = torch.tensor([row.number for row in rows])
        return encode(denoiser, prompts[numbers], vectors if vectors.ndim == 2 else vectors[numbers])

    return encode_rows


class Relearning:
    """Fine-tuning on a few pictures, in place: the whole denoiser but its norm layers, by Adam.

    The relearn time of the unlearning literature (Golatkar et al. 2020, section 5): how soon a few examples bring the
    knowledge back. The denoising loss is that of ordinary fine-tuning.
    """

    def __init__(
        self, denoiser: Denoiser, latents: Tensor, conditions: Tensor, *, lr: float, batch_size: int, seed: int
    ):
        self.denoiser, self.latents, self.conditions = denoiser, latents, conditions
        self.batch_size, self.seed, self.step = batch_size, seed, 0
        self.parameters = denoiser.scope("full")
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.adam = torch.optim.Adam(self.parameters.values(), lr=lr)

    def run(self, until: int, callback: Tick = lambda count: None) -> None:
        """Go on to a step."""
        d = self.denoiser
        while self.step < until:
            generator = torch.Generator().manual_seed(self.seed * (1 << 24) + self.step)
            rows = torch.randint(len(self.latents), (self.batch_size,), generator=generator)
            t = torch.randint(d.timesteps, (len(rows),), generator=generator).to(d.device)
            noise = torch.randn(self.latents[rows].shape, generator=generator).to(d.device)
            self.adam.zero_grad(set_to_none=True)
            d.loss(self.latents[rows], self.conditions[rows], noise, t).mean().backward()
            self.adam.step()
            self.step += 1
            callback(1)

    def state(self) -> dict[str, Tensor]:
        """Weights and both Adam moments, by name."""
        return state_of(self.parameters, self.adam)

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from a `state` taken after `step` steps."""
        restore_into(self.parameters, self.adam, tensors, step)
        self.step = step
