"""UnlearnDiffAtk's search for tokens: weights over the vocabulary, of which one token is drawn at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.slots import looked_up, plain_tokens, side_by_side, vocabularies, width_of
from .learn import Target, Tick, fixed_loss

TIMES = 50  # timesteps that the search goes through, from little noise to much
DECAY = 0.1  # of the weights, as Adam's L2 penalty


def learn_weights(
    target: Target, rows: Tensor, *, steps: int, lr: float, seed: int, callback: Tick = lambda count: None
) -> tuple[Tensor, Tensor]:
    """Real tokens for each of some prompts, each for its own picture of the concept.

    UnlearnDiffAtk (Zhang et al. 2024, arXiv 2310.11868): every place has weights over all tokens, which lie on the
    simplex and are equal at first. A step draws a token by them, takes the denoising loss's gradient as if the drawn one-hot
    vector were the weights, cut to [-1, 1], moves the weights by Adam, and projects them onto the simplex again. After each
    timestep the tokens of the largest weights are candidates; the best is held by its loss over fixed draws.

    Args:
        rows: (P,) which of the target's prompts and latents.
        steps: in all, shared out evenly over `TIMES` timesteps.

    Returns:
        ids: (P, width, groups) int64. losses: (P,) of these tokens.
    """
    d, shape = target.denoiser, (len(rows), width_of(target.denoiser, target.prompts))
    plain = [torch.tensor(own, device=d.device) for own in plain_tokens(d)]
    choice = looked_up(vocabularies(d), plain)  # (tokens, d) a group
    weights = [nn.Parameter(own.new_full((*shape, len(own)), 1 / len(own))) for own in choice]
    adam = torch.optim.Adam(weights, lr=lr, weight_decay=DECAY)
    best = torch.zeros(*shape, len(plain), dtype=torch.int64, device=d.device)
    least = torch.full((len(rows),), float("inf"), device=d.device)
    for step in range(steps):
        place = step * TIMES // steps
        generator = torch.Generator().manual_seed(seed * (1 << 24) + step)
        at = [own.requires_grad_(True) for own in looked_up(choice, [_drawn(one, generator) for one in weights])]
        time = (2 * place + 1) * d.timesteps // (2 * TIMES)
        loss = target.loss(rows, side_by_side(at), generator, each=True, at=time).sum()
        for one, gradient, own in zip(weights, torch.autograd.grad(loss, at), choice, strict=True):
            one.grad = (gradient @ own.T).clamp(-1, 1)
        adam.step()
        for one in weights:
            one.data = on_simplex(one.data)
        if step == steps - 1 or (step + 1) * TIMES // steps != place:
            largest = [one.argmax(-1) for one in weights]
            losses = fixed_loss(target, rows, side_by_side(looked_up(choice, largest)), seed)
            better = losses < least
            best = torch.where(better[:, None, None], torch.stack(looked_up(plain, largest), -1), best)
            least = torch.where(better, losses, least)
        callback(len(rows))
    return best.cpu(), least.cpu()


def _drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """A token a place, drawn by its weights with a generator on the CPU: (P, width, tokens) to (P, width)."""
    at = torch.rand(*weights.shape[:-1], 1, generator=generator).to(weights.device)
    sums = weights.detach().cumsum(-1)
    return (sums < at * sums[..., -1:]).sum(-1).clamp_max(weights.shape[-1] - 1)


def on_simplex(values: Tensor) -> Tensor:
    """The nearest weights that are not negative and sum to 1, of the last dimension (Duchi et al. 2008, figure 1)."""
    ordered = values.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = (ordered * torch.arange(1, values.shape[-1] + 1, device=values.device) > excess).sum(-1, keepdim=True)
    return (values - excess.gather(-1, count - 1) / count).clamp_min(0)
