"""Work that several processes share, and batches taken in parts: both are the same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BatchSlice:
    """Every `count`-th sample of a batch, from the `index`-th on."""

    index: int = 0
    count: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """The part's samples of a batch (B, ...)."""
        return batch[self.index :: self.count]

    def mean(self, values: Tensor, total: int) -> Tensor:
        """A scalar of the part's values; over all parts these average to the mean of the batch's `total` values."""
        return values.sum() * (self.count / max(total, 1))


FULL_BATCH = BatchSlice()


class ProcessGroup(Protocol):
    """Processes that hold the same weights and share the work on them."""

    @property
    def index(self) -> int:
        """This process among them, from 0."""
        ...

    @property
    def count(self) -> int:
        """How many they are."""
        ...

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by their means over the processes."""
        ...

    def broadcast(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Replace tensors, in place, by those of process `owner`."""
        ...


class SingleProcess:
    """A group of one."""

    index, count = 0, 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def broadcast(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Nothing to do."""


SINGLE_PROCESS = SingleProcess()


@contextmanager
def swapped_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the parameters hold other weights, without a copy; gradients are gathered in the parameters as ever.

    A pass back through gradient checkpointing repeats the forward pass, so it belongs inside too.
    """
    held = {name: parameters[name].data for name in weights}
    try:
        for name, weight in weights.items():
            parameters[name].data = weight
        yield
    finally:
        for name, weight in held.items():
            parameters[name].data = weight


def gradients(
    loss: Callable[[int], Tensor],
    parameters: Mapping[str, nn.Parameter],
    draws: int,
    use: Callable[[str, Tensor], object],
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Hand the gradient of every draw's loss to `use(name, gradient)`, draw after draw, and forget it.

    SingleProcess, a gradient goes as soon as it is there, so that no two of them are held at a time. A group computes as many draws at
    a time as it has processes; every process is handed those of all draws, in their order, so that sums have the same bytes
    whatever its size.

    Args:
        loss: scalar loss of the n-th draw.
        tick: called after every draw.
    """
    if group.count == 1:
        with gradient_hooks(parameters, use):
            for draw in range(draws):
                _backward(loss(draw), parameters)
                tick()
        return
    for start in range(0, draws, group.count):
        mine = start + group.index
        own = torch.autograd.grad(loss(mine), list(parameters.values()), allow_unused=True) if mine < draws else ()
        for owner in range(min(group.count, draws - start)):
            for place, (name, parameter) in enumerate(parameters.items()):
                told = own[place] if owner == group.index else torch.empty_like(parameter)
                told = torch.zeros_like(parameter) if told is None else told.contiguous()
                group.broadcast([told], owner)
                use(name, told)
            tick()


@contextmanager
def gradient_hooks(parameters: Mapping[str, nn.Parameter], use: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Within it a pass back hands every parameter's gradient to `use(name, gradient)` and leaves none behind."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            use(name, parameter.grad)
            parameter.grad = None

        return take

    for parameter in parameters.values():
        parameter.grad = None
    handles = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _backward(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """The pass back to the parameters alone; a loss that depends on none of them has none."""
    if loss.requires_grad:
        torch.autograd.backward(loss, inputs=list(parameters.values()))
