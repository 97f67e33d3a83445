"""Pictures with labels, and what is forgotten and retained of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import UserError

HELD_OUT, UNSEEN = 0.3, 4 / 9  # share of all that is held out where no test set came along; share of that for methods


@dataclass(frozen=True)
class Dataset:
    """Pictures as a model takes them, all in memory."""

    pictures: Tensor  # (N, c, h, w) float32
    labels: Tensor  # (N,) int64, numbers of the model's classes
    names: tuple[str, ...]  # of all the model's classes, in their order

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor | Sequence[int]) -> Dataset:
        """A part of it: by row numbers, or by a mask (N,) bool."""
        chosen = torch.as_tensor(rows)
        chosen = chosen if chosen.dtype == torch.bool else chosen.long()
        return Dataset(self.pictures[chosen], self.labels[chosen], self.names)


@dataclass(frozen=True)
class Parts:
    """Data before anything is chosen to be forgotten."""

    train: Dataset
    unseen: Dataset  # held out of training, for methods
    test: Dataset  # held out of training, for figures alone
    divided: bool = False  # by a seeded draw: whether the model was trained on `train` alone only its owner knows
    remarks: tuple[str, ...] = ()  # on what was skipped of the user's files


@dataclass(frozen=True)
class Split:
    """Data after something was chosen to be forgotten. `forget` and `retain` make up the training data."""

    forget: Dataset
    retain: Dataset
    validation: Dataset  # of `unseen`, without a forgotten class: when a method must know how well the rest is retained
    unseen: Dataset  # never trained on, all classes
    test: Dataset  # for figures alone, without a forgotten class
    test_forget: Dataset | None  # for figures alone: the forgotten class; None where samples are forgotten
    kind: str  # class | samples
    target: int | None  # the forgotten class
    forgotten: Tensor  # row numbers of `forget` in the training data, ascending: (m,) int64

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all the model's classes."""
        return self.retain.names


# ---------------------------------------------------------------- choosing what is forgotten


def split_by_class(parts: Parts, name: str) -> Split:
    """Forget a class.

    Args:
        name: of the class, or its number where no class is named so.

    Raises:
        UserError: no such class, no training picture of it, or none of another.
    """
    target = class_number(parts.train.names, name, "--forget-class")
    mask = parts.train.labels == target
    if not mask.any():
        raise UserError(
            f"--forget-class {name}: the training data hold no picture of this class, so there is nothing to forget"
        )
    if mask.all():
        raise UserError(f"--forget-class {name}: the training data hold no other class, so there is nothing to keep")
    seen, held, test = parts.train, parts.unseen, parts.test
    return Split(
        seen.rows(mask), seen.rows(~mask), held.rows(held.labels != target), held, test.rows(test.labels != target),
        test.rows(test.labels == target), "class", target, mask.nonzero().flatten(),
    )  # fmt: skip


def split_by_indices(parts: Parts, indices: Iterable[int], where: str = "--forget-indices") -> Split:
    """Forget single training pictures, by their numbers from 0 on.

    Args:
        where: what an error names as the source of the numbers.

    Raises:
        UserError: no number, all numbers, one that is out of range or stands twice.
    """
    chosen, count = list(indices), len(parts.train)
    if not chosen:
        raise UserError(f"{where} is empty: name at least one training picture to forget")
    for number in chosen:
        if not 0 <= number < count:
            raise UserError(
                f"{where}: {number} is out of range, the {count} training pictures have the numbers 0 to {count - 1}"
            )
    if len(set(chosen)) < len(chosen):
        twice = next(number for at, number in enumerate(chosen) if number in chosen[:at])
        raise UserError(f"{where}: {twice} stands there twice, remove one")
    if len(chosen) == count:
        raise UserError(f"{where} names all {count} training pictures, so there is nothing to keep: name fewer")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.tensor(chosen)] = True
    seen = parts.train
    return Split(
        seen.rows(mask), seen.rows(~mask), parts.unseen, parts.unseen, parts.test, None, "samples", None,
        mask.nonzero().flatten(),
    )  # fmt: skip


def split_at_random(parts: Parts, share: float, seed: int) -> Split:
    """Forget a seeded random share of the training pictures, rounded to the nearest whole number.

    Raises:
        UserError: a share outside (0, 1), or one that comes to no picture or to all.
    """
    if not 0 < share < 1:
        raise UserError(
            f"--forget-random {share} is outside (0, 1): it is the share of the training pictures, e.g. 0.1"
        )
    count = len(parts.train)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return split_by_indices(parts, order[: round(share * count)].tolist(), f"--forget-random {share}")


def class_number(names: Sequence[str], name: str, where: str) -> int:
    """The number of a class, by its name or else by its number as text.

    Raises:
        UserError: no such class.
    """
    if name in names:
        return list(names).index(name)
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(names):
        return int(name)
    known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise UserError(f"{where}: the model has no class {name!r}, it has {known}")


# ---------------------------------------------------------------- dividing


def held_out(data: Dataset, seed: int) -> Parts:
    """All pictures divided, see `Parts.divided`: 70 % for training, 13 % unseen, 17 % for tests, by a seeded draw."""
    train, rest = divide(data, int(len(data) * (1 - HELD_OUT)), seed)
    unseen, test = divide(rest, round(len(rest) * UNSEEN), seed + 1)
    return Parts(train, unseen, test, divided=True)


def divide(data: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """`count` rows and the others, both in their old order, every class in its share to within one picture.

    The n rows of a class are put in random order and spread evenly over [0, 1) from a random start; the `count`
    smallest places win.
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.empty(len(data), dtype=torch.float64)
    for label in data.labels.unique():
        rows = (data.labels == label).nonzero().flatten()
        start = torch.rand((), generator=generator, dtype=torch.float64)
        places[rows] = (torch.randperm(len(rows), generator=generator) + start) / len(rows)
    chosen = torch.zeros(len(data), dtype=torch.bool)
    chosen[places.argsort(stable=True)[:count]] = True
    return data.rows(chosen), data.rows(~chosen)
