"""Reading a run directory: what is missing is empty, what is damaged is named, nothing crashes the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..attacks import ATTACKS
from ..domains import DOMAINS, domain_of
from ..domains.base import Domain
from ..errors import UserError
from ..files import read_json
from ..models.locate import locate_without_work
from ..models.tensor_files import TensorFile
from ..parsing import parse_json
from ..results.attack import AttackResult
from ..results.comparison import ComparisonResult
from ..results.erase import EraseResult
from ..results.evaluation import ConceptEvaluation, Evaluation, NudityEvaluation, read_evaluation
from ..results.forget import ForgetResult
from ..results.manifest import MANIFEST, BaseModel
from ..results.pairs import Pairs
from ..results.suite import FOLDER, SuiteResult, SuiteRow, worst_first
from ..run import Run
from .declared import attack_title, evaluation_titles, graded
from .phrases import plain

T = TypeVar("T")


@dataclass
class RunRecord:
    """A run directory as read; what is not there is empty, what cannot be read or does not fit is in `problems`."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    source: BaseModel = field(default_factory=BaseModel)
    stages: dict[str, Any] = field(default_factory=dict)
    result: EraseResult | ForgetResult | None = None  # None: the run has not ended
    layers: dict[str, list[int]] = field(default_factory=dict)  # parameter -> [trimmed, size]
    history: list[dict[str, Any]] = field(default_factory=list)  # of the repair, a record a step
    looks: list[dict[str, Any]] = field(default_factory=list)  # of its calibration, see `methods.calibration`
    pairs: Pairs | None = None  # drawn at the end of the erasure
    evaluations: dict[str, Evaluation] = field(default_factory=dict)  # by the name of their folder
    attacks: dict[str, AttackResult] = field(default_factory=dict)  # by the name of their folder
    problems: list[str] = field(default_factory=list)
    alone: bool = False  # the folder of one evaluation or attack, without a run around it

    @property
    def summaries(self) -> list[Evaluation | AttackResult]:
        """Everything that was measured."""
        return [*self.evaluations.values(), *self.attacks.values()]

    @property
    def judged(self) -> dict[str, ConceptEvaluation]:
        """The evaluations of a concept."""
        return {name: one for name, one in self.evaluations.items() if isinstance(one, ConceptEvaluation)}

    @property
    def counted(self) -> dict[str, NudityEvaluation]:
        """The evaluations by NudeNet."""
        return {name: one for name, one in self.evaluations.items() if isinstance(one, NudityEvaluation)}

    @property
    def concepts(self) -> str:
        """What was erased; what was measured where only that is known."""
        measured = _concepts(self.summaries)[:1] or (["nudity"] if self.counted else None)
        return plain((self.erased and self.erased.concepts) or self.settings.get("concepts") or measured)

    @property
    def erased(self) -> EraseResult | None:
        """What an erasure came to."""
        return self.result if isinstance(self.result, EraseResult) else None

    @property
    def domain(self) -> Domain:
        """What the model draws."""
        named = (domain for _, domain in DOMAINS if domain.original and domain.original == self.source.model)
        return next(named, None) or domain_of(self.path / "model")

    @property
    def profile(self) -> str:
        """Which of the recipes' profiles fits its base model; large where nothing is known of it."""
        for model in (self.source.model or "", str(self.path / "model")):
            with suppress(UserError, OSError, ValueError):
                if found := locate_without_work(model):
                    return found.profile
        return "large"

    def label(self, summary: Evaluation | AttackResult) -> str:
        """What a summary is called: who judged or what attacked, with the concept where the page knows several.

        Of several that would be called alike each has what its folder's name adds ("tokens 3" of "suite-full/embedding-tokens-3"),
        or all of it where two add the same.
        """
        named = self._named(summary)
        alike = {name: one for name, one in self._folders if self._named(one) == named}
        if len(alike) < 2:
            return named
        added = {name: _added(name, one) for name, one in alike.items()}
        own = next((name for name, one in alike.items() if one is summary), "")
        if own and list(added.values()).count(added[own]) == 1:
            return ", ".join(filter(None, [named, added[own]]))
        return f"{named}, {own or summary.kind}"

    @property
    def _folders(self) -> list[tuple[str, Evaluation | AttackResult]]:
        return [*self.evaluations.items(), *self.attacks.items()]

    def _named(self, summary: Evaluation | AttackResult) -> str:
        title = attack_title(summary) if isinstance(summary, AttackResult) else evaluation_titles()[summary.kind]
        concept = "" if isinstance(summary, NudityEvaluation) else summary.concept
        return f"{title}, {concept}" if concept and len(set(_concepts(self.summaries))) > 1 else title

    def explicit(self, summary: Evaluation | AttackResult) -> bool:
        """Whether the pictures may be explicit: as the run records; unknown counts as explicit, the embedded world not."""
        if self.erased and self.erased.explicit is not None:
            return self.erased.explicit
        judge = "" if isinstance(summary, NudityEvaluation) else summary.judge.get("judge")
        return not any(domain.harmless and domain.evaluation in (summary.kind, judge) for _, domain in DOMAINS)


