"""The whole chain on a few samples and steps, before the run itself: `sdscissor erase --rehearse`."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import api
from .attacks.attack_settings import AttackSettings
from .attacks.suite import named_stages
from .concepts import Concept
from .domains.base import Domain
from .errors import UserError, reason
from .evaluation.concept import again, evaluation_rows
from .evaluation.evaluate import PICTURES_EACH
from .evaluation.evaluate_settings import EvaluateSettings
from .forecast import forecast
from .places import erasure_directory
from .results.erase import EraseResult
from .results.forecast import Forecast
from .results.rehearsal import Rehearsal
from .run import Progress, check_free
from .settings import EraseSettings
from .then import check_judges, concepts_of, shared_with

FEW: dict[str, Any] = dict(
    forget_count=2, retain_count=8, sampling_steps=2, retain_sampling_steps=0, score_draws=1, steps=2, memory_every=2, calibrate=False,
)  # fmt: skip
LEARNING: dict[str, Any] = dict(learn_from=2, steps=2, restarts=1, batch_size=2)
PICTURES, STEPS = 4, 2  # of an evaluation and an attack
BACKWARD = 3  # forward passes that a step of learning takes


def rehearse(
    settings: EraseSettings, output_dir: Path | None = None, *, resume: bool = False, progress: Progress
) -> Rehearsal:
    """Erase, evaluate and attack with a few samples and steps, and say what the run itself would take.

    Model, batch size, judges and disk are the run's own. Everything is written into a hidden folder beside the run's and deleted.

    Raises:
        UserError: what the run itself would fail of, as far as it shows so early.
    """
    folder = output_dir or erasure_directory(settings)
    settings.check_named()
    check_free(folder, settings, resume=resume)
    judges, expected = check_judges(settings), forecast(settings)
    took: dict[str, float] = {}
    with _beside(folder) as place:
        for name, part in _parts(settings, place, progress):
            began = time.monotonic()
            part()
            took[name] = round(time.monotonic() - began, 1)
    seconds = _expected(settings, expected)
    return Rehearsal(rehearsed=took, judges=tuple(judges), output_dir=str(folder), seconds=seconds, forecast=expected)


def _parts(settings: EraseSettings, run: Path, progress: Progress) -> Iterator[tuple[str, Callable[[], object]]]:
    """The three commands; each is called before the next is made."""
    erased: list[EraseResult] = []

    def shown(name: str) -> dict[str, Any]:
        return {"progress": named_stages(f"rehearsal, {name}", progress)}

    few = dataclasses.replace(settings, **FEW)
    yield "erase", lambda: erased.append(api.erase(few, run, **shown("erase")))
    shared, model, concept = shared_with(settings), erased[0].model_dir, erased[0].concepts[0]
    evaluation = EvaluateSettings(model=model, concept=concept, limit=PICTURES, steps=STEPS, **shared)
    yield "eval", lambda: api.evaluate(evaluation, **shown("eval"))
    how = shared | dict(count=PICTURES, sampling_steps=STEPS) | LEARNING
    attack = AttackSettings("embedding", concept, model, **how)
    yield "attack", lambda: api.attack(attack, **shown("attack"))


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A run directory of no run: on the same disk as `folder`, hidden, and deleted whatever happens."""
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    try:
        hidden = tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=place)
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written ({reason(error)}): choose another") from None
    with hidden as name:
        yield Path(name) / "run"


# ---------------------------------------------------------------- the time to expect


def _expected(settings: EraseSettings, found: Forecast) -> dict[str, float]:
    """Seconds of each command by its defaults: of what draws and learns, without the judges and the loading."""
    domain, concepts = concepts_of(settings)
    drawn = sum(_pictures(one, domain) for one in concepts)
    attack = AttackSettings("embedding", concepts[0].name, settings.model).resolved(found.profile)
    o = attack.options
    pictures = 2 * attack.count * (1 + o["restarts"]) + o["learn_from"]
    passes = 2 * o["restarts"] * o["steps"] * o["batch_size"] * BACKWARD
    seconds = {
        "erase": sum(found.seconds.values()),
        "eval": drawn * found.picture_seconds,
        "attack": len(concepts) * (pictures * found.picture_seconds + passes * found.pass_seconds),
    }
    return {name: round(value, 1) for name, value in seconds.items()}


def _pictures(concept: Concept, domain: Domain) -> int:
    """How many an evaluation of both models draws."""
    rows = evaluation_rows(concept, domain, seed=0, count=PICTURES_EACH)
    return 2 * sum(map(len, rows.values())) + len(again(rows))
