"""What an optimiser moves, with which, and how its state is saved."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from .distributed import gradient_hooks
from .interface import Parameters
from .selection import Selection
from .soap import Soap

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD, the authors'

Make = Callable[[list[Tensor], float], torch.optim.Optimizer]  # an optimiser of tensors at a learning rate


def adam(tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam, the authors' for diffusion; fused, one pass over memory instead of a dozen."""
    return torch.optim.Adam(tensors, lr=lr, fused=True)


def sgd(tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Momentum SGD, the authors' for classifiers, with `WEIGHT_DECAY`."""
    return torch.optim.SGD(tensors, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def adam_8bit(tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam with its moments in 8 bits, by blocks (Dettmers et al., ICLR 2022, arXiv 2110.02861): 2 bytes a weight, not 8.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError:
        raise ValueError("optimiser adam-8bit needs bitsandbytes: pip install bitsandbytes, or take adam") from None
    return bitsandbytes.optim.Adam8bit(tensors, lr=lr)


OPTIMISERS: dict[str, Make] = {"adam": adam, "adam-8bit": adam_8bit, "sgd": sgd, "soap": Soap}


class Trained:
    """The weights that are trained: whole parameters, or a selection of their weights, with gradients and moments of that size alone."""

    def __init__(self, parameters: Parameters, only: Selection | None = None):
        """`only`: the weights; None for all. Gradients that an earlier training left in them are dropped: backward adds to these."""
        self._rows: dict[str, Tensor] = {}
        if only is not None:
            self._rows = {name: rows.to(parameters[name].device) for name, rows in only.indices.items()}
            parameters = {name: parameters[name] for name in only.indices}
        self.parameters = parameters  # by name, those with a trained weight in them
        self.tensors: dict[str, Tensor] = dict(parameters)  # by parameter, what the optimiser moves
        for name, rows in self._rows.items():
            self.tensors[name] = parameters[name].detach().view(-1)[rows]
        for parameter in parameters.values():
            parameter.grad = None

    def gathering(self) -> AbstractContextManager[None]:
        """Within it gradients of selected weights are picked as they come, so that no others are held."""
        if not self._rows:
            return nullcontext()

        def use(name: str, gradient: Tensor) -> None:
            own, tensor = gradient.view(-1)[self._rows[name]], self.tensors[name]
            tensor.grad = own if tensor.grad is None else tensor.grad.add_(own)

        return gradient_hooks(self.parameters, use)

    def gradients(self) -> list[Tensor]:
        """The gradients, zero where no loss depended on the weights."""
        for tensor in self.tensors.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor, requires_grad=False)
        return [tensor.grad for tensor in self.tensors.values() if tensor.grad is not None]

    @contextmanager
    def adding_to(self, apart: list[Tensor]) -> Iterator[None]:
        """Within it gradients are added to those in `apart`, a tensor each, and not to the tensors' own."""
        own = self.gradients()
        self._set_gradients(apart)
        yield
        apart[:] = self.gradients()
        self._set_gradients(own)

    def _set_gradients(self, gradients: list[Tensor]) -> None:
        for tensor, gradient in zip(self.tensors.values(), gradients, strict=True):
            tensor.grad = gradient

    def forget_gradients(self) -> None:
        """Drop the gradients."""
        for tensor in self.tensors.values():
            tensor.grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        """Write selected weights into their parameters."""
        for name, rows in self._rows.items():
            self.parameters[name].view(-1)[rows] = self.tensors[name]


def state_of(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's moments as named tensors: KIND/PARAMETER, the weights' kind is `weight`."""
    state = {}
    for name, tensor in tensors.items():
        state[f"weight/{name}"] = tensor.detach()
        held = optimizer.state[tensor].items()
        moments = {kind: moment for kind, moment in held if kind != "step" and isinstance(moment, Tensor)}
        for (
            kind,
            moment,
        ) in moments.items():  # tables of 8-bit codes are one tensor for all, which no file can hold twice
            state[f"{kind}/{name}"] = moment.clone() if kind.startswith("qmap") else moment
    return state


@torch.no_grad()
def restore_into(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor], step: int
) -> None:
    """Put back what `state_of` gave after `step` steps."""
    kinds = sorted({kind for kind, _, _ in (name.partition("/") for name in state)} - {"weight"})
    for name, tensor in tensors.items():
        tensor.copy_(state[f"weight/{name}"])
        own = {kind: state.get(f"{kind}/{name}") for kind in kinds}  # 8-bit Adam has others for small tensors
        optimizer.state[tensor] = {kind: moment.to(tensor.device) for kind, moment in own.items() if moment is not None}
        if isinstance(optimizer, torch.optim.Adam):
            optimizer.state[tensor]["step"] = torch.tensor(float(step), device=tensor.device)
        elif not isinstance(optimizer, torch.optim.SGD):
            optimizer.state[tensor]["step"] = step
