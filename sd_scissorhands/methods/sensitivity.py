"""Connection sensitivity: how much a loss would change without each weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .distributed import SINGLE_PROCESS, ProcessGroup, gradients
from .interface import Parameters


def sensitivity(
    loss: Callable[[int], Tensor],
    parameters: Parameters,
    draws: int,
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Connection sensitivity s_i = |theta_i| * sum over draws of |dL/dtheta_i| (Scissorhands, eq. 4; SNIP).

    The absolute value is taken per draw, before the sum, as the authors' code does: gradients of opposite sign in two
    batches do not cancel.

    Args:
        loss: scalar loss of the n-th draw.
        parameters: parameters to score; other parameters get no gradient.
        draws: number of batches, shared by the group; the scores are the same bytes whatever its size.
        tick: called after every draw.

    Returns:
        name -> scores, float32, shaped as the parameter, all >= 0.

    Raises:
        FloatingPointError: a gradient is not finite; names the parameter.
    """
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    gradients(loss, parameters, draws, lambda name, g: scores[name].add_(g.abs_()), group=group, tick=tick)
    for name, parameter in parameters.items():
        scores[name].mul_(parameter.detach().abs())
        if not torch.isfinite(scores[name]).all():
            raise FloatingPointError(f"the sensitivity of {name} is not finite: the loss overflows on this model")
    return scores


def contrast(forget: dict[str, Tensor], retain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forget sensitivity over retain sensitivity, s_f / (s_r + mean s_r), in place of `forget`.

    Not in the paper. A weight that everything depends on has a high plain score for every concept; trimming it wrecks
    the model. The mean over the whole scope keeps weights that matter to nothing from winning by a small denominator.
    """
    count = sum(s.numel() for s in retain.values())
    mean = sum(float(s.sum(dtype=torch.float64)) for s in retain.values()) / count
    base = max(mean, torch.finfo(torch.float32).tiny)
    return {name: s.div_(retain[name] + base) for name, s in forget.items()}
