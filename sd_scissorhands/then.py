"""What `sdscissor erase --then` does after the erasure: each part as its own command does it, and resumable like that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .attacks import ATTACKS
from .attacks.attack_settings import AttackSettings
from .attacks.suite_settings import SUITES, Suite
from .errors import OccupiedError, UsageError, UserError
from .evaluation.evaluate_settings import EvaluateSettings
from .files import read_json
from .parsing import choose
from .settings import flag

if TYPE_CHECKING:
    from .concepts import Concept
    from .domains.base import Domain
    from .results.base import Measurement
    from .results.erase import EraseResult
    from .run import Progress
    from .settings import EraseSettings

SHARED = ("anchor", "device")  # settings of an erasure that its parts take over
FORMS = "eval, attack, attack:NAME, attack:suite=NAME or suite"


@dataclass(frozen=True)
class Part:
    """One measurement after an erasure."""

    command: str  # eval or attack
    by: str = ""  # an attack's flag, attack or suite
    name: str = ""  # of the attack or the suite

    def words(self, model: str, concept: str, shared: dict[str, Any]) -> list[str]:
        """The command that does the same."""
        more = {"--model": model, "--concept": concept, **({f"--{self.by}": self.name} if self.by else {})}
        more |= {flag(name): value for name, value in shared.items()}
        return ["sdscissor", self.command, *(word for pair in more.items() for word in pair)]


def parts_of(text: str) -> tuple[Part, ...]:
    """The parts of a list such as "eval,attack:suite=quick"; "suite" alone is the quick one.

    Raises:
        UsageError: something else, or the same part twice.
    """
    parts = [_part(word.strip()) for word in text.split(",")]
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise UsageError(f"--then {text} names {twice[0].name or twice[0].command} twice: leave one out")
    return tuple(parts)


def _part(word: str) -> Part:
    """One of them."""
    if word == "eval":
        return Part("eval")
    kind, _, name = ("attack:suite=quick" if word == "suite" else word).partition(":")
    by, known = ("suite", list(SUITES)) if name.startswith("suite=") else ("attack", ATTACKS.names())
    name = name.removeprefix("suite=") or "embedding"
    if kind != "attack":
        raise UsageError(f"--then {word!r} is unknown: choose {FORMS}")
    if name not in known:
        raise UsageError(f"--then {word!r} is unknown{choose(name, known)}")
    if by == "attack":
        try:
            ATTACKS[name].options()
        except UserError as error:
            raise UsageError(f"--then {word!r}: {error}: attack afterwards, by sdscissor attack") from None
    return Part("attack", by, name)


def shared_with(settings: EraseSettings) -> dict[str, Any]:
    """What an evaluation or an attack takes over from an erasure, by the name of the setting; what is left open is left out."""
    return {name: value for name in SHARED if (value := getattr(settings, name)) not in (None, "auto")}


def concepts_of(settings: EraseSettings) -> tuple[Domain, list[Concept]]:
    """What the model of an erasure draws, and the concepts as it knows them.

    Raises:
        UserError: it knows one not.
    """
    from .models.locate import domain_of_model

    domain = domain_of_model(settings.model, settings.model_config)
    return domain, [domain.resolve(domain.spell(text), settings.anchor) for text in settings.concepts]


def check_judges(settings: EraseSettings) -> list[str]:
    """Open the judges of all concepts, so that one that is not there is named before hours of work; their names.

    Raises:
        UserError: a concept that the model does not know, or a judge that cannot be had.
    """
    from .evaluation.judge_set import open_judges

    domain, found = concepts_of(settings)
    sets = [open_judges(one, domain=domain, device=settings.device) for one in found]
    return list(dict.fromkeys(judge.facts["judge"] for one in sets for judge in one.judges))


def run_part(part: Part, erased: EraseResult, settings: EraseSettings, progress: Progress) -> Iterator[Measurement]:
    """Do a part for each erased concept, and yield what it came to; what is finished in the run is read.

    Raises:
        UserError: see the part's own command.
    """
    from .attacks.suite import named_stages
    from .machine import Processes

    Processes.here().wait()  # for the model, which the first process writes
    for concept in erased.concepts:
        what = f"{part.name or part.command}{f' of {concept}' * (len(erased.concepts) > 1)}"
        yield _done(part, concept, erased, settings, named_stages(what, progress))


def _done(part: Part, concept: str, erased: EraseResult, settings: EraseSettings, progress: Progress) -> Measurement:
    """One part's result, made or read; in a folder of its own where the usual one holds another, which nothing overwrites."""
    from . import api
    from .attacks import attack, suite
    from .evaluation import evaluate

    shared, model = shared_with(settings), erased.model_dir
    asked: Any
    do: Callable[..., Measurement]
    if part.command == "eval":
        asked = EvaluateSettings(model=model, concept=concept, **shared)
        folder, do = evaluate.place_of(asked), api.evaluate
    elif part.by == "suite":
        asked = Suite.of(part.name, concept, model, **shared)
        folder, do = suite.place_of(asked), api.attack_suite
    else:
        asked = AttackSettings(part.name, concept, model, **shared)
        folder, do = attack.place_of(asked), api.attack
    words, own = part.words(erased.run_dir, concept, shared), folder.with_name(f"{folder.name}-then")
    own_words = [*words, "--output-dir", str(own)]
    if found := _finished(folder, words, erased) or _finished(own, own_words, erased):
        return found
    try:
        return do(asked, folder, command=words, progress=progress)
    except OccupiedError:
        result = do(asked, own, command=own_words, progress=progress)
        left = f"{folder} holds another measurement, made otherwise, and is left as it is: this one is in {own}"
        return dataclasses.replace(result, remarks=(*result.remarks, left))


def _finished(folder: Path, words: list[str], erased: EraseResult) -> Measurement | None:
    """What the same command came to in a folder on these weights; None where it has not ended, or was another."""
    from .results.attack import AttackResult
    from .results.evaluation import read_evaluation
    from .results.suite import SuiteResult

    kinds: dict[str, Callable[[Any], Measurement]] = {
        "attack": AttackResult.from_json, "suite": SuiteResult.from_json,
    }  # fmt: skip
    try:
        values = read_json(folder / "summary.json")
        read = kinds.get(values["kind"])
        found = read(values) if read else read_evaluation(values)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # which the command itself says, where it is damaged
    same = list(found.command) == words and getattr(found, "weights_sha256", None) == erased.weights_sha256
    return dataclasses.replace(found, folder=folder, report=erased.report) if same else None
