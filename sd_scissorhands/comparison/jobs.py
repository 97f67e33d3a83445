"""What is compared: every recipe on every target under every seed, a job and a row each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..evaluation.chance import wilson
from ..recipes import RECIPES, recipes_for
from ..run import NOT_IDENTITY, Progress
from ..settings import EraseSettings, ForgetSettings, UserError

ATTACKS = ("embedding", "token", "paraphrase")  # whose success is a share of pictures
Row = dict[str, Any]


@dataclass(frozen=True)
class Measures:
    """How the erased models of a comparison are judged and attacked."""

    count: int = 200  # pictures for UA and for IRA, each
    sampling_steps: int | None = None
    guidance: float | None = None
    judge: str | None = None
    threshold: float | None = None
    clip: str | None = None
    attack: str | None = "embedding"  # one of `ATTACKS`; None for none
    attacking: Mapping[str, Any] = field(default_factory=dict)  # more fields of AttackSettings: restarts, tokens, ...


@dataclass(frozen=True)
class Comparison:
    """Every recipe on every target under every seed.

    Args:
        settings: of every run; its recipe, seed and target are replaced.
        targets: what is to go: {"concepts": (NAME,)} of a denoiser; {"forget_class": NAME}, {"forget_random": SHARE} or
            {"forget_indices": FILE} of a classifier.
        recipes: none for every recipe that fits the model.
        seeds: how many, from 0 on.
        measures: of erased denoisers.
    """

    settings: EraseSettings | ForgetSettings
    targets: tuple[Mapping[str, Any], ...]
    recipes: tuple[str, ...] = ()
    seeds: int = 3
    measures: Measures = Measures()

    def __post_init__(self) -> None:
        """Refuse what no comparison could use.

        Raises:
            UserError: naming the flag, the value and what is allowed.
        """
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds} is too small: it must be at least 1")
        if not self.targets:
            raise UserError("nothing to compare on: name what is to go with --concept or --forget-class")
        for name in self.recipes:
            if name not in RECIPES:
                raise UserError(f"--recipes {name!r} is unknown: choose {', '.join(RECIPES)}")
        if len(self.targets) > 1 and getattr(self.settings, "retrained", None) is not None:
            raise UserError(
                "retrained is one model, and each target needs its own: compare on one at a time, or without it"
            )
        if self.measures.count < 1:
            raise UserError(f"--limit {self.measures.count} is too small: it must be at least 1")
        if self.measures.attack not in (None, *ATTACKS):
            raise UserError(f"--attack {self.measures.attack!r} is unknown here: choose {', '.join(ATTACKS)} or none")

    def recipes_on(self, profile: str) -> tuple[str, ...]:
        """The recipes to compare on models of a profile, each once.

        Raises:
            UserError: one does not fit.
        """
        fit = recipes_for(profile)
        for name in self.recipes:
            if name not in fit:
                raise UserError(f"--recipes {name} is not for this kind of model: choose {', '.join(fit)}")
        return tuple(dict.fromkeys(self.recipes)) or fit


@dataclass(frozen=True)
class Job:
    """A row to be made, in a run directory of its own."""

    settings: Any  # EraseSettings | ForgetSettings, as the subject knows; resolved
    target: str  # as the rows call it
    root: Path  # of the comparison
    folder: Path
    made_by: dict[str, Any]  # what the row depends on, as JSON

    @property
    def name(self) -> str:
        """What is being done, in a few words."""
        return f"{self.settings.recipe} on {self.target}, seed {self.settings.seed}"

    @property
    def facts(self) -> dict[str, Any]:
        """What a row says of its origin."""
        recipe = self.settings.recipe
        return {"baseline": RECIPES[recipe].baseline, "run": self.folder.relative_to(self.root).as_posix()}


class Subject(Protocol):
    """What recipes are compared on."""

    kind: str  # diffusion | classifier

    def jobs(self, root: Path) -> list[Job]:
        """All rows to be made, those of a target and a seed together; cheap."""
        ...

    def check(self) -> None:
        """Open what can be opened before work starts."""
        ...

    def rows(self, job: Job, progress: Progress) -> dict[str, Row]:
        """Do it: "model" -> its row, "original" and, of a classifier, "retrain" -> those to compare it with."""
        ...

    def nothing(self, job: Job) -> Row:
        """The row of a run that diverged."""
        ...


def jobs_of(
    asked: Comparison, profile: str, root: Path, target: str, fields: Mapping[str, Any], more: Callable[[Any], Any]
) -> list[Job]:
    """The jobs of one target, seed by seed.

    Args:
        fields: of the settings, that say what is to go.
        more: of a run's settings, what its row depends on besides.

    Raises:
        UserError: a recipe does not fit the profile.
    """
    shared: Any = asked.settings
    jobs = []
    for seed in range(asked.seeds):
        for recipe in asked.recipes_on(profile):
            settings = dataclasses.replace(shared, recipe=recipe, seed=seed, **fields).resolved(profile)
            made_by = {name: value for name, value in settings.to_json().items() if name not in NOT_IDENTITY}
            folder = root / folder_name(target) / f"{recipe}-seed{seed}"
            jobs.append(Job(settings, target, root, folder, made_by | more(settings)))
    return jobs


def folder_name(text: str) -> str:
    """Words as a name of a directory."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:80]


def intervals(figures: Mapping[str, Any], n: Mapping[str, int], names: Sequence[str]) -> dict[str, list[float] | None]:
    """Wilson's 95 % intervals of shares; None where a figure is not known."""
    return {
        name: wilson(round(figures[name] * n[name]), n[name]) if figures.get(name) is not None and n.get(name) else None
        for name in names
    }
