"""Metrics: what an evaluation measures, each declared once with its name, its meaning and how it is computed.

Figures in JSON, gates, tables, pages, comparisons and the terminal read the declarations. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...registry import Registry
from ...results.evaluation import NUDITY_KINDS, Evaluation
from .base import Metric, Number, Share

METRICS: Registry[Metric] = Registry(
    "metric", __name__, Path(__file__).parent, not_declarations=("base",), several=True
)


def metrics_of(kind: str) -> dict[str, Metric]:
    """The metrics of a kind of evaluation: i2p, prompts, images, or any other, which is of a concept."""
    kind = kind if kind in NUDITY_KINDS else "concept"
    return {name: metric for name, metric in METRICS if kind in metric.kinds}


def figure_names() -> tuple[str, ...]:
    """The metrics that stand under `figures` of a concept's evaluation."""
    return tuple(n for n, one in METRICS if isinstance(one, Share) or (isinstance(one, Number) and not one.under_kept))


def answering(question: str) -> dict[str, Metric]:
    """The metrics that answer a question of the verdict, gone or whole, as they declare it."""
    return {name: metric for name, metric in METRICS if metric.question == question}


def gates_of(kind: str) -> tuple[str, ...]:
    """The metrics of a kind of evaluation that can be held against a bound."""
    return tuple(name for name, metric in metrics_of(kind).items() if metric.gate)


def gate_values(result: Evaluation) -> Mapping[str, float | None]:
    """What was measured of these; None for what could not be."""
    return {name: METRICS[name].read(name, result) for name in gates_of(result.kind)}


METRICS.names()  # the package's own come first
