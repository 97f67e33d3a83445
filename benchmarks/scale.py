"""Selection and projection at the size of Stable Diffusion 1's UNet: `python benchmarks/scale.py selection|projection|growth`.

Each writes its table to docs/benchmarks.md and its rows to docs/benchmarks.json. The tensors have the real UNet's shapes, or
those of the same UNet with a half, a quarter or an eighth of its channels, and random values. At full size `selection` needs
17 GiB of memory, nearly all of it for the plain code, `projection` 16 GiB and `growth` 9 GiB; `--divisor 2` and a `--document`
of one's own are for trying.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import rows
import torch
from rows import Row, Turn, Ways, interleave, numel
from scipy.optimize import minimize
from sd14 import narrowed
from torch import Tensor

from sd_scissorhands.methods.project import PAPER_RULE, SCALE_FREE, Gradient, Memory, Rule, project
from sd_scissorhands.methods.selection import select_top

ROUNDS = 3
SHARES = (0.001, 0.005)
HALVED = 2  # projection: the UNet of half the width, 215 million weights
WIDTHS = (8, 4, 2, 1)  # growth: divisors of the width


def shapes(divisor: int) -> list[torch.Size]:
    """The UNet's 686 shapes with its widths divided."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**narrowed(divisor))
    return [parameter.shape for parameter in unet.parameters()]


def record(
    where: Path, name: str, ours: Sequence[Turn], plain: Sequence[Turn], probes: list[float], weights: int
) -> None:
    """Record a row."""
    rows.record([rows.row(name, ours, plain, probes, weights=weights)], where)


# ---------------------------------------------------------------- selection


def random_scores(divisor: int) -> dict[str, Tensor]:
    """|weight * gradient| of normal weights and gradients: float32."""
    generator, scores = torch.Generator().manual_seed(0), {}
    for number, shape in enumerate(shapes(divisor)):
        weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
        scores[f"tensor {number}"] = weight.mul_(gradient).abs_()
    return scores


def plain_selection(scores: dict[str, Tensor], k: float) -> dict[str, Tensor]:
    """The usual code: one vector of all scores, its (1-k) quantile, and a mask of every tensor."""
    everything = torch.cat([s.flatten() for s in scores.values()])
    threshold = everything.kthvalue(math.floor((1 - k) * len(everything))).values
    return {name: s > threshold for name, s in scores.items()}


def selection(divisor: int, where: Path) -> str:
    """Ours against the plain code, at two shares."""
    scores = random_scores(divisor)
    for share in SHARES:
        ways = {"plain": lambda k=share: plain_selection(scores, k), "ours": lambda k=share: select_top(scores, k)}
        turns, probes = interleave(ways, ROUNDS)
        record(where, f"selection: k = {share:.1%}", turns["ours"], turns["plain"], probes, numel(scores.values()))
    return rows.tabulate("selection", rows.COMPARED, rows.compared, document=where)


# ---------------------------------------------------------------- projection


class Problem:
    """A gradient and a memory in conflict with it: noise less a fifth of the gradient."""

    def __init__(self, shapes: Sequence[torch.Size], spread: float = 0.3):
        generator = torch.Generator().manual_seed(1)
        scale = sum(shape.numel() for shape in shapes) ** -0.5  # so that a random gradient has length 1
        self.gradient, self.memory = (
            [torch.randn(shape, generator=generator).mul_(scale) for shape in shapes] for _ in range(2)
        )
        for f, g in zip(self.memory, self.gradient, strict=True):
            f.mul_(spread).sub_(g, alpha=0.2)
        self.start = [g.clone() for g in self.gradient]

    def restart(self) -> None:
        """Give the gradient its values from before any projection."""
        for g, start in zip(self.gradient, self.start, strict=True):
            g.copy_(start)


def plain_projection(gradient: Gradient, memory: Gradient, rule: Rule) -> bool:
    """The usual code: flat vectors in double precision, a general solver for the dual problem, and back into tensors.

    Returns:
        Whether the memory opposed the gradient, which is then changed in place.
    """

    def flat(tensors: Gradient) -> np.ndarray:
        return torch.cat([t.flatten() for t in tensors]).double().numpy()

    g, f = flat(gradient), flat(memory)
    k, b = f @ f + rule.eps, f @ g
    if b >= 0:
        return False
    v = minimize(
        lambda v: 0.5 * k * v[0] ** 2 + b * v[0], [rule.margin], jac=lambda v: k * v + b,
        bounds=[(rule.margin, None)], method="SLSQP", options={"ftol": 1e-14},
    ).x[0]  # fmt: skip
    moved = torch.from_numpy(g + v * f).float()
    for tensor, part in zip(gradient, moved.split([t.numel() for t in gradient]), strict=True):
        tensor.copy_(part.view_as(tensor))
    return True


