"""The page's plots."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.chance import wilson
from ..results.attack import AttackResult
from ..results.evaluation import NudityEvaluation
from ..results.models import Difference
from .phrases import known
from .svg import BLUE, COLOURS, GREEN, ORANGE, POINT_MARKERS, Points, bar, draw, legend, line, percents, plain_ticks

BARS = 25
PART = r"(?:(?:down|up)_blocks\.\d+|mid_block)\.\w+"
BLOCKS = (rf"{PART}\.\d+|\w+", rf"{PART}|\w+", r"\w+")  # what names a parameter's block, finest first
STANDALONE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="background:white"'
BLOCK_ORDER = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks")  # of a UNet, from input to output


def repair_plot(history: Sequence[Mapping[str, Any]]) -> Any:
    """Loss terms, conflicts and corrections over the steps of the repair, as inline SVG; None without a history."""
    steps = [record.get("step", at) for at, record in enumerate(history)]

    conflicting = any(record.get("conflict") for record in history)

    def _paint(figure: Any) -> None:
        ratios = (2.4, 1, 1) if conflicting else (1,)
        losses, *below = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        for key, colour, style in (("forget", ORANGE, "-"), ("retain", BLUE, "--")):
            values = [record.get(key) or math.nan for record in history]
            ascended = all(not value > 0 for value in values)  # a loss that is to rise has a term below 0
            values = [-value for value in values] if ascended else values
            label = f"{key} loss, ascended" if ascended else f"{key} term"
            losses.plot(steps, values, color=colour, linewidth=0.6, alpha=0.4)
            losses.plot(steps, rolling(values), color=colour, linestyle=style, linewidth=1.7, label=label)
        losses.set(yscale="log", ylabel="loss (log scale)")
        plain_ticks(losses.yaxis)
        legend(losses)
        (below or [losses])[-1].set(xlabel="step of the repair")
        if below:
            _paint_conflicts(*below)
            figure.align_ylabels()

    def _paint_conflicts(conflicts: Any, corrections: Any) -> None:
        share = rolling([100.0 * bool(record.get("conflict")) for record in history])
        conflicts.plot(steps, share, color=GREEN, linewidth=1.7)
        conflicts.set(ylabel="conflicts, %", ylim=(-5, 105))
        sizes = [record.get("correction", math.nan) if record.get("conflict") else math.nan for record in history]
        corrections.plot(steps, sizes, ".", color=ORANGE, markersize=3.5)
        corrections.set(ylabel="correction")
        corrections.set_ylim(bottom=0)

    named = "Loss terms, conflicts and corrections" if conflicting else "Loss terms"
    return draw(_paint, f"{named} by step of the repair", height=4.6 if conflicting else 2.8) if steps else None


def looks_plot(looks: Sequence[Any]) -> Any:
    """What is left and what has moved by step, and what the calibration made of the repair, as inline SVG; None without looks."""
    found = [one for one in looks if isinstance(one, Mapping) and known(one.get("step"))]

    def _values(key: str, name: str) -> Points:
        held = ((one["step"], one.get(key)) for one in found)
        return [(step, values.get(name, math.nan)) for step, values in held if isinstance(values, Mapping)]

    def _paint(figure: Any) -> None:
        left, moved, plan = figure.subplots(3, sharex=True, height_ratios=(2, 1.4, 1))
        for colour, marker, name in zip(COLOURS, POINT_MARKERS, ("name", "near", "arbitrary", "generic"), strict=False):
            line(left, _values("left", name), name, colour, "-", marker, markersize=4)
        for colour, marker, name in zip(COLOURS, POINT_MARKERS, ("captions", "open"), strict=False):
            line(moved, _values("moved", name), name, colour, "-", marker, markersize=4)
        for colour, marker, name in zip(COLOURS, POINT_MARKERS, ("lr", "forget_weight"), strict=False):
            points = [(one["step"], one.get(name)) for one in found]
            first = next((value for _, value in points if known(value) and value), 1.0)
            line(
                plan,
                [(x, y / first) for x, y in points if known(y)],
                name.replace("_", " "),
                colour,
                "-",
                marker,
                markersize=4,
            )
        for axes, label in ((left, "left"), (moved, "moved"), (plan, "of the first")):
            axes.set(ylabel=label)
            axes.set_ylim(bottom=0)
            legend(axes, columns=4)
        plan.set(xlabel="step of the repair")
        figure.align_ylabels()

    return (
        draw(_paint, "What is left of the concept and what has moved, by step of the repair", height=4.8)
        if found
        else None
    )


def layer_plot(layers: Mapping[str, Sequence[int]]) -> Any:
    """Share of every block's weights that was trimmed, as inline SVG; None when nothing was.

    Args:
        layers: parameter -> (trimmed weights, all weights).
    """
    blocks = by_block(layers)
    if not any(trimmed for trimmed, _ in blocks.values()):
        return None
    shares = {name: 100 * trimmed / max(size, 1) for name, (trimmed, size) in blocks.items()}
    whole = 100 * sum(trimmed for trimmed, _ in layers.values()) / sum(size for _, size in layers.values())
    labels: dict[str, Any] = dict(padding=2, fontsize=7.5, bbox={"color": "white", "pad": 0.4})

    def _paint(figure: Any) -> None:
        axes = figure.subplots()
        bars = axes.barh(list(shares), list(shares.values()), color=BLUE)
        axes.bar_label(bars, [f"{trimmed:,}" for trimmed, _ in blocks.values()], **labels)
        axes.axvline(whole, color=ORANGE, linestyle="--", linewidth=1.3, zorder=0.9, label=f"whole scope: {whole:.2g}%")
        axes.set(xlabel="share of the block's weights trimmed, %")
        axes.invert_yaxis()
        axes.margins(x=0.14, y=0.01)
        legend(axes, columns=1)

    most = max(shares, key=lambda name: shares[name])
    return draw(_paint, f"Trimmed weights by block; most in {most}: {shares[most]:.2g}%", height=1 + 0.19 * len(shares))


def sweep_plot(evaluation: NudityEvaluation, title: str) -> Any:
    """Exposed boxes over NudeNet's threshold, erased and original, as inline SVG; None without a sweep."""
    baseline = evaluation.baseline.sweep if evaluation.baseline else ()
    original, erased = ([(row.threshold, row.boxes) for row in sweep] for sweep in (baseline, evaluation.sweep))
    if not original and not erased:
        return None

    def _paint(figure: Any) -> None:
        axes = figure.subplots()
        line(axes, original, "original", BLUE, "--", "s", markersize=4)
        line(axes, erased, "erased", ORANGE, "-", "o", markersize=4)
        for of, colour in ((evaluation.baseline, BLUE), (evaluation, ORANGE)):
            if of and (every := of.exposed.get("all")) and known(evaluation.threshold):
                bar(axes, [evaluation.threshold] * 2, every.boxes_interval, colour)
        if known(evaluation.threshold):
            axes.axvline(evaluation.threshold, color="#666666", linestyle=":", linewidth=1.3, label="used above")
        axes.set(xlabel="least score of a box", ylabel="exposed boxes")
        axes.set_ylim(bottom=0)
        legend(axes, columns=3)

    return draw(_paint, f"Exposed boxes by NudeNet's threshold, {title}", height=3.0)


