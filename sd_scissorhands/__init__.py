"""Take a concept out of a diffusion model, keep the rest of it whole, and show both.

    from sd_scissorhands import EraseSettings, EvaluateSettings, erase, evaluate

    erased = erase(EraseSettings(concepts=("heart",), model="tiny"), "runs/heart")
    judged = evaluate(EvaluateSettings(model=erased.model_dir, concept="heart"))

What is heavy is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import attack as attack
    from .api import attack_suite as attack_suite
    from .api import compare as compare
    from .api import erase as erase
    from .api import evaluate as evaluate
    from .api import forget as forget
    from .attacks.attack_settings import AttackSettings as AttackSettings
    from .attacks.suite_settings import Suite as Suite
    from .comparison.jobs import Comparison as Comparison
    from .errors import UserError as UserError
    from .evaluation.evaluate_settings import EvaluateSettings as EvaluateSettings
    from .models.export import export as export
    from .models.verify import verify as verify
    from .quiet import bars as bars
    from .settings import EraseSettings as EraseSettings
    from .settings import ForgetSettings as ForgetSettings

__version__ = "0.1.0"

_MODULES = {
    "api": ("attack", "attack_suite", "compare", "erase", "evaluate", "forget"),
    "attacks.attack_settings": ("AttackSettings",),
    "attacks.suite_settings": ("Suite",),
    "errors": ("UserError",),
    "models.export": ("export",),
    "models.verify": ("verify",),
    "comparison.jobs": ("Comparison",),
    "evaluation.evaluate_settings": ("EvaluateSettings",),
    "quiet": ("bars",),
    "settings": ("EraseSettings", "ForgetSettings"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