def relative_error(problem: Problem, rule: Rule) -> tuple[float, bool]:
    """|ours - float64's| / |float64's|, and whether the multiplier lies on its bound."""
    square, b, length = (
        sum(float(x.double().flatten() @ y.double().flatten()) for x, y in zip(left, right, strict=True))
        for left, right in (
            (problem.memory, problem.memory), (problem.memory, problem.start), (problem.start, problem.start)
        )
    )  # fmt: skip
    unit = math.sqrt(square * length) if rule.scale_free else 1.0
    v = max(rule.margin, -b / unit / ((1.0 if rule.scale_free else square) + rule.eps))
    alpha = v * math.sqrt(length / square) if rule.scale_free else v
    problem.restart()
    project(problem.gradient, Memory(problem.memory), rule)
    apart, whole = 0.0, 0.0
    for found, start, memory in zip(problem.gradient, problem.start, problem.memory, strict=True):
        expected = start.double() + alpha * memory.double()
        apart += float((found - expected).square().sum())
        whole += float(expected.square().sum())
    return math.sqrt(apart / whole), v <= rule.margin


def projection(divisor: int, where: Path) -> str:
    """Ours against the plain code, and how far ours is from float64."""
    problem = Problem(shapes(divisor * HALVED))
    known = Memory(problem.memory)
    ways = {
        "plain": lambda: plain_projection(problem.gradient, problem.memory, PAPER_RULE),
        "ours": lambda: project(problem.gradient, Memory(problem.memory), PAPER_RULE),
        "known": lambda: project(problem.gradient, known, PAPER_RULE),
    }
    turns, probes = interleave(ways, ROUNDS, prepare=problem.restart)
    for way, name in (("ours", "1 memory"), ("known", "1 memory with known products")):
        record(where, f"projection: {name}", turns[way], turns["plain"], probes, numel(problem.gradient))
    errors = [relative_error(problem, rule) for rule in (PAPER_RULE, SCALE_FREE)]
    torch._foreach_mul_(problem.memory, 3)  # three times as long: the multiplier falls to its bound
    errors += [relative_error(problem, rule) for rule in (PAPER_RULE, SCALE_FREE)]
    worst = "; ".join(
        f"{max(e for e, bound in errors if bound == side):.0e} with the multiplier {name}"
        for side, name in ((False, "inside"), (True, "on its bound"))
        if any(bound == side for _, bound in errors)
    )
    note = f"Greatest relative error against float64, over both rules: {worst}."
    return rows.tabulate("projection", rows.COMPARED, rows.compared, note=note, document=where)


# ---------------------------------------------------------------- growth


def growth(divisor: int, where: Path) -> str:
    """Time and memory of ours from a sixty-fourth of the UNet's weights to all of them."""
    sizes = {f"1/{d * d}" if d > 1 else "all": shapes(d * divisor) for d in WIDTHS}
    scores = {name: random_scores(d * divisor) for name, d in zip(sizes, WIDTHS, strict=True)}
    grow("selection", {name: lambda own=own: select_top(own, SHARES[0]) for name, own in scores.items()}, sizes, where)
    del scores
    memories = {name: [torch.randn(shape) for shape in some] for name, some in sizes.items()}
    gradients = {name: [f.neg() for f in memory] for name, memory in memories.items()}

    def restart() -> None:
        for gradient, memory in zip(gradients.values(), memories.values(), strict=True):
            for g, f in zip(gradient, memory, strict=True):
                torch.neg(f, out=g)

    ways: Ways = {name: lambda g=gradients[name], f=memories[name]: project(g, Memory(f), PAPER_RULE) for name in sizes}
    grow("projection, 1 memory", ways, sizes, where, restart)
    header = "what, share of the UNet's weights; weights; s; ns a weight; extra MiB; speed probe, ms"
    return rows.tabulate("growth", header, grown, document=where)


def grow(
    what: str, ways: Ways, sizes: dict[str, list[torch.Size]], where: Path, prepare: Callable[[], None] = lambda: None
) -> None:
    """The rows of one of the two, over all sizes."""
    turns, probes = interleave(ways, ROUNDS, prepare=prepare)
    for name, some in sizes.items():
        record(where, f"growth: {what}, {name}", turns[name], [], probes, sum(shape.numel() for shape in some))


def grown(one: Row) -> list[str]:
    """The cells of a row of the growth table."""
    cells = rows.compared(one)
    return [cells[0], cells[1], cells[3], f"{1e9 * one['ours'] / one['weights']:.1f}", cells[6], cells[7]]


TABLES = {"selection": selection, "projection": projection, "growth": growth}


def main() -> None:
    """Measure and write the tables named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--divisor", type=int, default=1, help="divide all widths: 2 leaves a quarter of the weights")
    parser.add_argument(
        "--document", type=Path, default=rows.DOCUMENT, help="with the tables' marks; JSON goes beside it"
    )
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    for name in given.tables:
        print(TABLES[name](given.divisor, given.document))


if __name__ == "__main__":
    main()