def read_run(path: Path) -> RunRecord:
    """Everything that the report needs, read once.

    Raises:
        UserError: `path` is not a run directory.
    """
    manifest = Run.read(path).manifest
    run = RunRecord(path, manifest.settings, manifest.source, manifest.stages)
    if manifest.result:
        kind = EraseResult if manifest.of_erasure else ForgetResult
        run.result = kind.from_json(manifest.result, strict=False)
        run.pairs = Pairs.of(path, run.result.weights_sha256)
    run.layers = _layers(run)
    run.history = _json(run, path / "repair" / "history.json", list)
    run.looks = _json(run, path / "repair" / "looks.json", list)
    run.evaluations = _measured(run, "eval", list(evaluation_titles()))
    run.attacks = _worst_first(_measured(run, "attack", ATTACKS.names()))
    for summary in run.summaries:
        if summary.weights_sha256 not in (None, run.result and run.result.weights_sha256):
            where = Path(str(summary.folder)).relative_to(path).as_posix()
            run.problems.append(f"{where} measured other weights than this run's model: measure it again")
    return run


def read_measurement(path: Path) -> RunRecord:
    """The folder of one evaluation or attack that belongs to no run.

    Raises:
        UserError: there is no summary in `path`, or none that this page knows.
    """
    if (path / MANIFEST).exists():
        raise UserError(f"{path} is a run directory, not the folder of one evaluation")
    run = RunRecord(path, alone=True)
    if parsed := _suite(run):
        run.attacks = parsed
        return run
    summary = _summary(run, path, "attack")
    if isinstance(summary, AttackResult):
        run.attacks[summary.attack] = summary
    elif summary is not None and summary.kind in evaluation_titles():
        run.evaluations[summary.kind] = summary
    else:
        raise UserError(f"{path} holds no summary of an evaluation or an attack")
    return run


def read_controls(run: RunRecord) -> list[RunRecord]:
    """The runs in `controls/`, by name; what is no run there is one of `run`'s problems."""
    controls = []
    for path in sorted(path for path in (run.path / "controls").glob("*") if path.is_dir()):
        try:
            controls.append(read_run(path))
        except UserError as error:
            run.problems.append(str(error))
    return controls


