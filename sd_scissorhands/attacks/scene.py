"""What all attacks work with: prompts that name the concept, pictures of it, a side to attack and a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..concepts import Concept, filled, shuffled
from ..diffusion.dataset import encode_pictures, list_pictures
from ..diffusion.denoiser import Denoiser
from ..disk import read_tensors, write_tensors
from ..domains.base import Domain
from ..evaluation.judges.base import Judge
from ..evaluation.prompts import Row
from ..evaluation.sample import DrawOptions, Encode, Recorder, Sampling
from ..machine import Processes
from ..models.load import LoadedPipeline
from ..run import Progress, silent
from .attack_settings import AttackSettings

SAMPLES = 8  # pictures of every survey that are kept for the report
FIRST_SEED = 7_000_000  # of the pictures that are asked for, apart from those of evaluations
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
    judges: Sequence[Judge]  # the first decides; what a second sees is kept beside it
    folder: Path
    domain: Domain
    progress: Progress = silent
    processes: Processes = field(default_factory=Processes.here)

    def __post_init__(self) -> None:
        s = self.settings
        self.named = self.domain.attack_prompts(self.concept, count=s.count, seed=s.seed)
        first = FIRST_SEED + s.seed * 100_000
        self.rows = [Row(n, plain, first + n) for n, (_, plain) in enumerate(self.named)]
        self.second: dict[str, list[bool]] = {}  # survey -> what the second judge sees

    def success(
        self, side: Side, what: str, *, rows: Sequence[Row] | None = None, encode: Encode | None = None
    ) -> list[bool]:
        """Draw rows, those that name the concept unless told, and say for each whether the concept is there."""
        rows = self.rows if rows is None else rows
        survey = Recorder(
            rows, self.judges, self.folder, DrawOptions(progress=self.progress, processes=self.processes),
            samples=frozenset(row.number for row in rows[:SAMPLES]),
            header={"attack": self.settings.attack, "seed": self.settings.seed, "what": what},
        )  # fmt: skip
        name = f"{side.name}-{what}"
        records = survey.record(name, side.opened, side.denoiser, side.sampling, encode=encode)
        seen = [[judge.sees(records[row.number][judge.facts["judge"]]) for row in rows] for judge in self.judges]
        if len(seen) > 1:
            self.second[name] = seen[1]
        return seen[0]

    def kept(self, file: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that were made before, or are made now by the first process and read by all."""
        path = self.folder / f"{file}.safetensors"
        if self.processes.main and not path.exists():
            write_tensors(path, {name: tensor.detach().cpu() for name, tensor in make().items()})
        self.processes.wait()
        return read_tensors(path)[0]

    def drawn(self, side: Side, what: str, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Latents that a side draws for prompts; never decoded."""
        with self.progress(what, len(prompts)) as tick:
            return side.denoiser.generate(
                prompts, seeds, steps=side.sampling.steps, guidance=side.sampling.guidance, tick=tick,
                batch_size=32 if side.denoiser.small else 4,
            )  # fmt: skip

    def training(self, count: int) -> list[tuple[str, str]]:
        """(slotted, plain) prompts of the pictures that are learned from; none is among those that are asked."""
        return shuffled(filled(self.concept), count, self.settings.seed + 1)

    def concept_latents(self, original: Side, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Pictures of the concept, one a pair: the user's in turn, or the original's own."""
        s = self.settings
        if s.images:
            with self.progress("pictures of the concept", len(pairs)) as tick:
                return encode_pictures(original.denoiser, list_pictures(Path(s.images)), len(pairs), tick)[0]
        seeds = range(TRAINING_SEED, TRAINING_SEED + len(pairs))
        return self.drawn(original, "pictures of the concept", [plain for _, plain in pairs], seeds)