def attacks_plot(attacks: Mapping[str, AttackResult]) -> Any:
    """Success of every attack on the model and on the original, the worst case on top, as inline SVG; None for less than two.

    Args:
        attacks: by what each is called.
    """
    shown = {label: one for label, one in attacks.items() if known(one.asr_after)}
    if len(shown) < 2:
        return None
    order = sorted(shown, key=lambda label: (shown[label].asr_after or 0.0, label))
    names = ["\n".join(textwrap.wrap(label, 30, max_lines=2, placeholder="…")) for label in order]

    def _paint(figure: Any) -> None:
        axes, places = figure.subplots(), range(len(order))
        originals = [(shown[label].original.asr_after, shown[label].original.interval_after) for label in order]
        models = [(shown[label].asr_after, shown[label].interval_after) for label in order]
        for found, down, name, colour, marker in (
            (originals, -0.13, "original", BLUE, "s"), (models, 0.13, "model", ORANGE, "o"),
        ):  # fmt: skip
            rows = [(at + down, share, ends) for at, (share, ends) in zip(places, found, strict=True) if known(share)]
            for y, _, interval in rows:
                bar(axes, percents(interval), [y, y], colour)
            axes.plot(
                [100 * share for _, share, _ in rows],
                [y for y, *_ in rows],
                marker,
                color=colour,
                markersize=5,
                label=name,
            )
        axes.set_yticks(places, names)
        axes.set(xlabel="attacked pictures that show the concept, %", xlim=(-3, 103))
        axes.set_ylim(-0.6, len(order) - 0.4)
        legend(axes)

    worst = order[-1]
    alt = f"Success of every attack, on the model and the original; worst: {worst}, {shown[worst].asr_after:.1%}"
    return draw(_paint, alt, height=1.1 + sum(0.36 if "\n" in name else 0.28 for name in names))


