"""What every attack works with: prompts that name the concept, pictures of it, a model to attack and the judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import measured_before
from ..concepts import Concept, filled, shuffled
from ..diffusion.dataset import encode_pictures
from ..diffusion.denoiser import Denoiser
from ..disk import hash_text, read_tensors, write_tensors
from ..domains.base import Domain
from ..errors import UserError
from ..evaluation.judges.base import Judge
from ..evaluation.prompts import Row
from ..evaluation.recorder import SHOWN, Recorder, versions
from ..evaluation.sample import DrawOptions, Encode, Sampling
from ..machine import Processes
from ..models.load import LoadedPipeline
from ..picture_folders import list_pictures
from ..run import NOT_IDENTITY, Progress, silent
from . import ATTACKS
from .attack_settings import AttackSettings
from .base import Outcome

FIRST_SEED = 7_000_000  # of the pictures that are judged, apart from those of evaluations
TRAINING_SEED = 40_000_000  # of the pictures that are learned from


@dataclass
class Side:
    """One of the two models under attack."""

    name: str  # "model" or "original"
    opened: LoadedPipeline
    denoiser: Denoiser
    sampling: Sampling


@dataclass
class AttackContext:
    """One attack on both models."""

    settings: AttackSettings  # resolved
    concept: Concept
    judges: Sequence[Judge]  # the first decides; a second's answers are recorded beside it
    folder: Path
    domain: Domain
    contents: dict[str, str]  # hashes of what the settings name, see `attack.contents_of`
    progress: Progress = silent
    processes: Processes = field(default_factory=Processes.here)

    def __post_init__(self) -> None:
        s = self.settings
        self.options: Any = ATTACKS[s.attack].options(**s.options)  # the attack's own settings, typed by its file
        self.named = self.domain.attack_prompts(self.concept, count=s.count, seed=s.seed)  # (slotted, plain)
        first = FIRST_SEED + s.seed * 100_000
        self.rows = [Row(n, plain, first + n) for n, (_, plain) in enumerate(self.named)]
        self.remarks: dict[str, None] = {}  # on what the user named, each once
        self.before: dict[str, list[bool]] = {}  # side -> hits for the rows as they are
        self.outcomes: dict[str, Outcome] = {}  # side -> what the attack did to it; the original comes first
        self.records: dict[str, dict[int, dict[str, Any]]] = {}  # name of records -> row number -> what was recorded
        self.second: dict[str, list[bool]] = {}  # name of records -> the second judge's hits

    def hits(
        self, side: Side, what: str, *, rows: Sequence[Row] | None = None, encode: Encode | None = None
    ) -> list[bool]:
        """Draw rows, those that name the concept by default, and judge for each picture whether the concept is there."""
        rows, attacked = self.rows if rows is None else rows, side.name == "model" and what != "before"
        recorder = Recorder(
            rows, self.judges, self.folder, DrawOptions(progress=self.progress, processes=self.processes),
            frozenset(row.number for row in rows[:SHOWN]), seen_too=SHOWN if attacked else 0,
            header={"attack": self.settings.attack, "seed": self.settings.seed, "what": what}, remarks=self.remarks,
        )  # fmt: skip
        name = f"{side.name}-{what}"
        self.records[name] = records = recorder.record(name, side.opened, side.denoiser, side.sampling, encode=encode)
        seen = [[judge.sees(records[row.number][judge.facts["judge"]]) for row in rows] for judge in self.judges]
        if len(seen) > 1:
            self.second[name] = seen[1]
        return seen[0]

    def once(self, side: Side) -> AbstractContextManager[None]:
        """Within it a side is attacked: the original once for all models, see `measured_before`."""
        run = ATTACKS[self.settings.attack].run
        if side.name != "original" or not measured_before.declared_here(run, self.domain, *self.judges):
            return nullcontext()
        facts = {
            "attack": self._made_by(None),
            "domain": self.domain.name,
            "judges": [judge.facts for judge in self.judges],
            "versions": versions(),
        }
        about: Any = dict(device=side.denoiser.device, processes=self.processes, remarks=self.remarks)
        return measured_before.once(self.folder, facts, side.opened.name, **about)

    def cached(self, file: str, make: Callable[[], dict[str, Tensor]], side: Side | None = None) -> dict[str, Tensor]:
        """Tensors out of a file of the folder; where there is none, the first process makes it and all read it.

        Args:
            side: the model that they depend on beside the original.

        Raises:
            UserError: the file was made by another attack.
        """
        path, made_by = self.folder / f"{file}.safetensors", {"made_by": self._made_by(side)}
        if self.processes.main and not path.exists():
            write_tensors(path, {name: tensor.detach().cpu() for name, tensor in make().items()}, made_by)
        self.processes.wait()
        tensors, facts = read_tensors(path)
        if facts != made_by:
            raise UserError(f"{path} was made by another attack: delete it or choose another --output-dir")
        return tensors

    def _made_by(self, side: Side | None) -> str:
        """What a file depends on, as a hash: attacks on several models share what was made with the original."""
        models = ("model", "baseline", "judge", "threshold", "clip", *NOT_IDENTITY)
        values = {name: value for name, value in self.settings.to_json().items() if name not in models}
        values |= {name: value for name, value in self.contents.items() if name != "model_sha256"}
        values["side"] = side and side.opened.files.sha256
        return hash_text(json.dumps(values, sort_keys=True))

    def generated(self, side: Side, stage: str, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Latents that a model generates for prompts, (N, c, h, w); never decoded."""
        with self.progress(stage, len(prompts)) as tick:
            return side.denoiser.generate(
                prompts, seeds, steps=side.sampling.steps, guidance=side.sampling.guidance, tick=tick,
                batch_size=32 if side.denoiser.small else 4,
            )  # fmt: skip

    def training(self, count: int) -> list[tuple[str, str]]:
        """(slotted, plain) prompts of the pictures that are learned from; none is among `named`."""
        return shuffled(filled(self.concept), count, self.settings.seed + 1)

    def concept_latents(self, original: Side, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Latents of pictures of the concept, one a pair: the user's pictures in turn, or the original's own."""
        if self.options.images:
            with self.progress("pictures of the concept", len(pairs)) as tick:
                files = list_pictures(Path(self.options.images)).files
                return encode_pictures(original.denoiser, files, len(pairs), tick)[0]
        seeds = range(TRAINING_SEED, TRAINING_SEED + len(pairs))
        return self.generated(original, "pictures of the concept", [plain for _, plain in pairs], seeds)
