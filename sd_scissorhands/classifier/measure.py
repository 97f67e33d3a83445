"""What forgetting did to a classifier: accuracies, membership inference, a probe, relearning, the gap to retraining.

Shares have Wilson's 95 % interval. Features, losses and fits are seeded and deterministic on one machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .data import Dataset, Split
from .forgetting_task import head
from .train import MOMENTUM, answer, device_of, logits

CLOSED = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia")  # what `gap` is taken over, as the authors do
FOLDS = 5
SVC_ROWS, PROBE_ROWS = 2000, 10_000  # pictures that a fit sees at most, drawn at random
RELEARN_RATE, RELEARN_BATCH, JUDGED = 0.01, 32, 1000  # JUDGED: pictures of D_f at most that show whether it is there
RELEARNED = 0.9  # of the original's accuracy on D_f
CLEAR = 4  # a batch that lies by so many standard errors below it shows that it is not there yet
SEEDS = 3  # relearnings


@dataclass(frozen=True)
class Estimate:
    """A measured number, what it was counted over and what chance could make of it."""

    value: float | None  # None: nothing to count
    n: int
    low: float
    high: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"value": self.value, "n": self.n, "interval": [self.low, self.high]} | (
            {"note": self.note} if self.note else {}
        )


@dataclass(frozen=True)
class Outputs:
    """A data set through a classifier, on the CPU."""

    logits: Tensor  # (N, classes)
    features: Tensor  # (N, d) input of the last linear layer
    labels: Tensor  # (N,)

    @property
    def losses(self) -> Tensor:
        """Cross entropy of every picture: (N,) float64."""
        return F.cross_entropy(self.logits.double(), self.labels, reduction="none")

    @property
    def right(self) -> Tensor:
        """Whether each is classified as labelled: (N,) bool."""
        return self.logits.argmax(1) == self.labels


def measure(
    module: nn.Module,
    split: Split,
    *,
    seed: int = 0,
    original: float = 1.0,
    cap: int = 200,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Estimate]:
    """Every figure of a classifier that was to forget.

    Args:
        original: accuracy on D_f before anything was forgotten, which `relearn` is held against.
        cap: steps after which relearning is given up.
        tick: called after each of the four parts (answers, membership, probe, relearning).

    Returns:
        forget_accuracy (D_f), retain_accuracy (D_r), test_accuracy (test pictures, without a forgotten class), mia,
        mia_svc, probe, relearn; for a forgotten class also test_forget_accuracy, on its test pictures.
    """
    module.eval()
    forget, retain, test = (outputs_of(module, data) for data in (split.forget, split.retain, split.test))
    held = test if split.test_forget is None else outputs_of(module, split.test_forget)
    figures = {
        "forget_accuracy": accuracy(forget),
        "retain_accuracy": accuracy(retain),
        "test_accuracy": accuracy(test),
    }
    if split.test_forget is not None:
        figures["test_forget_accuracy"] = accuracy(held)
    tick()
    figures["mia"] = mia(forget.losses, held.losses, seed=seed)
    figures["mia_svc"] = mia_svc(retain, test, forget, seed=seed)
    tick()
    figures["probe"] = (
        probe([forget, retain], held, seed=seed) if split.kind == "class" else probe([retain], forget, seed=seed)
    )
    tick()
    figures["relearn"] = relearn(module, split.forget, original=original, cap=cap, seed=seed)
    tick()
    return figures


@torch.no_grad()
def outputs_of(module: nn.Module, data: Dataset) -> Outputs:
    """Logits, and by a hook the features: the last linear layer's input, averaged over all between batch and width.

    Raises:
        UserError: the module answers with what is no number, or has no linear layer.
    """
    caught: list[Tensor] = []
    handle = head(module)[1].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0].float().cpu()))
    try:
        outputs = answer(module, data)
    finally:
        handle.remove()
    if not torch.isfinite(outputs).all():
        raise UserError("the classifier answers with NaN or infinite numbers: lower --lr or --forget-weight")
    flat = [part.flatten(1, -2).mean(1) if part.ndim > 2 else part for part in caught]
    return Outputs(outputs, torch.cat(flat) if flat else torch.empty(0, 1), data.labels)


def share(hits: int, n: int) -> Estimate:
    """A share with Wilson's 95 % score interval (1927)."""
    if not n:
        return Estimate(None, 0, 0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, n, float(interval.low), float(interval.high))


