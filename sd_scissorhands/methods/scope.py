"""Which parameters of a module may change."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..errors import UserError
from .interface import Parameters

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a norm, by its type; diffusers has an RMSNorm of its own."""
    return isinstance(module, NORMS) or type(module).__name__ == "RMSNorm"


def scope_of(module: nn.Module, expression: str, known: Mapping[str, str], what: str) -> Parameters:
    """Parameters of a module by name, norm layers left out by type: they scale and shift everything.

    Args:
        expression: a key of `known`, or a regular expression searched for in the parameter names.
        known: names of usual scopes and their regular expressions.
        what: the module in words, for an error.

    Raises:
        UserError: a bad expression, or one that matches nothing.
    """
    try:
        pattern = re.compile(known.get(expression, expression))
    except re.error as error:
        raise UserError(f"--scope {expression!r} is no regular expression: {error}") from None
    norms = tuple(f"{name}." for name, inner in module.named_modules() if is_norm(inner))
    named = ((name, p) for name, p in module.named_parameters() if not name.startswith(norms))
    if not (found := {name: parameter for name, parameter in named if pattern.search(name)}):
        usual = ", ".join(known)
        raise UserError(f"--scope {expression!r} matches no weight of {what}: use {usual} or a regular expression")
    return found
