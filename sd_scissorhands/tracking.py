"""What a run comes to while it runs, for programs that draw it: `sdscissor erase --log-with tensorboard`.

It goes through accelerate's trackers, which read what the run writes anyway: the repair's history, its looks, stages, proof and
pictures. Repeated or resumed, the record begins again from the whole history, and replaces the former one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UsageError, UserError
from .files import read_json
from .parsing import choose
from .results.erase import EraseResult
from .results.manifest import Manifest
from .results.pairs import FOLDER, Pairs

TRACKERS = ("tensorboard",)
LOGS = "logs"  # in the run


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that nobody knows or that is not installed.

    Raises:
        UsageError: the first.
        UserError: the second, with the command that installs it.
    """
    if name is not None and name not in TRACKERS:
        raise UsageError(f"--log-with {name!r} is unknown{choose(name, TRACKERS)}")
    if name is not None and not find_spec(name):
        raise UserError(f"--log-with {name} needs the package {name}: pip install {name}")


class RunLog:
    """The record of one run, in its folder logs/; nothing is written before the first figure."""

    def __init__(self, run: Path) -> None:
        self._run, self._steps, self._looks = run, 0, 0
        self._tracker: Any = None

    @property
    def tracker(self) -> Any:
        """accelerate's, begun anew from step 0."""
        if self._tracker is None:
            from accelerate.tracking import TensorBoardTracker

            from .machine import accelerate_state

            accelerate_state()  # which its messages need
            self._tracker = TensorBoardTracker(LOGS, self._run, purge_step=0)
            self._tracker.start()
        return self._tracker

    def follow(self, history: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]]) -> None:
        """Record what is new of a repair's history, and of its looks at held-out latents."""
        if len(history) < self._steps:  # it has begun again
            self._steps = 0
        for record in history[self._steps :]:
            self._scalars("repair", record, int(record["step"]))
        for look in looks[self._looks :]:
            self._scalars("held out", look, int(look["step"]))
        self._steps, self._looks = len(history), len(looks)

    def finish(self, result: EraseResult) -> None:
        """Record the rest of a run that has ended: from its files, if it ended earlier; and close."""
        files = (self._run / "repair" / name for name in ("history.json", "looks.json"))
        self.follow(*(read_json(file) if file.exists() else [] for file in files))
        stages = Manifest.read(self._run).stages
        for unit in ("seconds", "peak_bytes"):
            self._scalars(unit, {name: one.get(unit) for name, one in stages.items()}, result.steps)
        if result.proof:
            self._scalars("proof", result.proof.to_json(), result.steps)
        self._pictures(result)
        self.tracker.finish()

    def _pictures(self, result: EraseResult) -> None:
        """Before and after, as the page has them."""
        import numpy as np

        from .pictures import read_frames

        if not (found := Pairs.of(self._run, result.weights_sha256)):
            return
        for side in ("original", "model"):
            files = [self._run / FOLDER / getattr(pair, side) for pair in found.pairs]
            frames = np.stack([read_frames(file, "first")[0] for file in files])
            self.tracker.log_images({f"pairs/{side}": frames}, result.steps, dataformats="NHWC")

    def _scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        """Record the numbers among some values, also those one level down."""
        flat = dict[str, float]()
        for name, value in values.items():
            inner = value if isinstance(value, Mapping) else {"": value}
            flat |= {
                f"{group}/{' '.join(filter(None, (name, key)))}": float(one)
                for key, one in inner.items() if isinstance(one, int | float) and name != "step"
            }  # fmt: skip
        self.tracker.log(flat, step)
