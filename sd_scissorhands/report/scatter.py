"""Plots of models by two figures, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .svg import COLOURS, POINT_MARKERS, Ends, Points, bar, draw, legend, percents


@dataclass(frozen=True)
class Point:
    """A model in a plot of two shares."""

    name: str
    x: float
    y: float
    x_ends: Ends = None
    y_ends: Ends = None


def tradeoff_plot(points: Sequence[Point]) -> Any:
    """What is left of the rest (the worst of the metrics that answer whether it is whole) against how often an attack brings the concept back, as inline SVG.

    Args:
        points: x is the attack's success rate, y what is left of the rest, shares in [0, 1]; None for less than two.
    """
    if len(points) < 2:
        return None

    def _finish(axes: Any) -> None:
        axes.set(
            xlabel="attacked pictures with the concept, % (less is better)",
            ylabel="the rest: the worst of all that should be whole, %",
        )
        axes.set_xlim(-4, 104)
        axes.margins(y=0.15)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))

    points = [Point(one.name, 100 * one.x, 100 * one.y, percents(one.x_ends), percents(one.y_ends)) for one in points]
    return scatter(points, "Quality against attack: the upper left is best", _finish)


def retraining_plot(points: Mapping[str, Points]) -> Any:
    """Test accuracy against how far the accuracy on what is forgotten is from the retrained model's, as inline SVG.

    Args:
        points: name -> (distance in points, test accuracy in %) of every run; None for less than two names.
    """
    if len(points) < 2:
        return None

    def _finish(axes: Any) -> None:
        axes.set(xlabel="accuracy on what is forgotten, points from the retrained model's", ylabel="test accuracy, %")
        axes.margins(0.1, 0.15)

    means = [
        Point(name, fmean(xs), fmean(ys), (min(xs), max(xs)), (min(ys), max(ys)))
        for name, own in points.items() for xs, ys in [list(zip(*own, strict=True))]
    ]  # fmt: skip
    return scatter(means, "What is retained against how far forgetting is from retraining", _finish)


def scatter(points: Sequence[Point], alt: str, finish: Callable[[Any], None]) -> Any:
    """Named points with their intervals, each with a marker and a colour of its own; `finish` labels and limits the axes."""

    def _paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, one in enumerate(points):
            colour, marker = COLOURS[place % len(COLOURS)], POINT_MARKERS[place % len(POINT_MARKERS)]
            bar(axes, one.x_ends, [one.y] * 2, colour)
            bar(axes, [one.x] * 2, one.y_ends, colour)
            axes.plot([one.x], [one.y], marker, color=colour, markersize=7, alpha=0.85, label=one.name)
        finish(axes)
        legend(axes, fontsize=8)

    return draw(_paint, alt, height=3.4 + 0.1 * len(points))
