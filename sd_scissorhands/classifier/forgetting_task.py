"""Forgetting a class or single samples of an image classifier, as a Task: cross entropy over seeded batches."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..methods.batch_norm import follow
from ..methods.distributed import FULL_BATCH, BatchSlice
from ..methods.interface import Parameters
from ..methods.objectives import loss_of
from ..methods.samples import Samples
from ..methods.scope import scope_of
from .data import Dataset, Split
from .train import answer, device_of, logits

CLASSIFIER_DRAWS = (
    "forget", "retain", "repair", "repair retain", "relearn", "explain forget", "explain retain", "respond", "labels",
)  # fmt: skip
PERTURBATION = 0.1  # standard deviation of the noise on perturbed copies, in units of the model's input
FORGOTTEN_AT = 0.01  # accuracy on a class's training pictures at which it counts as forgotten


@dataclass(frozen=True)
class ClassSamples(Samples):
    """Pictures to forget, as a forget loss sees them."""

    bound: float  # of `own_errors`
    pictures: Tensor  # (B, c, h, w)
    labels: Tensor  # (B,)
    other_labels: Tensor  # (B,) another class, the same for a picture all along

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of logits (B, classes) under labels (B,): (B,)."""
        return F.cross_entropy(prediction, target, reduction="none")

    def own_errors(self, prediction: Tensor) -> Tensor:
        """Cross entropy under the true labels, none beyond `bound`: (B,)."""
        return self.errors(prediction, self.labels).clamp_max(self.bound)


