"""The settings of an attack, and how the command line names several."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..declaration import SEED, check_declared, setting
from ..errors import UsageError
from ..evaluation.judges import JUDGES, judges_named
from ..naming import model_of
from ..parsing import choose
from ..places import file_name
from ..settings import concept_names, flag
from . import ATTACKS

WHAT, SAMPLE, JUDGE, RUN = "What", "Drawing and counting", "Judges", "Run"  # panels of --help
# What the JSON holds of an attack that has no such setting, as it always did: folders of former versions continue.
NOT_TAKEN: dict[str, Any] = {
    "prompts": None, "images": None, "learn_from": 48, "few": 8, "steps": None, "restarts": 4, "lr": None, "tokens": None,
    "batch_size": None,
}  # fmt: skip


@dataclass(frozen=True, init=False)
class AttackSettings:
    """Settings of one attack: AttackSettings("embedding", "heart", "runs/heart/model", restarts=1, tokens=3).

    What is no field here is a setting of the attack's own, which its file declares; `attack` may hold some, see
    `parse_attacks`. One that is None takes the default of the model's profile.
    """

    # fmt: off
    attack: str = setting("embedding", "How to bring it back{choices}; or NAME:SETTING=VALUE,... for more of its settings.", panel=WHAT, level="basic", examples=ATTACKS.names, default_text="embedding")
    concept: str = setting(dataclasses.MISSING, "What was erased.", panel=WHAT, level="basic", examples=concept_names)
    model: str = setting(dataclasses.MISSING, "The model under attack: run, pipeline directory, single .safetensors file or hub id.", panel=WHAT, level="basic")
    unet: str | None = setting(None, "The UNet's weights, of another method say, from this .safetensors; the rest is --model's.", panel=WHAT)
    baseline: str | None = setting(None, "The original, which is attacked as well.", panel=WHAT, default_text="what a run's model was made from")
    model_config: str | None = setting(None, "Of single files: diffusers directory or hub id of their family, for configs and tokenizer.", panel=WHAT, default_text="by the file")
    count: int = setting(80, "Prompts that name the concept, and pictures of every rate.", panel=SAMPLE, level="basic", least=1, flag="--limit", default_text="80")
    judge: str | None = setting(None, "Who decides{choices}; or your own image classifier: DIRECTORY, HUB_ID or FILE.onnx, with :LABEL,... that mean the concept. A+B: two, the first decides.", panel=JUDGE, examples=JUDGES.names, default_text="what fits")
    threshold: float | None = setting(None, "NudeNet's score, or CLIP's probability, that counts.", panel=JUDGE, default_text="0.6; clip 0.5")
    clip: str | None = setting(None, "CLIP model, local or hub; none for none.", panel=JUDGE, default_text="openai/clip-vit-large-patch14")
    anchor: str | None = setting(None, "What takes the place of a concept in free text.", panel=JUDGE)
    sampling_steps: int | None = setting(None, "Sampling steps.", panel=SAMPLE, least=1, default_text="50; tiny 20")
    guidance: float | None = setting(None, "Guidance scale.", panel=SAMPLE, default_text="7.5; tiny 3")
    seed: int = setting(0, "The same seed gives the same attack.", panel=SAMPLE, default_text="0", **SEED)
    device: str = setting("auto", "cuda, mps, cpu or auto.", panel=RUN, level="basic", default_text="auto")
    # fmt: on
    options: Mapping[str, Any] = field(default_factory=dict)  # the attack's own settings, as far as they are given

    def __init__(self, attack: str, concept: str, model: str, baseline: str | None = None, **values: Any) -> None:
        """Refuse what no attack could use.

        Raises:
            UserError: naming the flag, the value and what is allowed.
        """
        named, *others = parse_attacks(attack)
        if others:
            raise UsageError(f"--attack {attack} names several: choose one")
        own, attack = dict(values.pop("options", {})), named.attack
        baseline = None if baseline is None else model_of(baseline)
        given = (
            dict(attack=attack, concept=concept, model=model_of(model), baseline=baseline)
            | values
            | dict(named.options)
        )
        for one in dataclasses.fields(self)[:-1]:
            object.__setattr__(self, one.name, given.pop(one.name, one.default))
        own |= given
        object.__setattr__(self, "options", {name: value for name, value in own.items() if value is not None})
        if self.judge:
            judges_named(self.judge)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold} is outside [0, 1]")
        taken = ATTACKS[attack].takes
        if other := [name for name in self.options if name not in taken]:
            raise UsageError(f"{flag(other[0])} has no effect on --attack {attack}, which takes {', '.join(taken)}")
        for checked in (self, ATTACKS[attack].options(**self.options)):
            check_declared(checked, lambda name: "--limit" if name == "count" else flag(name))

    def resolved(self, profile: str) -> AttackSettings:
        """The same with the defaults of the attack's budget, and of it on models of a profile, filled in."""
        declared = ATTACKS[self.attack]
        budget = declared.budgets.get(self.options.get("budget", ""), {})
        options = declared.options(**{**declared.profiles.get(profile, {}), **budget, **self.options})
        return dataclasses.replace(self, options=dataclasses.asdict(options))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, flat: the attack's own settings lie beside the others; `unet` is part of the model by then."""
        shared = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)[:-1] if one.name != "unet"}
        own = {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()}
        return {**shared, **NOT_TAKEN, **own}


