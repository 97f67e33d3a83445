"""What is compared: every recipe on every target under every seed, a job and a row each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attacks import ATTACKS
from ..attacks.attack_settings import AttackSettings, NamedAttack, parse_attacks
from ..errors import UsageError, UserError
from ..evaluation.chance import wilson
from ..parsing import choose
from ..places import short_name
from ..recipes import RECIPES, recipes_for
from ..results.comparison import ComparisonRow, Number
from ..run import NOT_IDENTITY
from ..settings import EraseSettings, ForgetSettings, flag

MOST_ATTACKED = 60  # pictures under attack, unless fewer are evaluated or an attack has its own count


@dataclass(frozen=True)
class Measures:
    """How the erased models of a comparison are judged and attacked."""

    count: int = 200  # pictures for UA and for IRA, each
    sampling_steps: int | None = None
    guidance: float | None = None
    judge: str | None = None
    threshold: float | None = None
    clip: str | None = None
    attack: str | None = "embedding"  # one attack or a list, see `attack_settings.parse_attacks`; None for none
    attacking: Mapping[str, Any] = field(default_factory=dict)  # settings of every attack that takes them: steps, ...

    @property
    def attacks(self) -> tuple[NamedAttack, ...]:
        """The attacks of the list."""
        return parse_attacks(self.attack) if self.attack else ()

    def attack_settings(self, concept: str, model: str, **shared: Any) -> dict[str, AttackSettings]:
        """The attacks on an erasure of a concept from `model`, by name; the erased model is yet to be named.

        Raises:
            UserError: a setting that no attack takes, or that has another value than is allowed.
        """
        shared |= {name: getattr(self, name) for name in ("judge", "threshold", "clip", "sampling_steps", "guidance")}
        shared["count"] = min(self.count, MOST_ATTACKED)
        found, unused = {}, set(self.attacking if self.attack else ())
        for one in self.attacks:
            own = {n: v for n, v in self.attacking.items() if n in ATTACKS[one.attack].takes or n in shared}
            found[one.name] = AttackSettings(one.attack, concept, "", model, **shared | own | dict(one.options))
            unused -= set(own)
        if unused:
            raise UsageError(f"{flag(min(unused))} has no effect on --attack {self.attack}")
        return found


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
                raise UserError(f"--recipes {name!r} is unknown{choose(name, RECIPES)}")
        if getattr(self.settings, "retrained", None) is not None:
            self._check_retrained()
        if self.measures.count < 1:
            raise UserError(f"--limit {self.measures.count} is too small: it must be at least 1")
        self.measures.attack_settings("", "")

    def _check_retrained(self) -> None:
        """Refuse a retrained model that would be held against what it was trained on.

        Raises:
            UserError: there are several targets, or every seed draws another.
        """
        if len(self.targets) > 1:
            raise UserError(
                "retrained is one model, and each target needs its own: compare on one at a time, or without it"
            )
        if self.seeds > 1 and "forget_random" in self.targets[0]:
            raise UserError(
                "retrained is one model, and --forget-random draws other pictures with each seed: "
                "name them with --forget-indices, or take --seeds 1"
            )

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

    def row(self, recipe: str | None = None, **values: Any) -> ComparisonRow:
        """The row of its model; or, named in the place of a recipe, of what that is compared with."""
        named = recipe or self.settings.recipe
        run = None if recipe else self.folder.relative_to(self.root).as_posix()
        baseline = not recipe and RECIPES[named].baseline
        return ComparisonRow(named, self.target, self.settings.seed, baseline=baseline, run=run, **values)


def jobs_of(
    comparison: Comparison, profile: str, root: Path, targets: Sequence[tuple[str, Mapping[str, Any]]],
    depends_on: Callable[[Any], dict[str, Any]],
) -> list[Job]:  # fmt: skip
    """The jobs of every target, seed by seed.

    Args:
        targets: what rows call each, and the fields of the settings that name it.
        depends_on: of a run's settings, what its row depends on besides.

    Raises:
        UserError: a recipe does not fit the profile.
    """
    shared: Any = comparison.settings
    jobs = []
    for target, fields in targets:
        for seed, recipe in itertools.product(range(comparison.seeds), comparison.recipes_on(profile)):
            settings = dataclasses.replace(shared, recipe=recipe, seed=seed, **fields).resolved(profile)
            made_by = {name: value for name, value in settings.to_json().items() if name not in NOT_IDENTITY}
            folder = root / folder_name(target) / f"{recipe}-seed{seed}"
            jobs.append(Job(settings, target, root, folder, made_by | depends_on(settings)))
    return jobs


def folder_name(text: str) -> str:
    """Words as a name of a directory."""
    return short_name("".join(c if c.isalnum() or c in "-_" else "-" for c in text))


def intervals(
    figures: Mapping[str, Number], n: Mapping[str, int], names: Collection[str]
) -> dict[str, list[float] | None]:
    """Wilson's 95 % intervals of shares; None where a figure is not known."""
    known = {name: value for name in names if (value := figures.get(name)) is not None and n.get(name)}
    return {name: wilson(round(known[name] * n[name]), n[name]) if name in known else None for name in names}