def read_comparison(file: Path) -> ComparisonResult:
    """What a comparison came to.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return ComparisonResult.from_json(read_json(file))
    except FileNotFoundError:
        raise UserError(f"{file.parent} holds no comparison: it has no {file.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): repeat the comparison") from None


def _measured(run: RunRecord, parent: str, order: Sequence[str]) -> dict[str, Any]:
    """What lies in the folders of a run's eval/ or attack/, and in those of its suites, in the order of the names of what was
    done there, then others.

    A folder is called as what was done in it: "canvas-star" is "canvas" of another concept. Beside attacks lies what measured
    the rest for them; that is left out, as is a kind of evaluation that nothing declares.
    """
    found: list[tuple[str, Evaluation | AttackResult]] = []
    own, suites = ((run.path / parent).glob(files) for files in ("*/summary.json", f"{FOLDER}*/*/summary.json"))
    for folder in sorted(file.parent for file in (*own, *suites) if not file.parent.name.startswith(FOLDER)):
        name = next((name for name in order if f"{folder.name}-".startswith(f"{name}-")), folder.name)
        summary = _summary(run, folder, name)
        if summary and (parent == "attack" if isinstance(summary, AttackResult) else summary.kind in order):
            found.append((folder.relative_to(run.path / parent).as_posix(), summary))
    place = {name: at for at, name in enumerate(order)}
    return dict(sorted(found, key=lambda one: place.get(getattr(one[1], "attack", one[1].kind), len(order))))


def _added(folder: str, summary: Evaluation | AttackResult) -> str:
    """What a folder's name says beyond the name of what was done in it."""
    done = summary.attack if isinstance(summary, AttackResult) else summary.kind
    return folder.rpartition("/")[2].removeprefix(done or "").strip("-").replace("-", " ")


def _worst_first(attacks: dict[str, AttackResult]) -> dict[str, AttackResult]:
    """In the order that a suite's table has."""
    rows = [SuiteRow.of(name, "", graded(one), one) for name, one in attacks.items()]
    return {row.name: attacks[row.name] for row in sorted(rows, key=worst_first)}


def _suite(run: RunRecord) -> dict[str, AttackResult]:
    """The attacks of a suite that belongs to no run, the worst first; none where `run` holds something else."""
    values = _json(run, run.path / "summary.json", dict)
    if values.get("kind") != "suite":
        return {}
    rows = SuiteResult.from_json(values, strict=False).attacks
    found = {row.name: _summary(run, run.path / row.name, row.name) for row in rows if Path(row.name).name == row.name}
    return {name: one for name, one in found.items() if isinstance(one, AttackResult)}


def _summary(run: RunRecord, folder: Path, name: str) -> Evaluation | AttackResult | None:
    """The result in a folder; None where there is none. `name` is of what was done there, where the file does not say."""
    values = _json(run, folder / "summary.json", dict)
    kind = values.get("kind", name)
    if not values or not isinstance(kind, str):
        return None
    if kind == "attack":
        attack = AttackResult.from_json(values, strict=False)
        return dataclasses.replace(attack, attack=attack.attack or name, folder=folder)
    return dataclasses.replace(read_evaluation(values | {"kind": kind}, strict=False), folder=folder)


def _json(run: RunRecord, file: Path, kind: type[T]) -> T:
    """What a file of JSON holds."""

    def read() -> T:
        value = read_json(file)
        if not isinstance(value, kind):
            raise ValueError(f"{file} holds {type(value).__name__}")
        return value

    return _read(run, file, read, kind())


def _layers(run: RunRecord) -> dict[str, list[int]]:
    file = run.path / "selection.safetensors"
    return _read(run, file, lambda: parse_json(TensorFile.open(file).metadata["facts"])["layers"], {})


def _read(run: RunRecord, file: Path, read: Callable[[], T], empty: T) -> T:
    """What a file holds; `empty` where there is none, or where it is damaged, which is one of the run's problems."""
    try:
        return read() if file.exists() else empty
    except (OSError, UserError, ValueError, KeyError, TypeError):
        run.problems.append(f"{file.relative_to(run.path).as_posix()} is damaged and was left out")
        return empty


def _concepts(summaries: Sequence[Evaluation | AttackResult]) -> list[str]:
    return [one.concept for one in summaries if not isinstance(one, NudityEvaluation) and one.concept]