def accuracy(outputs: Outputs) -> Estimate:
    """Share classified as labelled."""
    return share(int(outputs.right.sum()), len(outputs.labels))


# ---------------------------------------------------------------- membership


def mia(forget: Tensor, held: Tensor, *, seed: int = 0) -> Estimate:
    """How well the loss alone separates D_f from pictures never trained on: .5 is chance, and the ideal.

    Logistic regression on the loss with both sides weighted alike, judged by five-fold cross-validation: the mean of
    the two sides' shares classified right, so that no picture is thrown away to make them equal in number (the authors draw
    equal numbers). Below .5 is chance too, or a loss that splits the sides differently from fold to fold. The interval
    joins the two sides' Wilson intervals (Newcombe 1998, method 10); it takes the folds' fits as given.

    Args:
        forget: losses of D_f (m,).
        held: losses of held-out pictures of the same kind (k,).
    """
    if min(len(forget), len(held)) < FOLDS:
        return Estimate(None, len(forget) + len(held), 0.0, 1.0, "too few pictures")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    losses = torch.cat([forget, held]).double().numpy()[:, None]
    member = np.r_[np.ones(len(forget), int), np.zeros(len(held), int)]
    predicted = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")), losses, member,
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
    )  # fmt: skip
    sides = [share(int((predicted[member == side] == side).sum()), int((member == side).sum())) for side in (1, 0)]
    return _mean(sides)


def _mean(parts: list[Estimate]) -> Estimate:
    """The mean of independent figures; distances to the ends of their intervals are added as squares."""
    values = [float(part.value or 0) for part in parts]
    value, count = sum(values) / len(parts), len(parts)
    below = math.sqrt(sum((v - part.low) ** 2 for v, part in zip(values, parts, strict=True))) / count
    above = math.sqrt(sum((part.high - v) ** 2 for v, part in zip(values, parts, strict=True))) / count
    return Estimate(value, sum(part.n for part in parts), max(0.0, value - below), min(1.0, value + above))


def mia_svc(retain: Outputs, test: Outputs, forget: Outputs, *, seed: int = 0) -> Estimate:
    """Share of D_f that a membership classifier calls never trained on: higher means more forgotten.

    A support vector classifier (RBF, C = 3) learns members (D_r) from others (test pictures; without a forgotten
    class), equally many of each, by the true class's log probability and probability, the highest probability and the
    entropy. The authors fit one to each of such features; here it is one to all, standardised. What retraining gives is
    the ideal, not 1.
    """
    if min(len(retain.labels), len(test.labels)) < 2 or not len(forget.labels):
        return Estimate(None, len(forget.labels), 0.0, 1.0, "too few pictures")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    count = min(len(retain.labels), len(test.labels), SVC_ROWS)
    sides = [_signs(side)[_sample(len(side.labels), count, seed)] for side in (retain, test)]
    judge = make_pipeline(StandardScaler(), SVC(C=3, kernel="rbf", gamma="scale"))
    judge.fit(np.concatenate(sides), np.r_[np.ones(count, int), np.zeros(count, int)])
    return share(int((judge.predict(_signs(forget)) == 0).sum()), len(forget.labels))


def _signs(outputs: Outputs) -> np.ndarray:
    """What the support vector classifier sees of each picture: (N, 4) float64."""
    logs = outputs.logits.double().log_softmax(1)
    true, highest = logs.gather(1, outputs.labels[:, None])[:, 0], logs.max(1).values
    entropy = -(logs.exp() * logs).sum(1)
    return torch.stack([true, true.exp(), highest.exp(), entropy], 1).numpy()


