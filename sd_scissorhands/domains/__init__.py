"""Domains: what a model draws, and so which concepts, prompts and judges fit it. A domain is one file."""

from __future__ import annotations

from pathlib import Path

from ..registry import Registry
from .base import Domain

DOMAINS: Registry[Domain] = Registry("domain", __name__, Path(__file__).parent, not_declarations=("base",))


def domain_of(directory: Path | None) -> Domain:
    """The domain of a pipeline directory: the one whose marker file lies in it, else that of any other model."""
    marked = (domain for _, domain in DOMAINS if domain.marker and directory and (directory / domain.marker).exists())
    return next(marked, DOMAINS["photographs"])
