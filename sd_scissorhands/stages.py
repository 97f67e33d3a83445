"""The stages that an erasure and a forgetting share: scores -> selection -> edited -> repair, each leaving its file in the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .disk import inside, parse_facts, read_tensors, write_json
from .errors import UserError
from .machine import PeakMemory
from .methods import method as methods
from .methods.calibration import Calibration, Look
from .methods.edits import EDITS
from .methods.interface import Parameters, Task
from .methods.optimisers import OPTIMISERS
from .methods.project import PROTECTING_RETAINED, RULES
from .methods.repair import Repair, RepairSettings
from .methods.scorers import SCORERS
from .methods.selection import Selection, select
from .results.manifest import Stage
from .run import Progress, Run
from .settings import MethodSettings
from .tracking import RunLog


@contextmanager
def _explained() -> Iterator[None]:
    """Raises UserError where the model overflows or a method finds nothing to go by."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        raise UserError(str(error)) from None


@dataclass(frozen=True)
class Stages:
    """Scores, selection, edit and repair in one run; a stage that is done already is read from its file."""

    run: Run
    task: Task  # the model, with the parameters in it, and its data
    parameters: Parameters  # what may change
    settings: MethodSettings  # resolved
    progress: Progress
    log: RunLog | None = None  # of the repair's figures

    def __post_init__(self) -> None:
        """What may change takes gradients from now on."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    @_explained()
    def select(self, scored: Parameters) -> Selection:
        """Score weights and select some; none where they are neither edited nor trained alone.

        Args:
            scored: what the share `top_k` is taken of; only what is in `parameters` too is selected.
        """
        if self.settings.edit == "none" and self.settings.train != "selection":
            return Selection({})
        for parameter in scored.values():
            parameter.requires_grad_(True)
        scores = {} if self.run.done("selection") else self._scores(scored)
        selection = self._selection(scores)
        if not self.settings.keep_scores:
            self.run.drop("scores")
        for name in set(scored) - set(self.parameters):
            scored[name].requires_grad_(False)
        return selection

    def _scores(self, scored: Parameters) -> dict[str, Tensor]:
        scorer = SCORERS[self.settings.scorer]

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            """Score the weights."""
            with self.progress("scores", self.settings.score_draws * scorer.passes) as tick:
                options = self._options(scorer, lambda: tick(1))
                return methods.score(self.task, scored, self.settings.scorer, options), {}

        return self.run.stage("scores", make, self.device)[0]

    def _selection(self, scores: dict[str, Tensor]) -> Selection:
        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            """Select the best scores, and count them by layer."""
            s, names = self.settings, set(self.parameters)
            by_layer = s.threshold_scope == "layer"
            chosen = select(scores, s.top_k, granularity=s.granularity, by_layer=by_layer).within(names)
            layers = {name: [chosen.count(name), p.numel()] for name, p in self.parameters.items()}
            return chosen.indices, {"trimmed": len(chosen), "layers": layers}

        return Selection(self.run.stage("selection", make, self.device)[0])

    def _options(self, method: methods.Scorer | methods.Edit, tick=lambda: None) -> methods.Options:
        """What of the settings concerns a scorer or an edit."""
        s = self.settings
        shared = methods.Options(s.score_draws, s.seed, s.granularity, self.run.processes, tick)
        return methods.options_for(method, shared, s.options)

    @_explained()
    def edit(self, selection: Selection) -> int:
        """Edit the selected weights; how many. The file holds their new values, in the order of the selection's indices."""
        name = self.settings.edit
        if name == "none":
            return 0

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            methods.edit(self.task, self.parameters, selection, name, self._options(EDITS[name]))
            return selection.values(self.parameters), {}

        selection.put(self.parameters, self.run.stage("edited", make)[0])
        return len(selection)

    @_explained()
    def repair(self, selection: Selection, *, slices: int = 1, look: Callable[[], Look] | None = None) -> Repair:
        """Repair from the newest checkpoint on, to the last step.

        Args:
            slices: that a process takes its share of a batch in, one after the other.
            look: at held-out data, for a calibration; None for none.
        """
        run, peak = self.run, PeakMemory(self.device)
        repair = self._first_state(selection, slices, look)
        if not self.settings.steps:
            return repair
        if run.done("repair"):
            self._restore(repair)
        before, began = repair.step, time.monotonic()
        self._take_to_the_end(repair)
        if (stage := run.manifest.stage("repair")) and repair.step > before:
            took = None if before else time.monotonic() - began
            run.finish("repair", replace(stage, peak_bytes=peak.total(), seconds=took))
        if run.processes.main:
            write_json(run.path / "repair" / "history.json", repair.history)
            if repair.calibration:
                write_json(run.path / "repair" / "looks.json", repair.calibration.looks)
        return repair

    def _first_state(self, selection: Selection, slices: int, look: Callable[[], Look] | None) -> Repair:
        """The repair before its first step."""
        s = self.settings
        if s.train == "selection" and not len(selection):
            raise ValueError(f"--train selection has nothing to train: --scorer {s.scorer} found no weight")
        how = RepairSettings(
            s.steps, s.lr, s.forget_weight, RULES[s.projection], s.memory_every, s.relearn_every,
            OPTIMISERS[s.optimiser], slices, s.projection in PROTECTING_RETAINED,
        )  # fmt: skip
        only = selection if s.train == "selection" else None
        calibration = Calibration(look, s.steps) if look else None
        return Repair(self.task, self.parameters, how, only=only, group=self.run.processes, calibration=calibration)

    def _take_to_the_end(self, repair: Repair) -> None:
        """Make the steps that are left, with progress, checkpoints and a log."""
        steps, at = self.settings.steps, 0
        with self.progress("repair", steps) as tick, self._where(repair):

            def show_step() -> None:
                """The steps that are left, whatever the calibration makes of them."""
                nonlocal at
                now = steps - (repair.plan.steps - repair.step)
                tick(now - at)
                at = now

            def after_step(repair: Repair) -> None:
                show_step()
                self._checkpoint(repair)
                if self.log:
                    self.log.follow(repair.history, repair.calibration.looks if repair.calibration else [])

            show_step()
            repair.run(after_step)

    @contextmanager
    def _where(self, repair: Repair) -> Iterator[None]:
        """What stops the repair is noted with the step, and the one that it continues from."""
        try:
            yield
        except BaseException as stopped:
            checkpoint = self.run.manifest.stage("repair")
            saved = f"saved at {checkpoint.step}" if checkpoint else "none saved yet"
            stopped.add_note(f"at step {repair.step} of {repair.plan.steps}, {saved}")
            raise

    def _restore(self, repair: Repair) -> None:
        """Continue from the newest checkpoint.

        Raises:
            UserError: it is damaged, or of more steps than are to be made.
        """
        stage = self.run.manifest.stage("repair")
        assert stage is not None
        file = self.run.path / stage.file
        tensors, metadata = read_tensors(file, self.device)
        history = parse_facts(file, metadata, "history", list)
        calibrated = parse_facts(file, metadata, "calibrated", dict) if "calibrated" in metadata else {}
        try:
            repair.restore(tensors, stage.step or 0, history, calibrated)
            if not 0 < repair.step <= repair.plan.steps:
                raise ValueError(f"step {repair.step} of {repair.plan.steps}")
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{file} is damaged ({str(error)[:100]}): delete it and run again") from None

    def _checkpoint(self, repair: Repair) -> None:
        """Save at the end of every epoch, where the memory is taken afresh anyway; only the newest checkpoint stays."""
        if (repair.step % self.settings.memory_every and repair.step < repair.plan.steps) or not repair.step:
            return
        before, file = self.run.manifest.stage("repair"), f"repair/step-{repair.step}.safetensors"
        facts = {"history": repair.history, "calibrated": repair.calibrated()}
        self.run.write(file, repair.state(), {name: json.dumps(fact) for name, fact in facts.items()})
        self.run.finish("repair", Stage(file, step=repair.step))
        if before and before.file != file and self.run.processes.main:
            inside(self.run.path, before.file).unlink(missing_ok=True)
