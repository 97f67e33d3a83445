"""Work that several processes share, and batches taken in slices: both are the same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BatchSlice:
    """Every `count`-th sample of a batch, from the `index`-th on."""

    index: int = 0
    count: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """The slice's samples of a batch (B, ...)."""
        return batch[self.index :: self.count]

    def mean(self, values: Tensor, total: int) -> Tensor:
        """A scalar of the slice's values; over all slices these average to the mean of the batch's `total` values."""
        return values.sum() * (self.count / max(total, 1))


FULL_BATCH = BatchSlice()


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that hold the same weights and share the work on them; as it stands, one process alone."""

    index: int = 0  # this process among them
    count: int = 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by their means over the processes."""

    def broadcast(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Replace tensors, in place, by those of process `owner`."""


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def swapped_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the parameters hold other weights, without a copy; gradients still accumulate in the parameters.

    The backward pass belongs inside too: under gradient checkpointing it repeats the forward pass.
    """
    held = {name: parameters[name].data for name in weights}
    try:
        for name, weight in weights.items():
            parameters[name].data = weight
        yield
    finally:
        for name, weight in held.items():
            parameters[name].data = weight


def backward(loss: Tensor, parameters: Mapping[str, nn.Parameter], *, keep_graph: bool = False) -> None:
    """Add a loss's gradients; a loss that depends on no weight, as of a slice without samples, has none.

    Args:
        keep_graph: keep what a second backward pass through the same forward pass needs.
    """
    if loss.requires_grad:
        torch.autograd.backward(loss, retain_graph=keep_graph, inputs=list(parameters.values()))


def gradients(
    loss: Callable[[int], Tensor],
    parameters: Mapping[str, nn.Parameter],
    draws: int,
    use: Callable[[str, Tensor], object],
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Call `use(name, gradient)` with the gradient of every draw's loss, draw after draw; none is held on to.

    One process alone frees a gradient as soon as it is used, so that no two of them are held at a time. A group computes as many
    draws at a time as it has processes; every process uses those of all draws, in their order, so that sums have the same bytes
    whatever its size.

    Args:
        loss: scalar loss of the n-th draw.
        tick: called after every draw.
    """
    if group.count == 1:
        with gradient_hooks(parameters, use):
            for draw in range(draws):
                backward(loss(draw), parameters)
                tick()
        return
    for start in range(0, draws, group.count):
        mine = start + group.index
        own = torch.autograd.grad(loss(mine), list(parameters.values()), allow_unused=True) if mine < draws else ()
        for owner in range(min(group.count, draws - start)):
            for number, (name, parameter) in enumerate(parameters.items()):
                shared = own[number] if owner == group.index else torch.empty_like(parameter)
                shared = torch.zeros_like(parameter) if shared is None else shared.contiguous()
                group.broadcast([shared], owner)
                use(name, shared)
            tick()


@contextmanager
def gradient_hooks(parameters: Mapping[str, nn.Parameter], use: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Within it a backward pass calls `use(name, gradient)` with every parameter's gradient and leaves none behind."""

    def take(name: str, parameter: Tensor) -> None:
        """Use the gradient and drop it."""
        assert parameter.grad is not None
        use(name, parameter.grad)
        parameter.grad = None

    for parameter in parameters.values():
        parameter.grad = None
    handles = [p.register_post_accumulate_grad_hook(partial(take, name)) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
