"""What a run directory holds, told as one HTML page and as the model card of the erased model."""

from .page import write_card, write_evaluation_report, write_report

__all__ = ["write_card", "write_evaluation_report", "write_report"]
