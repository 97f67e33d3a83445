"""Whether a run directory is what its run.json says: every hash, every file, the base and what a delta gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import read_tensors
from ..lineage import run_of, started_from
from ..run import Progress, Run, silent
from ..settings import EraseSettings, UserError
from .delta import differing, read_delta, set_weights
from .load import hash_tensors
from .locate import at_hand
from .modelspec import HASH, OWN
from .source import Source
from .tensor_files import Stored

NEVER = (
    "whether the same settings give the same weights again: erase once more with the settings of run.json into another "
    "directory, then sdscissor diff",
    "whether the concept is gone and the rest whole: sdscissor eval and sdscissor attack measure it",
    "tokenizer, scheduler, eval/, attack/ and report.html: no hash of them is kept",
    "who made it: hashes find mistakes and not malice, whoever can write the directory can write its hashes",
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    holds: bool | None  # None: could not be looked at
    found: str


class Verification:
    """A run directory under examination; what several checks need is read once."""

    def __init__(self, path: Path):
        self.path, self.run = path, Run.read(path)
        self.manifest = self.run.manifest
        self.result: dict[str, Any] = self.manifest.get("result") or {}
        self.told: dict[str, Any] = self.manifest["source"]

    @cached_property
    def source(self) -> Source:
        """The run's model."""
        return Source.find(self.path)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The model's denoiser, float32."""
        denoiser = self.source.denoiser
        return {name: denoiser.tensor(name).float() for name in denoiser.keys}

    @cached_property
    def base(self) -> Source | None:
        """What the run started from, if it is on this machine; nothing is fetched."""
        found = at_hand(str(started_from(self.manifest)))
        return Source(found.directory, run_of(found.directory), found.variant) if found else None

    @cached_property
    def base_weights(self) -> dict[str, Tensor] | None:
        """The base's denoiser, float32, if it is the very one; None otherwise."""
        if self.base is None:
            return None
        denoiser = self.base.denoiser
        tensors = {name: denoiser.tensor(name).float() for name in denoiser.keys}
        return tensors if hash_tensors(tensors.items()) == self.told.get("weights_sha256") else None


