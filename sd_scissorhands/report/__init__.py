"""What a run directory holds, as one HTML page and as the model card of the erased model."""

from pathlib import Path

from .comparison_page import ROWS, write_comparison
from .forgetting_page import is_forgetting, write_forgetting_report
from .page import card_text, write_card, write_evaluation_report, write_report
from .share import write_picture

__all__ = [
    "card_text", "rewrite", "write_card", "write_comparison", "write_evaluation_report", "write_forgetting_report", "write_picture", "write_report",
]  # fmt: skip


def rewrite(folder: Path, *, blur: bool = True) -> Path:
    """Write the page of whatever a folder holds: a comparison, an evaluation or attack, a forgetting, or an erasure.

    Raises:
        UserError: it holds none of them, or cannot be written to.
    """
    if (folder / ROWS).exists():
        return write_comparison(folder)
    if (folder / "summary.json").exists():
        return write_evaluation_report(folder, blur=blur)
    return write_forgetting_report(folder) if is_forgetting(folder) else write_report(folder, blur=blur)