@dataclass(frozen=True)
class NamedAttack:
    """An attack as `--attack` names it, with settings of its own."""

    name: str  # its folder, and its part of the names of columns: the attack's, and of a further one what differs too
    attack: str
    options: Mapping[str, Any]  # settings of the attack, or count

    @property
    def note(self) -> str:
        """What sets it apart in tables: its settings, where the name is not the attack's alone."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f" ({options})" if self.name != self.attack else ""


def parse_attacks(text: str) -> tuple[NamedAttack, ...]:
    """The attacks of a list such as "embedding,embedding:tokens=3,restarts=1,relearn:lr=3e-4".

    NAME, or NAME:SETTING=VALUE,SETTING=VALUE; numbers of a list are joined with +.

    Raises:
        UserError: an unknown attack or setting, a value of another type, or the same attack twice.
    """
    found: dict[str, NamedAttack] = {}
    for attack, written in _split(text):
        if attack not in ATTACKS:
            raise UsageError(f"--attack {attack!r} is unknown{choose(attack, ATTACKS.names())}")
        options = {name: _value(attack, name, value) for name, value in written.items()}
        words = [f"{name}-{value}" for name, value in written.items()]
        name = attack if attack not in found else file_name(attack, *words)
        if name in found:
            raise UsageError(f"--attack {text} names {name} twice")
        found[name] = NamedAttack(name, attack, options)
    return tuple(found.values())


def _split(text: str) -> list[tuple[str, dict[str, str]]]:
    """(attack, its settings as text) of every attack of a list."""
    found: list[tuple[str, dict[str, str]]] = []
    for piece in (piece.strip() for piece in text.split(",")):
        head, _, option = piece.partition(":")
        if "=" in head and found:  # a further setting of the last one
            option = piece
        else:
            found.append((head, {}))
        if option:
            name, _, value = option.partition("=")
            found[-1][1][name.strip().replace("-", "_")] = value.strip()
    return found


def _value(attack: str, name: str, text: str) -> Any:
    """A setting's value out of its text, by the type that is declared."""
    kinds = {"count": int, **typing.get_type_hints(ATTACKS[attack].options)}
    if name not in kinds:
        raise UsageError(f"--attack {attack}: {name!r} is none of its settings: choose {', '.join(kinds)}")
    try:
        if "tuple" in str(kinds[name]):
            number = float if "float" in str(kinds[name]) else int
            return tuple(number(part) for part in text.split("+"))
        return kinds[name](text) if kinds[name] in (int, float) else text
    except ValueError:
        raise UsageError(f"--attack {attack}: {name}={text} is no number") from None
