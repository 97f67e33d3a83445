"""Which attacks a suite is made of, and the settings that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..parsing import choose
from ..settings import flag
from .attack_settings import AttackSettings, parse_attacks

SUITES: dict[str, tuple[str, ...]] = {  # name -> attacks, each as `--attack` names it
    "quick": (
        "paraphrase:count=24", "words:count=32", "completion:count=24", "deployment:count=32", "ring-a-bell:count=24",
        "embedding:restarts=1,count=48", "relearn:count=16",
    ),
    "full": (
        "paraphrase", "words", "completion", "image-to-image", "inpainting", "sampler-noise", "deployment", "lora", "ring-a-bell",
        "embedding", "embedding:tokens=3", "embedding:budget=published,restarts=1", "token", "inversion", "relearn",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """The attacks of a suite on one model, by the names of their folders."""

    name: str
    attacks: Mapping[str, AttackSettings]
    notes: Mapping[str, str]  # what sets an attack apart from another of its kind, see `NamedAttack.note`

    @classmethod
    def of(cls, name: str, concept: str, model: str, baseline: str | None = None, **shared: Any) -> Suite:
        """A suite, with settings that all its attacks share, such as count or seed.

        Raises:
            UserError: see `AttackSettings`; an unknown suite, or a setting of some attacks alone.
        """
        if name not in SUITES:
            raise UsageError(f"--suite {name!r} is unknown{choose(name, SUITES)}")
        fields = {field.name for field in dataclasses.fields(AttackSettings)}
        if own := [setting for setting in shared if setting not in fields - {"attack", "options"}]:
            raise UsageError(
                f"{flag(own[0])} has no effect on --suite {name}, which brings its attacks' own settings: leave it out"
            )
        named = parse_attacks(",".join(SUITES[name]))
        attacks = {
            one.name: AttackSettings(one.attack, concept, model, baseline, **(dict(one.options) | shared)) for one in named
        }  # fmt: skip
        return cls(name, attacks, {one.name: one.note for one in named})

    def on(self, other: AttackSettings) -> Suite:
        """The same on the model that another attack names."""
        models = {name: getattr(other, name) for name in ("model", "baseline", "unet", "model_config")}
        return dataclasses.replace(
            self, attacks={name: dataclasses.replace(one, **models) for name, one in self.attacks.items()}
        )

    @property
    def first(self) -> AttackSettings:
        """One of its attacks, for the settings that all share."""
        return next(iter(self.attacks.values()))