def _sample(n: int, count: int, seed: int) -> np.ndarray:
    """`count` of n row numbers, ascending; all where there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:count])


# ---------------------------------------------------------------- what is left


def probe(trained: list[Outputs], held: Outputs, *, seed: int = 0) -> Estimate:
    """What the features still know: accuracy of a fresh linear head on pictures that it was not fitted to.

    Logistic regression on the last linear layer's input. For a forgotten class it is fitted to all training pictures,
    all classes, and evaluated on the class's test pictures; chance is what a class that was never learnt gives, which
    retraining shows. For forgotten samples it is fitted to D_r alone and evaluated on D_f, and is to be read beside the
    test accuracy.
    """
    if not len(held.labels):
        return Estimate(None, 0, 0.0, 1.0, "too few pictures")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = torch.cat([part.features for part in trained]), torch.cat([part.labels for part in trained])
    if len(labels.unique()) < 2:
        return Estimate(None, 0, 0.0, 1.0, "a single class")
    rows = _sample(len(labels), PROBE_ROWS, seed)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        features[rows].numpy(), labels[rows].numpy()
    )
    return share(int((fitted.predict(held.features.numpy()) == held.labels.numpy()).sum()), len(held.labels))


def relearn(module: nn.Module, data: Dataset, *, original: float = 1.0, cap: int = 200, seed: int = 0) -> Estimate:
    """Steps of fine-tuning on D_f alone until its accuracy is 90 % of the original's; few mean that it was hidden.

    SGD, momentum .9, rate .01, batches of 32, on copies in eval mode; the value is the median of three seeds, n their
    number, and the interval their range. A relearning that does not come there in `cap` steps counts as `cap` and is
    noted. 0: it was there already. Up to 1,000 pictures decide, at every step whose own batch does not rule it out.
    """
    counts = [_steps(module, data, RELEARNED * original, cap, seed * SEEDS + number) for number in range(SEEDS)]
    short = sum(count is None for count in counts)
    steps = sorted(float(cap if count is None else count) for count in counts)
    note = f"{short} of {SEEDS} did not come there in {cap} steps" if short else ""
    return Estimate(steps[SEEDS // 2], SEEDS, steps[0], steps[-1], note)


def _steps(module: nn.Module, data: Dataset, target: float, cap: int, seed: int) -> int | None:
    student = copy.deepcopy(module).requires_grad_(True).eval()
    descent = torch.optim.SGD(student.parameters(), lr=RELEARN_RATE, momentum=MOMENTUM)
    generator, device = torch.Generator().manual_seed(seed), device_of(module)
    size = min(RELEARN_BATCH, len(data))
    judged = data.rows(_sample(len(data), JUDGED, seed).tolist())
    near = target - CLEAR * math.sqrt(max(target * (1 - target), 0) / size) - 1 / size
    for step in range(cap + 1):
        rows = torch.randperm(len(data), generator=generator)[:size]
        answers, labels = logits(student, data.pictures[rows].to(device)), data.labels[rows].to(device)
        if _right(answers, labels) >= near and _right(answer(student, judged), judged.labels) >= target:
            return step
        descent.zero_grad(set_to_none=True)
        F.cross_entropy(answers, labels).backward()
        descent.step()
    return None


def _right(answers: Tensor, labels: Tensor) -> float:
    return float((answers.argmax(1) == labels).double().mean())


def gap(figures: Mapping[str, Estimate], retrained: Mapping[str, Estimate]) -> Estimate:
    """Mean absolute difference to a model retrained without D_f, over `CLOSED` (n is their number): 0 is the ideal.

    The interval takes all figures as independent; those of two models on the same pictures are not, so it is rather too
    wide. A figure that could not be taken of both is left out.
    """
    pairs = [
        (figures[name], retrained[name])
        for name in CLOSED
        if figures[name].value is not None and retrained[name].value is not None
    ]
    if not pairs:
        return Estimate(None, 0, 0.0, 1.0)
    apart = [abs(float(one.value or 0) - float(two.value or 0)) for one, two in pairs]
    spread = [((f.high - f.low) / 2) ** 2 for pair in pairs for f in pair]
    value, half = sum(apart) / len(pairs), math.sqrt(sum(spread)) / len(pairs)
    return Estimate(value, len(pairs), max(0.0, value - half), min(1.0, value + half))
