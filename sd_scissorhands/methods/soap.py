"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for weights whose gradients are correlated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BETAS = (0.95, 0.95)  # the paper's
REFRESH = 10  # steps between turns of the bases, the paper's
LONGEST_SIDE = 256  # rows or columns that are turned; more would take longer than the model's own pass
EPS = 1e-8


class Soap(torch.optim.Optimizer):
    """Adam with its moments in slowly turning bases (Vyas et al., ICLR 2025, arXiv 2409.11321, algorithm 3).

    Of a weight as a matrix (rows, all else), running means of G G^T and G^T G are held, and bases Q of their eigenvectors, that a step of
    power iteration turns every `REFRESH` steps. Adam's moments are those of Q_L^T G Q_R. Departures: the first step is
    taken too, the second moment is not turned with the bases (as in the authors' code), and a side longer than `LONGEST_SIDE` is left as
    it is. Vectors are Adam's.
    """

    def __init__(self, tensors: list[Tensor], lr: float):
        super().__init__(tensors, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; `closure` is not called."""
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    tensor.sub_(self._direction(tensor, tensor.grad).view_as(tensor), alpha=group["lr"])

    def _direction(self, tensor: Tensor, gradient: Tensor) -> Tensor:
        """Where a weight goes: (rows, columns)."""
        gradient = gradient.reshape(len(tensor), -1) if tensor.ndim > 1 else gradient.view(1, -1)
        state, (first, second) = self.state[tensor] or self._begin(tensor, gradient), BETAS
        state["step"] += 1
        self._turn(state, gradient)
        turned = rotated(gradient, state)
        mean = state["exp_avg"].lerp_(turned, 1 - first) / (1 - first ** state["step"])
        square = state["exp_avg_sq"].lerp_(turned.square(), 1 - second) / (1 - second ** state["step"])
        return rotated(mean / (square.sqrt() + EPS), state, back=True)

    def _begin(self, tensor: Tensor, gradient: Tensor) -> dict[str, Any]:
        """The state before the first step."""
        state = self.state[tensor]
        state |= {"step": 0, "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
        for side, size in zip(("left", "right"), gradient.shape, strict=True):
            if 1 < size <= LONGEST_SIDE and tensor.ndim > 1:
                state[side] = gradient.new_zeros(size, size)
                state[f"{side}_basis"] = torch.eye(size).to(gradient)
        return state

    @staticmethod
    def _turn(state: dict[str, Any], gradient: Tensor) -> None:
        """Take the gradient into the preconditioner, and every `REFRESH` steps turn the bases, and the first moment with them."""
        turns = state["step"] % REFRESH == 1
        mean = rotated(state["exp_avg"], state, back=True) if turns else None
        for side, matrix in (("left", gradient), ("right", gradient.T)):
            if side in state:
                state[side].lerp_(matrix @ matrix.T, 1 - BETAS[1])
                if turns:
                    state[f"{side}_basis"] = basis(state[side], state[f"{side}_basis"], first=state["step"] == 1)
        if mean is not None:
            state["exp_avg"] = rotated(mean, state)


def basis(matrix: Tensor, former: Tensor, *, first: bool) -> Tensor:
    """Eigenvectors of a symmetric matrix (n, n), or the former ones turned towards them by a step of power iteration."""
    found = torch.linalg.eigh(matrix)[1] if first else torch.linalg.qr(matrix @ former)[0]
    return (
        found.contiguous()
    )  # as a checkpoint restores it: products with another layout round otherwise on some processors


def rotated(matrix: Tensor, state: dict[str, Any], *, back: bool = False) -> Tensor:
    """Q_L^T M Q_R with the bases that there are, or, `back`, Q_L M Q_R^T: (rows, columns)."""
    left, right = state.get("left_basis"), state.get("right_basis")
    if left is not None:
        matrix = (left if back else left.T) @ matrix
    if right is not None:
        matrix = matrix @ (right.T if back else right)
    return matrix
