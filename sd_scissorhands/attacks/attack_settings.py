"""What an attack is asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..evaluation.judges import JUDGES
from ..settings import UsageError, UserError, flag

ATTACKS = {
    "embedding": "learn one word embedding on pictures of the concept (white box)",
    "token": "learn a suffix of real tokens for each prompt, by projected gradient (white box)",
    "paraphrase": "synonyms, other word orders, misspellings",
    "list": "replay the prompts of a file",
    "relearn": "fine-tune on a few pictures of the concept, and on as many of anything else",
}
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "embedding": dict(steps=200, lr=0.3, tokens=1, batch_size=16),
        "token": dict(steps=40, lr=0.5, tokens=3),
        "relearn": dict(steps=80, lr=3e-4, batch_size=8),
    },
    "sd": {
        "embedding": dict(steps=200, lr=0.3, tokens=1, batch_size=4),
        "token": dict(steps=40, lr=0.5, tokens=5),
        "relearn": dict(steps=160, lr=1e-5, batch_size=2),
    },
}


@dataclass(frozen=True)
class AttackSettings:
    """Settings of one attack; a None takes the default of the model's profile and the attack, see `PROFILES`."""

    attack: str
    concept: str
    model: str
    baseline: str | None = None  # the original; None: what a run's model was made from
    model_config: str | None = None  # of single files: a pipeline of their family, for configs and tokenizer
    count: int = 60  # prompts that name the concept: pictures behind every rate
    prompts: str | None = None  # list: a file, one prompt a line
    images: str | None = None  # directory of pictures of the concept; None: the original draws them
    learn_from: int = 48  # embedding: pictures of the concept
    few: int = 8  # relearn: pictures of the concept, and of anything else
    steps: int | None = None
    restarts: int = 4  # embedding
    lr: float | None = None  # embedding, token: share of the vocabulary's spread; relearn: Adam's
    tokens: int | None = None  # embedding: learned vectors; token: length of the suffix
    batch_size: int | None = None
    judge: str | None = None
    threshold: float | None = None
    clip: str | None = None
    anchor: str | None = None  # what takes the place of a concept in free text
    sampling_steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what no attack could use.

        Raises:
            UserError: naming the flag, the value and what is allowed.
        """
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold} is outside [0, 1]")
        if self.judge not in (None, *JUDGES.names()):
            raise UsageError(f"--judge {self.judge!r} is unknown: choose {', '.join(JUDGES.names())}")
        if self.attack not in ATTACKS:
            raise UserError(f"--attack {self.attack!r} is unknown: choose {', '.join(ATTACKS)}")
        if self.attack == "list" and not self.prompts:
            raise UserError("--attack list needs --prompts FILE, one prompt a line")
        for name in ("count", "learn_from", "few", "steps", "restarts", "tokens", "batch_size", "sampling_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                spelled = "--limit" if name == "count" else flag(name)
                raise UserError(f"{spelled} {value} is too small: it must be at least 1")
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"--lr {self.lr} must be above 0")

    def resolved(self, profile: str) -> AttackSettings:
        """The same with every None that has a default for this attack filled in."""
        defaults = PROFILES[profile].get(self.attack, {})
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        return dataclasses.asdict(self)
