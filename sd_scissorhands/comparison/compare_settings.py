"""What the command line says of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attacks import ATTACKS
from ..attacks.attack_settings import parse_attacks
from ..declaration import check_declared, setting
from ..errors import UsageError
from ..evaluation.judges import JUDGES, judges_named
from ..parsing import choose
from ..recipes import CLASSIFIERS, DENOISERS, RECIPES, recipes_for
from ..settings import DIGITS, EraseSettings, ForgetSettings, concept_names, flag, load_settings

if TYPE_CHECKING:
    from .jobs import Comparison

WHAT, DIFFUSION, CLASSIFIER, RUN = "What", "Diffusion: judging and attacking", "Classifiers", "Run"  # panels of --help
ATTACKING = {
    "restarts": "restarts",
    "tokens": "tokens",
    "attack_steps": "steps",
}  # here -> in every attack that takes it
MEASURING = ("limit", "sampling_steps", "guidance", "judge", "threshold", "clip", "anchor", "attack", *ATTACKING)
FLAGS = {"concepts": "--concept"}  # that are not called as their field
OF_CLASSIFIERS = "--forget-class, --forget-random or --forget-indices"
OWN = ("concepts", "recipe", "model", "seed", "forget_class", "forget_random", "forget_indices")  # not for --config


@dataclass(frozen=True)
class CompareSettings:
    """Recipes, targets, seeds, and how what comes of them is measured."""

    # fmt: off
    recipes: tuple[str, ...] | None = setting(None, "Recipes, e.g. scissorhands,lra-npp,esd; see sdscissor recipes.", panel=WHAT, level="basic", listed=True, examples=lambda: tuple(RECIPES), default_text="all that fit the model")
    concepts: tuple[str, ...] = setting((), "Diffusion: what each recipe erases, one after the other. Repeatable.", panel=WHAT, level="basic", flag="--concept", examples=concept_names)
    forget_class: tuple[str, ...] = setting((), "Classifier: the class that each recipe forgets. Repeatable.", panel=WHAT, level="basic")
    forget_random: float | None = setting(None, "Classifier: this share of the training pictures, drawn at random, in (0, 1).", panel=WHAT, least=0, most=1, open_ends=True)
    forget_indices: str | None = setting(None, "Classifier: file with numbers of training pictures, one a line.", panel=WHAT)
    seeds: int = setting(3, "Runs of every recipe on every target, with the seeds 0, 1, ...", panel=WHAT, level="basic", least=1, most=1000, remedy="it must be at least 1 and at most 1000")
    model: str | None = setting(None, "Hub id or directory of what all runs start from.", panel=WHAT, level="basic", default_text="tiny; classifier digits")
    limit: int | None = setting(None, "Pictures for UA and for IRA, each, per run; at most 60 of them under attack.", panel=DIFFUSION, least=1, default_text="200")
    sampling_steps: int | None = setting(None, "Sampling steps of the pictures that are judged.", panel=DIFFUSION, least=1, default_text="50; tiny 20")
    guidance: float | None = setting(None, "Guidance scale of the pictures that are judged.", panel=DIFFUSION, default_text="7.5; tiny 3")
    judge: str | None = setting(None, "Who decides{choices}; or your own image classifier, as of eval.", panel=DIFFUSION, examples=JUDGES.names, default_text="what fits")
    threshold: float | None = setting(None, "NudeNet's score, or CLIP's probability, that counts.", panel=DIFFUSION, least=0, most=1, default_text="0.6; clip 0.5")
    clip: str | None = setting(None, "CLIP model, local or hub; none for none.", panel=DIFFUSION, default_text="openai/clip-vit-large-patch14")
    anchor: str | None = setting(None, "What takes the concepts' place.", panel=DIFFUSION, default_text="each one's own")
    attack: tuple[str, ...] = setting((), "none, or attacks one after the other{choices}; NAME or NAME:SETTING=VALUE,...; repeatable. The first one's success is the ASR of the table, each further one has columns of its own.", panel=DIFFUSION, level="basic", examples=ATTACKS.names, default_text="embedding")
    restarts: int | None = setting(None, "Embeddings learned from different starts; the strongest counts.", panel=DIFFUSION, least=1, default_text="4")
    tokens: int | None = setting(None, "Learned vectors, or tokens of the suffix.", panel=DIFFUSION, least=1, default_text="embedding 1, token 5; tiny 3")
    attack_steps: int | None = setting(None, "Steps of learning.", panel=DIFFUSION, least=1, default_text="embedding 200, token 40")
    data: str | None = setting(None, "Image folder or .npz file.", panel=CLASSIFIER, default_text="the digits")
    device: str | None = setting(None, "cuda, mps, cpu or auto.", panel=RUN, level="basic", default_text="auto")
    # fmt: on

    def __post_init__(self) -> None:
        """Refuse what no comparison could use.

        Raises:
            UsageError: naming the flag, the value and what is allowed.
        """
        check_declared(self, _spelled, UsageError)
        if bool(self.concepts) == any("concepts" not in target for target in self.targets):
            raise UsageError(f"choose one of --concept (diffusion) and {OF_CLASSIFIERS} (classifier)")
        if self.concepts:
            self._refuse(OF_CLASSIFIERS, ("data",))
            if self.judge:
                judges_named(self.judge)
            if self.attacks:
                parse_attacks(self.attacks)
            else:
                self._refuse("an attack", tuple(ATTACKING))
        else:
            self._refuse("--concept", MEASURING)
        fit = dict.fromkeys(
            name for profile in (DENOISERS if self.concepts else CLASSIFIERS) for name in recipes_for(profile)
        )
        for name in self.recipes or ():
            if name not in RECIPES:
                raise UsageError(f"--recipes {name!r} is unknown{choose(name, RECIPES)}")
            if name not in fit:
                raise UsageError(f"--recipes {name} is not for this kind of model: choose {', '.join(fit)}")

    def _refuse(self, needs: str, names: tuple[str, ...]) -> None:
        """Refuse settings that would have no effect."""
        for name in names:
            if getattr(self, name) not in (None, ()):
                raise UsageError(f"{_spelled(name)} has no effect without {needs}")

    @property
    def targets(self) -> list[Mapping[str, Any]]:
        """What is to go, as `Comparison.targets`."""
        return [
            *({"concepts": (name,)} for name in self.concepts),
            *({"forget_class": name} for name in self.forget_class),
            *([] if self.forget_random is None else [{"forget_random": self.forget_random}]),
            *([] if self.forget_indices is None else [{"forget_indices": self.forget_indices}]),
        ]

    @property
    def attacks(self) -> str | None:
        """The attacks as one list, see `attack_settings.parse_attacks`; None for none."""
        text = ",".join(self.attack or ("embedding",))
        return None if text == "none" else text

    def comparison(self, config: Path | None) -> Comparison:
        """The comparison that is asked for.

        Args:
            config: settings of every run, as TOML.

        Raises:
            UserError: a file that cannot be read, or that says what the comparison itself does; an attack's settings.
        """
        from .jobs import Comparison, Measures

        kind: type[EraseSettings | ForgetSettings] = EraseSettings if self.concepts else ForgetSettings
        values = {"model": self.model or ("tiny" if self.concepts else DIGITS), "device": self.device}
        values |= {"anchor": self.anchor} if self.concepts else {"data": self.data}
        settings = load_settings(kind, config, values, leave_out=OWN)
        given = {own: getattr(self, name) for name, own in ATTACKING.items()}
        measures = Measures(
            self.limit or Measures.count, self.sampling_steps, self.guidance, self.judge, self.threshold, self.clip,
            self.attacks, {name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
        return Comparison(settings, tuple(self.targets), self.recipes or (), self.seeds, measures)


def _spelled(name: str) -> str:
    return FLAGS.get(name, flag(name))