def verify(path: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Hold a run directory against its run.json.

    Returns:
        run_dir, holds (nothing that was looked at fails), checks (what, holds, found; `holds` None where it could not be
        looked at) and never_checked, which says what no run of this finds out.

    Raises:
        UserError: no run directory of an erasure.
    """
    seen = Verification(path)
    if "concepts" not in seen.manifest["settings"]:
        raise UserError(f"{path} is no run of sdscissor erase: verify is for diffusion models")
    steps: list[tuple[str, Callable[[Verification], Iterator[Check]]]] = [
        ("settings", _settings), ("stages", _stages), ("model", _model), ("base", _base), ("other parts", _others),
        ("selection", _selection), ("delta", _delta), ("exports", _exports),
    ]  # fmt: skip
    checks: list[Check] = []
    with progress("verify", len(steps)) as tick:
        for what, step in steps:
            try:
                checks += step(seen)
            except UserError as error:
                checks.append(Check(what, False, str(error)))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                checks.append(Check(what, False, f"run.json makes no sense there ({type(error).__name__}: {error})"))
            tick(1)
    return {
        "run_dir": str(path), "holds": all(check.holds is not False for check in checks),
        "checks": [asdict(check) for check in checks], "never_checked": list(NEVER),
    }  # fmt: skip


def _settings(seen: Verification) -> Iterator[Check]:
    try:
        settings = EraseSettings.from_json(seen.manifest["settings"])
    except TypeError as error:
        yield Check("settings", False, f"run.json holds settings that this version does not know ({error})")
        return
    yield Check("settings", True, f"recipe {settings.recipe}, seed {settings.seed}, all known")
    differs = [
        name for name in ("recipe", "seed") if seen.result.get(name, getattr(settings, name)) != getattr(settings, name)
    ]
    if differs:
        yield Check("result", False, f"run.json names another {differs[0]} in its result than in its settings")


def _stages(seen: Verification) -> Iterator[Check]:
    whole = 0
    for stage, entry in seen.manifest["stages"].items():
        file = seen.path / entry["file"]
        if stage == "model":
            continue
        if not file.exists():
            yield Check(f"stage {stage}", False, f"{file} is missing")
            continue
        Stored.open(file)
        whole += 1
    if "model" not in seen.manifest["stages"]:
        yield Check("stages", False, "the run has not ended: continue it with erase --resume")
    else:
        yield Check("stages", True, f"{whole} files, whole")


def _model(seen: Verification) -> Iterator[Check]:
    for part in seen.source.parts.values():
        for name in part.keys:
            if not torch.isfinite(part.tensor(name)).all():
                yield Check("model", False, f"{part.name}.{name} holds NaN or infinite values")
                return
    found, told = hash_tensors(seen.weights.items()), seen.result.get("weights_sha256")
    same = found == told
    yield Check(
        "model",
        same,
        f"{seen.source.family.called} has sha256 {found[:12]}" + ("" if same else f", run.json names {str(told)[:12]}"),
    )


def _base(seen: Verification) -> Iterator[Check]:
    name, told = seen.told.get("model"), str(seen.told.get("weights_sha256"))
    if seen.base is None:
        yield Check("base", None, f"{name} is not on this machine")
    elif seen.base_weights is None:
        yield Check("base", False, f"{name} has other weights than run.json names ({told[:12]})")
    else:
        changed = differing(seen.base_weights, seen.weights)
        count = sum(rows.numel() for rows in changed.values())
        yield Check(
            "base", True, f"{name} has sha256 {told[:12]}; the run changed {count:,} weights in {len(changed)} tensors"
        )


def _others(seen: Verification) -> Iterator[Check]:
    if seen.base is None:
        yield Check("VAE, text encoders", None, "the base is not on this machine")
        return
    for name, part in seen.source.parts.items():
        if part is not seen.source.denoiser:
            same = part.sha256() == seen.base.part(name).sha256()
            yield Check(name, same, "as the base has it" if same else "differs from the base's")


def _selection(seen: Verification) -> Iterator[Check]:
    if seen.manifest["settings"].get("train") != "selection":
        return
    if seen.base_weights is None:
        yield Check("selection", None, "the base is not on this machine")
        return
    selected, _ = read_tensors(seen.path / "selection.safetensors")
    nothing = torch.empty(0, dtype=torch.int64)
    for name, rows in differing(seen.base_weights, seen.weights).items():
        if not torch.isin(rows, selected.get(name, nothing)).all():
            yield Check("selection", False, f"{name} was changed where it was not selected")
            return
    yield Check("selection", True, "no weight was changed that was not selected")


def _delta(seen: Verification) -> Iterator[Check]:
    file = seen.path / "delta.safetensors"
    if not file.exists():
        return
    delta = read_delta(file)
    asked = (seen.told.get("weights_sha256"), seen.result.get("weights_sha256"))
    if (delta.origin.base_sha256, delta.origin.result_sha256) != asked:
        yield Check("delta", False, f"{file} is of another base or another result")
    elif seen.base_weights is None:
        yield Check("delta", None, "its header fits; what it gives needs the base, which is not on this machine")
    else:
        given = {name: tensor.clone() for name, tensor in seen.base_weights.items()}
        fits = sum(tensor.numel() for tensor in given.values()) == delta.size
        if fits:
            set_weights(given, delta.positions, delta.values)
        same = fits and hash_tensors(given.items()) == delta.origin.result_sha256
        yield Check(
            "delta", same, "it makes the result of the base, bit for bit" if same else f"{file} gives another result"
        )


def _exports(seen: Verification) -> Iterator[Check]:
    for file in sorted(seen.path.glob("*.safetensors")):
        try:
            stored = Stored.open(file)
        except UserError as error:
            yield Check(f"export {file.name}", False, str(error))
            continue
        if OWN + "weights_sha256" not in stored.metadata:
            continue
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            stream.seek(stored.start)
            while part := stream.read(1 << 24):
                digest.update(part)
        whole = stored.metadata.get(HASH) == f"0x{digest.hexdigest()}"
        own = stored.metadata[OWN + "weights_sha256"] == seen.result.get("weights_sha256")
        says = "its tensors have the header's hash" if whole else "its tensors have another hash than its header names"
        yield Check(f"export {file.name}", whole and own, says if own else "it is of other weights than this run's")
