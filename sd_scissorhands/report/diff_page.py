"""The plot of what two checkpoints differ in."""

from __future__ import annotations

from typing import Any

from ..results.models import Difference
from .plots import BARS, BLUE, ORANGE, draw

STANDALONE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="background:white"'


def difference_plot(difference: Difference) -> str | None:
    """Relative difference and share of weights changed, row by row, as an SVG file's text; None where nothing differs.

    Of more rows than fit, those that differ most are drawn.
    """
    known = [(row.relative_l2, row) for row in difference.rows if row.relative_l2 is not None]
    most = sorted(known, key=lambda one: -one[0])[:BARS]
    rows = [one for one in known if one in most]
    if not rows:
        return None
    names = [row.name.removeprefix("unet.").removeprefix("model.diffusion_model.") for _, row in rows]

    def paint(figure: Any) -> None:
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
    drawn = draw(paint, alt, height=1 + 0.19 * len(rows))
    return str(drawn).replace("<svg ", f"<svg {STANDALONE} ", 1)