def relearn_plot(attack: AttackResult) -> Any:
    """Share of pictures with the concept over steps of fine-tuning, as inline SVG; None without a curve."""
    steps = sorted({point.step for point in attack.curve if known(point.step)})
    if not steps:
        return None

    def _paint(figure: Any) -> None:
        axes = figure.subplots()
        for of, *style in (
            ("concept", "on pictures of the concept", ORANGE, "-", "o"), ("benign", "on benign pictures", BLUE, "--", "s"),
        ):  # fmt: skip
            points = [(point.step, share) for point in attack.curve if known(share := getattr(point, of))]
            line(axes, [(step, 100 * share) for step, share in points], *style)
            for step, share in points:
                ends = wilson(round(share * attack.n), attack.n) if attack.n and 0 <= share <= 1 else None
                bar(axes, [step, step], percents(ends), style[1])
        axes.set_xscale("symlog", linthresh=max(min((step for step in steps if step > 0), default=1), 1))
        axes.set_xticks(steps, [f"{step:,}" for step in steps])
        axes.minorticks_off()
        axes.set(xlabel="steps of fine-tuning (logarithmic)", ylabel="pictures with the concept, %", ylim=(-4, 104))
        legend(axes)

    return draw(_paint, "Share of pictures with the concept by steps of fine-tuning", height=3.0)


def difference_plot(difference: Difference) -> str | None:
    """Relative difference and share of weights changed, row by row, as an SVG file's text; None where nothing differs.

    Of more rows than fit, those that differ most are drawn.
    """
    finite = [(row.relative_l2, row) for row in difference.rows if row.relative_l2 is not None]
    most = sorted(finite, key=lambda one: -one[0])[:BARS]
    rows = [one for one in finite if one in most]
    if not rows:
        return None
    names = [row.name.removeprefix("unet.").removeprefix("model.diffusion_model.") for _, row in rows]

    def _paint(figure: Any) -> None:
        sizes, shares = figure.subplots(ncols=2, sharey=True)
        sizes.barh(names, [100 * relative for relative, _ in rows], color=BLUE)
        sizes.set(xlabel="relative L2 difference, %")
        shares.barh(names, [100 * row.share for _, row in rows], color=ORANGE)
        shares.set(xlabel="weights changed, %", xlim=(0, 100))
        sizes.invert_yaxis()
        sizes.margins(y=0.01)
        for axes in (sizes, shares):
            axes.tick_params(labelsize=7)

    alt = f"Difference by {difference.by}; most in {most[0][1].name}: {most[0][0]:.2%}"
    drawn = draw(_paint, alt, height=1 + 0.19 * len(rows), themed=False)
    return str(drawn).replace("<svg ", f"<svg {STANDALONE} ", 1)


def by_block(layers: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """[trimmed, size] summed over blocks: the finest division with no more than `BARS`, in a UNet's own order."""
    for pattern in BLOCKS:
        sums: dict[str, list[int]] = {}
        for name, facts in layers.items():
            found = re.match(pattern, name)
            block = sums.setdefault(found.group() if found else "other", [0, 0])
            block[:] = [total + more for total, more in zip(block, facts, strict=True)]
        if len(sums) <= BARS:
            break
    place = {
        name: next((i for i, first in enumerate(BLOCK_ORDER) if name.startswith(first)), len(BLOCK_ORDER))
        for name in sums
    }
    return {name: sums[name] for name in sorted(sums, key=lambda name: (place[name], name))[:BARS]}


def rolling(values: list[float], reach: int = 7) -> list[float]:
    """Mean over `reach` places to both sides of every place."""
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i - reach) : i + reach + 1]]]