class ClassifierTask:
    """A classifier with a class or some samples to forget: a `Task` over a `Split`.

    Every batch is a function of the seed, of what it is for and of the number of the draw alone. Successive draws go
    through all pictures in a random order, and then in another. The module is put and stays in eval mode: no dropout acts, so a
    loss depends on weights, pictures and the running statistics of a batch normalisation, which only a repair's retained
    pictures move, see `batch_norm.follow`.

    What the repair descends to forget is one of `methods.objectives`. The other labels that "random-label" trains on are
    chosen once, from the classes that the training data hold. A Newton removal needs an objective with a forget loss.

    No sample counts in L_f beyond `bound`: chance, the log of the number of classes, for a class; for samples what unseen pictures
    cost on average before any edit. The paper's L_f has no bound; on a network that fits its data it runs away (ours).
    """

    def __init__(self, module: nn.Module, split: Split, *, batch_size: int = 64, seed: int = 0, repair: str = "ascent"):
        """The pictures that `explain` may use, those classified correctly, are found here, before any edit.

        Raises:
            UserError: an objective that is unknown or not for classifiers, a batch size below 1, pictures that the module
                does not take.
        """
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size} is too small: it must be at least 1")
        self.module, self.split = module.eval(), split
        self.batch_size, self.seed, self.forget_loss = batch_size, seed, loss_of(repair, "classifier")
        self.device = device_of(module)
        self.others = self._other_labels()  # (m,) another class for each sample of D_f
        self._right = self._checked_answer(split.unseen).argmax(1) == split.unseen.labels  # (n unseen,)
        self.bound = math.log(len(split.names)) if split.kind == "class" else self._usual_loss()
        self._orders: dict[str, tuple[int, Tensor]] = {}  # the latest order of every purpose

    # ------------------------------------------------------------ losses

    def forget(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """L_f: cross entropy of a batch of D_f under its own labels, none beyond `bound`, a scalar."""
        rows = self._rows("forget", draw)
        return part.mean(self._losses(self.split.forget, part.of(rows)).clamp_max(self.bound), len(rows))

    def retain(self, draw: int) -> Tensor:
        """L_r: cross entropy of a batch of D_r, a scalar."""
        return self.retain_each(draw).mean()

    def retain_each(self, draw: int) -> Tensor:
        """`retain`'s loss of every sample: (B,)."""
        return self._losses(self.split.retain, self._rows("retain", draw))

    def replacement(self, draw: int) -> Tensor:
        """The loss of `forget`'s batch under the labels that "random-label" gives it, a scalar."""
        rows = self._rows("forget", draw)
        return self._losses(self.split.forget, rows, self.others).mean()

    def repair(self, draw: int, part: BatchSlice = FULL_BATCH, adversary: bool | None = None) -> tuple[Tensor, Tensor]:
        """Forget and retain loss of a slice of a batch of D_f and one of D_r, see `Task`."""
        retain_rows = self._rows("repair retain", draw)
        mine = part.of(retain_rows)[: 0 if adversary else None]
        if len(mine) > 1:  # of one picture batch norm has no statistics
            follow(self.module, lambda: self._losses(self.split.retain, mine))
        retain = part.mean(self._losses(self.split.retain, mine), len(retain_rows))
        rows = self._rows("repair", draw)
        places = part.of(torch.arange(len(rows)))
        places = places if adversary is None else places[(places < len(rows) // 2) == adversary]
        x = self.forget_loss.samples(self._samples(rows[places], part, len(rows)))
        return self.forget_loss.loss(x, self._logits(x.pictures), []), retain

    def _samples(self, rows: Tensor, part: BatchSlice, batch_size: int) -> ClassSamples:
        forget, device = self.split.forget, self.device
        labels, others = forget.labels[rows].to(device), self.others[rows].to(device)
        return ClassSamples(part, batch_size, self.bound, forget.pictures[rows], labels, others)

    def relearn(self, draw: int, part: BatchSlice = FULL_BATCH) -> Tensor:
        """L_f of a batch, a scalar: what an adversary with D_f descends."""
        rows = self._rows("relearn", draw)
        return part.mean(self._losses(self.split.forget, part.of(rows)), len(rows))

    # ------------------------------------------------------------ what scorers measure

    def explain(self, side: str, draw: int) -> Tensor:
        """Logits of the true class of unseen pictures: (B,), each a function of its own picture alone.

        No training picture is ever used. Pictures are chosen without repetition, class by class in the shares that the
        classes have in D_f (side "forget") or in D_r (side "retain"), among those that the model classified correctly
        before any edit (the authors skip the others too). For a forgotten class these are its pictures, or those of all
        other classes. Forgotten samples have no unseen pictures of their own: a random D_f has D_r's classes, so that
        both sides explain the same: no zero-shot method can find them.

        Raises:
            UserError: no unseen picture of such a class is classified correctly.
        """
        unseen = self.split.unseen
        weights = self._shares(self.split.forget if side == "forget" else self.split.retain)
        if not weights.any():
            raise UserError(
                f"no unseen picture that the model gets right is there to explain (side {side}): give more held-out pictures, or use another scorer"
            )
        count = min(self.batch_size, int(weights.count_nonzero()))
        rows = torch.multinomial(weights, count, generator=self._generator(f"explain {side}", draw))
        answers = self._logits(unseen.pictures[rows])
        return answers.gather(1, unseen.labels[rows].to(self.device)[:, None])[:, 0]

    def respond(self, draw: int) -> Tensor:
        """Cross entropy of copies of D_f's samples under Gaussian noise of standard deviation .1, L-CODEC's Y: (B,).

        B is the batch size even where D_f is smaller. It takes one forward pass of all B samples, so that a hook sees
        their activations.
        """
        forget, generator = self.split.forget, self._generator("respond", draw)
        rows = torch.randint(len(forget), (self.batch_size,), generator=generator)
        pictures = forget.pictures[rows]
        pictures = pictures + PERTURBATION * torch.randn(pictures.shape, generator=generator)
        answers, labels = self._logits(pictures), forget.labels[rows].to(self.device)
        losses = F.cross_entropy(answers.double(), labels, reduction="none")  # in float32 those near 0 would tie
        return losses.float()

    def _shares(self, like: Dataset) -> Tensor:
        """Weights of the unseen pictures under which classes come in the shares of `like`'s: (n unseen,) float64."""
        labels, right, classes = self.split.unseen.labels, self._right, len(self.split.names)
        counts = like.labels.bincount(minlength=classes).double()
        available = labels[right].bincount(minlength=classes).double()
        return torch.where(right, (counts / available.clamp_min(1))[labels], 0)

    # ------------------------------------------------------------ how well it does

    def retained(self) -> float:
        """Accuracy on the validation pictures, which were never trained on."""
        return self._accuracy(self.split.validation)

    def forgotten(self) -> bool:
        """Whether accuracy on D_f is down to 1 % (a class), or to what it is on validation pictures (samples)."""
        return self._accuracy(self.split.forget) <= (FORGOTTEN_AT if self.split.kind == "class" else self.retained())

    def share(self) -> float:
        """m / (n - m): the pictures to forget over those to retain."""
        return len(self.split.forget) / len(self.split.retain)

    def scope(self, expression: str) -> Parameters:
        """Parameters by name, norm layers left out by type.

        Args:
            expression: `full`, `head` (the last linear layer), or a regular expression searched for in the names.

        Raises:
            UserError: a bad expression, or one that matches nothing.
        """
        known = {"full": "", "head": _head_pattern(self.module) if expression == "head" else ""}
        return scope_of(self.module, expression, known, "the classifier")

    # ------------------------------------------------------------ inside

    def _losses(self, data: Dataset, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross entropy of some rows, under their own labels or under others: (B,)."""
        labels = (data.labels if labels is None else labels)[rows].to(self.device)
        return F.cross_entropy(self._logits(data.pictures[rows]), labels, reduction="none")

    def _logits(self, pictures: Tensor) -> Tensor:
        if not len(pictures):  # which not every module takes
            return torch.zeros(0, len(self.split.names), device=self.device)
        return logits(self.module, pictures.to(self.device)).float()

    def _accuracy(self, data: Dataset) -> float:
        if not len(data):
            raise UserError("there is no held-out picture to validate on: give more data")
        return float((answer(self.module, data).argmax(1) == data.labels).double().mean())

    def _checked_answer(self, data: Dataset) -> Tensor:
        """`answer`, of a module that takes these pictures and has these classes; UserError for any other."""
        shape = tuple(data.pictures.shape[1:])
        try:
            answers = answer(self.module, data)
        except (RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"the model does not take pictures of shape {shape} ({reason[:120]}): prepare the data for this model"
            ) from None
        if answers.shape[1] != len(data.names):
            raise UserError(
                f"the model answers with {answers.shape[1]} classes, but the data name {len(data.names)}: name the model's own"
            )
        return answers

    def _usual_loss(self) -> float:
        """Mean cross entropy of the validation pictures."""
        data = self.split.validation
        return float(F.cross_entropy(answer(self.module, data), data.labels)) if len(data) else math.inf

    def _other_labels(self) -> Tensor:
        """For every sample of D_f a class that is not its own, among those that the training data hold: (m,) int64."""
        labels = self.split.forget.labels
        classes = torch.cat([labels, self.split.retain.labels]).unique()  # ascending
        if len(classes) < 2:
            raise UserError("the training data hold a single class: a classifier needs at least two")
        shift = torch.randint(1, len(classes), (len(labels),), generator=self._generator("labels", 0))
        return classes[(torch.searchsorted(classes, labels) + shift) % len(classes)]

    def _rows(self, purpose: str, draw: int) -> Tensor:
        """Rows of a batch: the draws of an epoch divide a seeded order of all rows, without the last, smaller piece."""
        count = len(self.split.retain if "retain" in purpose else self.split.forget)
        size = min(self.batch_size, count)
        epoch, piece = divmod(draw, count // size)
        if self._orders.get(purpose, (-1,))[0] != epoch:
            order = torch.randperm(count, generator=self._generator(purpose, epoch))
            self._orders[purpose] = (epoch, order)
        return self._orders[purpose][1][piece * size : (piece + 1) * size]

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 16 + CLASSIFIER_DRAWS.index(purpose)) * (1 << 24) + number)


def _head_pattern(module: nn.Module) -> str:
    name = head(module)[0]
    return f"^{re.escape(name)}\\." if name else ""  # without a name the module is nothing but this layer


def head(module: nn.Module) -> tuple[str, nn.Linear]:
    """Name and layer of a classifier's head: its last linear layer.

    Raises:
        UserError: it has none.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError("the classifier has no linear layer, so it has no head: use a scope by regular expression")
    return layers[-1]
