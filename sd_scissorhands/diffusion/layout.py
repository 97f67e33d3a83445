"""How the weights of convolutions lie in memory."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn


def channels_last(module: nn.Module, without: Container[str] = ()) -> None:
    """Lay convolution weights out channels last, as the tensor cores of a GPU read them; values, names and shapes stay.

    Args:
        without: names of weights that stay as they are: those that are scored or trained, which are read in their order.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 4 and name not in without:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
