"""The plot of what two checkpoints differ in."""

from __future__ import annotations

from typing import Any

from .plots import BARS, BLUE, ORANGE, draw

STANDALONE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="background:white"'


def difference_plot(told: dict[str, Any]) -> str | None:
    """Relative difference and share of weights changed, row by row, as an SVG file's text; None where nothing differs.

    Args:
        told: what `models.diff.difference` returns; of more rows than fit, those that differ most are drawn.
    """
    known = [row for row in told["rows"] if row["relative_l2"] is not None]
    most = sorted(known, key=lambda row: -row["relative_l2"])[:BARS]
    rows = [row for row in known if row in most]
    if not rows:
        return None
    names = [row["name"].removeprefix("unet.").removeprefix("model.diffusion_model.") for row in rows]

    def paint(figure: Any) -> None:
        sizes, shares = figure.subplots(ncols=2, sharey=True)
        sizes.barh(names, [100 * row["relative_l2"] for row in rows], color=BLUE)
        sizes.set(xlabel="relative L2 difference, %")
        shares.barh(names, [100 * row["share"] for row in rows], color=ORANGE)
        shares.set(xlabel="weights changed, %", xlim=(0, 100))
        sizes.invert_yaxis()
        sizes.margins(y=0.01)
        for axes in (sizes, shares):
            axes.tick_params(labelsize=7)

    alt = f"Difference by {told['by']}; most in {most[0]['name']}: {most[0]['relative_l2']:.2%}"
    drawn = draw(paint, alt, height=1 + 0.19 * len(rows))
    return str(drawn).replace("<svg ", f"<svg {STANDALONE} ", 1)
