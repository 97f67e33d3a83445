"""Check a run directory against its run.json: every hash, every file, the base and what a delta gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import inside, read_tensors
from ..lineage import started_from
from ..results.models import Check, Verification
from ..run import Progress, Run, silent
from ..settings import EraseSettings, UserError
from .delta import changed_indices, read_delta, set_weights
from .locate import find_pipeline, locate_without_work
from .modelspec import HASH, OWN
from .pipeline_directory import PipelineDirectory
from .tensor_files import TensorFile, hash_file, hash_tensors

NEVER_CHECKED = (
    "whether the same settings give the same weights again: erase once more with the settings of run.json into another "
    "directory, then sdscissor diff",
    "whether the concept is gone and the rest whole: sdscissor eval and sdscissor attack measure it",
    "tokenizer, scheduler, eval/, attack/ and report.html: no hash of them is kept",
    "who made it: hashes find mistakes and not malice, whoever can write the directory can write its hashes",
)


class RunUnderTest:
    """A run directory that is verified; what several checks need is read once."""

    def __init__(self, path: Path):
        self.path, self.manifest = path, Run.read(path).manifest
        self.result: dict[str, Any] = self.manifest.result or {}

    @cached_property
    def model(self) -> PipelineDirectory:
        """The run's model."""
        return find_pipeline(self.path)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The model's denoiser, float32."""
        return self.model.denoiser.float_tensors()

    @cached_property
    def base(self) -> PipelineDirectory | None:
        """The model that the run started from, if it is on this machine; nothing is fetched."""
        return locate_without_work(str(started_from(self.manifest)))

    @cached_property
    def base_weights(self) -> dict[str, Tensor] | None:
        """The base's denoiser, float32, if it is the very one; None otherwise."""
        tensors = self.base.denoiser.float_tensors() if self.base else {}
        return tensors if hash_tensors(tensors.items()) == self.manifest.source.weights_sha256 else None


def verify(path: Path, *, progress: Progress = silent) -> Verification:
    """Check a run directory against its run.json.

    Raises:
        UserError: no run directory of an erasure.
    """
    run = RunUnderTest(path)
    if not run.manifest.of_erasure:
        raise UserError(f"{path} is no run of sdscissor erase: verify is for diffusion models")
    steps: list[tuple[str, Callable[[RunUnderTest], Iterator[Check]]]] = [
        ("settings", _settings), ("stages", _stages), ("model", _model), ("base", _base), ("other parts", _others),
        ("selection", _selection), ("delta", _delta), ("exports", _exports),
    ]  # fmt: skip
    checks: list[Check] = []
    with progress("verify", len(steps)) as tick:
        for what, step in steps:
            try:
                checks += step(run)
            except UserError as error:
                checks.append(Check(what, False, str(error)))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                checks.append(Check(what, False, f"run.json makes no sense there ({type(error).__name__}: {error})"))
            tick(1)
    return Verification(str(path), all(check.holds is not False for check in checks), tuple(checks), NEVER_CHECKED)


def _settings(run: RunUnderTest) -> Iterator[Check]:
    settings = EraseSettings.from_json(run.manifest.settings)
    yield Check("settings", True, f"recipe {settings.recipe}, seed {settings.seed}, all known")
    for name, value in (("recipe", settings.recipe), ("seed", settings.seed)):
        if run.result.get(name, value) != value:
            yield Check("result", False, f"run.json names another {name} in its result than in its settings")


def _stages(run: RunUnderTest) -> Iterator[Check]:
    whole = 0
    for name in run.manifest.stages:
        stage = run.manifest.stage(name)
        if name == "model" or stage is None:
            continue
        if (file := inside(run.path, stage.file)).exists():
            TensorFile.open(file)
            whole += 1
        elif not stage.dropped:
            yield Check(f"stage {name}", False, f"{file} is missing")
    if "model" in run.manifest.stages:
        yield Check("stages", True, f"{whole} files, whole")
    else:
        yield Check("stages", False, "the run has not ended: continue it with erase --resume")


