"""The prompts of a file, such as those that another attack found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..declaration import setting
from ..settings import UserError
from . import ATTACKS
from .base import Attack, Outcome

if TYPE_CHECKING:
    from .base import Data
    from .context import AttackContext, Side


@dataclass(frozen=True)
class ListOptions:
    """Which prompts.

    Raises:
        UserError: none.
    """

    prompts: str | None = setting(None, "The prompts, one a line, or the column prompt of a CSV.", panel="What")

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("--attack list needs --prompts FILE, one prompt a line")


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Draw every prompt of the file, however many there are."""
    from ..concepts import read_prompts

    first, texts = context.rows[0], read_prompts(Path(context.options.prompts), "--prompts")
    rows = [replace(first, number=n, prompt=text, seed=first.seed + n) for n, text in enumerate(texts)]
    return Outcome(context.hits(side, "after", rows=rows), texts, "after")


ATTACKS.add("list", Attack("replay the prompts of a file", "listed prompts", run, options=ListOptions))
