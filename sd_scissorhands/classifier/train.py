"""Answers of a classifier, and training it: the embedded model from nothing, and any model again without D_f."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings import UserError
from .data import Dataset

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # the authors', for classifiers


def logits(module: nn.Module, pictures: Tensor) -> Tensor:
    """What a module answers to pictures (B, c, h, w), whether it returns logits or an object with `.logits`: (B, classes)."""
    out = module(pictures)
    return out if isinstance(out, Tensor) else out.logits


@torch.no_grad()
def answer(module: nn.Module, data: Dataset, batch_size: int = 256) -> Tensor:
    """Logits of a whole data set, as the module stands (its mode is the caller's): (N, classes) float32 on the CPU."""
    device, classes = device_of(module), len(data.names)
    parts = [logits(module, part.to(device)).float().cpu() for part in data.pictures.split(batch_size) if len(part)]
    return torch.cat(parts) if parts else torch.empty(0, classes)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights lie."""
    return next(module.parameters()).device


@dataclass(frozen=True)
class Training:
    """How a classifier is trained; the defaults are the embedded model's."""

    epochs: int = 30
    lr: float = 0.1
    batch_size: int = 64
    optimizer: str = "sgd"  # or adam


def train(
    model: nn.Module, data: Dataset, how: Training, *, seed: int, tick: Callable[[], None] = lambda: None
) -> list[float]:
    """Train a classifier in place under cross entropy; it is left in eval mode.

    SGD with momentum .9, or Adam, with weight decay 5e-4 and a cosine from the learning rate to zero over the steps.
    Every epoch is a new order of all pictures without the last, smaller batch; nothing is augmented. The same model,
    data and settings give the same weights on one machine; the caller's random state is neither used nor changed.

    Args:
        tick: called after every epoch.

    Returns:
        The mean loss of every epoch.

    Raises:
        UserError: no picture to train on, or the loss is no longer finite.
    """
    if not len(data):
        raise UserError("there is no picture to train on: forget fewer")
    device, size = device_of(model), min(how.batch_size, len(data))
    steps = len(data) // size
    pictures, labels = data.pictures.to(device), data.labels.to(device)
    weights = [p for p in model.parameters() if p.requires_grad]
    kinds: dict[str, Any] = {"sgd": partial(torch.optim.SGD, momentum=MOMENTUM), "adam": torch.optim.Adam}
    descent = kinds[how.optimizer](weights, lr=how.lr, weight_decay=WEIGHT_DECAY)
    order, history = torch.Generator().manual_seed(seed), []
    with seeded(seed, device):
        model.train()
        for epoch in range(how.epochs):
            losses = []
            for step, rows in enumerate(torch.randperm(len(data), generator=order)[: steps * size].split(size)):
                descent.param_groups[0]["lr"] = how.lr * cosine(epoch * steps + step, how.epochs * steps)
                descent.zero_grad(set_to_none=True)
                loss = F.cross_entropy(logits(model, pictures[rows.to(device)]), labels[rows.to(device)])
                loss.backward()
                descent.step()
                losses.append(loss.detach())
            history.append(float(torch.stack(losses).mean()))
            if not math.isfinite(history[-1]):
                raise UserError(
                    f"training came to a loss that is not finite in epoch {epoch + 1}: lower the rate {how.lr}"
                )
            tick()
        model.eval()
    return history


def retrain(
    model: nn.Module, data: Dataset, how: Training, *, seed: int, tick: Callable[[], None] = lambda: None
) -> nn.Module:
    """A fresh model of the same kind, trained on `data` (D without D_f) alone: what unlearning is held against.

    With the settings that the original was trained with, only the data differ.

    Raises:
        UserError: see `fresh` and `train`.
    """
    new = fresh(model, seed)
    train(new, data, how, seed=seed, tick=tick)
    return new


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with new random weights, on the same device, in eval mode.

    A transformers model is built again from its configuration; any other is copied and its layers are reset one by one.

    Raises:
        UserError: some weights belong to a layer that cannot be reset.
    """
    with seeded(seed, device_of(model)):
        config = getattr(model, "config", None)
        kind: Any = type(model)
        if config is not None and "config" in inspect.signature(kind).parameters:
            new = kind(copy.deepcopy(config))
        else:
            new = copy.deepcopy(model)
            for name, layer in new.named_modules():
                _reset(name, layer)
    return new.to(device_of(model)).requires_grad_(True).eval()


def _reset(name: str, layer: nn.Module) -> None:
    reset: Any = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
    if reset is not None:
        reset()
    elif any(True for _ in layer.parameters(recurse=False)):
        kind = type(layer).__name__
        raise UserError(f"{name or 'the model'} ({kind}) has weights but no reset_parameters(): give it one to retrain")


def cosine(step: int, steps: int) -> float:
    """Share of the learning rate: 1 at the first step, towards 0 after the last."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


@contextmanager
def seeded(seed: int, device: torch.device):
    """torch's global random state set from a seed inside the block, and afterwards as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