def _model(run: RunUnderTest) -> Iterator[Check]:
    for component in run.model.components.values():
        for name in component.keys:
            if not torch.isfinite(component.tensor(name)).all():
                yield Check("model", False, f"{component.name}.{name} holds NaN or infinite values")
                return
    found, named = hash_tensors(run.weights.items()), run.result.get("weights_sha256")
    otherwise = "" if found == named else f", run.json names {str(named)[:12]}"
    yield Check("model", found == named, f"{run.model.family.called} has sha256 {found[:12]}{otherwise}")


def _base(run: RunUnderTest) -> Iterator[Check]:
    name, sha256 = run.manifest.source.model, str(run.manifest.source.weights_sha256)[:12]
    if run.base is None:
        yield Check("base", None, f"{name} is not on this machine")
    elif run.base_weights is None:
        yield Check("base", False, f"{name} has other weights than run.json names ({sha256})")
    else:
        changed = changed_indices(run.base_weights, run.weights)
        count = sum(rows.numel() for rows in changed.values())
        yield Check(
            "base", True, f"{name} has sha256 {sha256}; the run changed {count:,} weights in {len(changed)} tensors"
        )


def _others(run: RunUnderTest) -> Iterator[Check]:
    if run.base is None:
        yield Check("VAE, text encoders", None, "the base is not on this machine")
        return
    for name, component in run.model.components.items():
        if component is not run.model.denoiser:
            same = component.sha256() == run.base.component(name).sha256()
            yield Check(name, same, "as the base has it" if same else "differs from the base's")


def _selection(run: RunUnderTest) -> Iterator[Check]:
    if run.manifest.settings.get("train") != "selection":
        return
    if run.base_weights is None:
        yield Check("selection", None, "the base is not on this machine")
        return
    selected, _ = read_tensors(run.path / "selection.safetensors")
    nothing = torch.empty(0, dtype=torch.int64)
    for name, rows in changed_indices(run.base_weights, run.weights).items():
        if not torch.isin(rows, selected.get(name, nothing)).all():
            yield Check("selection", False, f"{name} was changed where it was not selected")
            return
    yield Check("selection", True, "no weight was changed that was not selected")


def _delta(run: RunUnderTest) -> Iterator[Check]:
    file = run.path / "delta.safetensors"
    if not file.exists():
        return
    delta = read_delta(file)
    named = (run.manifest.source.weights_sha256, run.result.get("weights_sha256"))
    if (delta.origin.base_sha256, delta.origin.result_sha256) != named:
        yield Check("delta", False, f"{file} is of another base or another result")
    elif run.base_weights is None:
        yield Check("delta", None, "its header fits; what it gives needs the base, which is not on this machine")
    else:
        made = {name: tensor.clone() for name, tensor in run.base_weights.items()}
        fits = sum(tensor.numel() for tensor in made.values()) == delta.size
        if fits:
            set_weights(made, delta.positions, delta.values)
        same = fits and hash_tensors(made.items()) == delta.origin.result_sha256
        found = "it makes the result of the base, bit for bit" if same else f"{file} gives another result"
        yield Check("delta", same, found)


def _exports(run: RunUnderTest) -> Iterator[Check]:
    for path in sorted(run.path.glob("*.safetensors")):
        try:
            file = TensorFile.open(path)
        except UserError as error:
            yield Check(f"export {path.name}", False, str(error))
            continue
        if OWN + "weights_sha256" not in file.metadata:
            continue
        whole = file.metadata.get(HASH) == f"0x{hash_file(path, file.start)}"
        own = file.metadata[OWN + "weights_sha256"] == run.result.get("weights_sha256")
        found = "its tensors have the header's hash" if whole else "its tensors have another hash than its header names"
        yield Check(f"export {path.name}", whole and own, found if own else "it is of other weights than this run's")
