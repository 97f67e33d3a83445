"""What a run directory holds, told as one HTML page and as the model card of the erased model."""

from .comparison import write_comparison
from .forgetting import write_forgetting_report
from .page import write_card, write_evaluation_report, write_report

__all__ = ["write_card", "write_comparison", "write_evaluation_report", "write_forgetting_report", "write_report"]
