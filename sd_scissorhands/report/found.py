"""Reading a run directory: what is missing is empty, what is damaged is named, nothing crashes the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..domains import DOMAINS, domain_of
from ..domains.base import Domain
from ..lineage import MANIFEST
from ..run import Run
from ..settings import UserError
from .phrases import plain

KINDS = {
    "canvas": "embedded world",
    "concept": "concept's judge",
    "i2p": "I2P prompts",
    "prompts": "own prompts",
    "images": "own pictures",
}
JUDGED = ("canvas", "concept")  # evaluations with UA, IRA and CRA; the others are NudeNet's
ATTACKS = {
    "embedding": "learned embedding",
    "token": "learned token",
    "list": "listed prompts",
    "paraphrase": "paraphrases",
    "relearn": "relearning",
}
TABLES = (
    "figures",
    "original",
    "intervals",
    "boxes",
    "images_with",
    "settings",
    "kinds",
    "steps_back",
    "collapse",
    "by",
)
LISTS = ("samples", "restarts", "curve", "sweep")


@dataclass
class Found:
    """A run directory as read; what is not there is empty, what cannot be read or does not fit is in `problems`."""

    path: Path
    stages: dict[str, Any]
    settings: dict[str, Any]
    source: dict[str, Any]
    result: dict[str, Any]
    layers: dict[str, list[int]] = field(default_factory=dict)  # parameter -> [trimmed, size]
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # folder -> its summary
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)  # folder -> its summary
    problems: list[str] = field(default_factory=list)
    alone: bool = False  # the folder of one evaluation or attack, without a run around it

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """Everything that was measured."""
        return [*self.evaluations.values(), *self.attacks.values()]

    @property
    def judged(self) -> list[dict[str, Any]]:
        """The evaluations with UA, IRA and CRA."""
        return [summary for summary in self.evaluations.values() if summary["kind"] in JUDGED]

    @property
    def nudenets(self) -> list[dict[str, Any]]:
        """The evaluations by NudeNet."""
        return [summary for summary in self.evaluations.values() if summary["kind"] not in JUDGED]

    @property
    def concepts(self) -> str:
        """What was erased; what was measured where only that is known."""
        said = [summary["concept"] for summary in self.summaries if summary.get("concept")]
        return plain(
            self.result.get("concepts")
            or self.settings.get("concepts")
            or (said[:1] or (["nudity"] if self.nudenets else None))
        )

    @property
    def domain(self) -> Domain:
        """What the model draws."""
        if self.source.get("model") == DOMAINS["canvas"].original:
            return DOMAINS["canvas"]
        return domain_of(self.path / "model")

    def folder(self, summary: dict[str, Any]) -> Path:
        """Where a summary and its pictures lie."""
        if self.alone:
            return self.path
        return self.path / ("attack" if summary["kind"] == "attack" else "eval") / summary["place"]

    def label(self, summary: dict[str, Any]) -> str:
        """What a summary is called: who judged or what attacked, with the concept where the page knows several."""
        name = KINDS.get(summary["kind"]) or ATTACKS.get(summary["attack"], summary["attack"])
        several = len({other["concept"] for other in self.summaries if other.get("concept")}) > 1
        return f"{name}, {summary['concept']}" if several and summary.get("concept") else name

    def explicit(self, summary: dict[str, Any]) -> bool:
        """Whether the pictures may be explicit: as the run says; unknown counts as explicit, the embedded world not."""
        known, judge = self.result.get("explicit"), summary.get("judge")
        world = summary["kind"] == "canvas" or (isinstance(judge, dict) and judge.get("judge") == "canvas")
        return bool(known) if known is not None else not world


def read_run(path: Path) -> Found:
    """Everything that the report needs, read once.

    Raises:
        UserError: `path` is not a run directory.
    """
    manifest = Run.read(path).manifest
    run = Found(path, manifest.stages, manifest.settings, manifest.source.to_json(), manifest.result or {})
    run.layers = _layers(run)
    run.history = _json(run, "repair/history.json", list)
    for place, kind in _places(path / "eval", KINDS):
        if kind in KINDS and (summary := _json(run, f"eval/{place}/summary.json", dict)):
            run.evaluations[place] = _known(summary, kind=kind, place=place)
    for place, name in _places(path / "attack", ATTACKS):
        summary = _json(run, f"attack/{place}/summary.json", dict)
        if summary.get("kind") == "attack":  # beside attacks lies what measured the rest for them
            run.attacks[place] = _known(summary, kind="attack", attack=name, place=place)
    for summary in run.summaries:
        if summary.get("weights_sha256") not in (None, run.result.get("weights_sha256")):
            where = run.folder(summary).relative_to(path).as_posix()
            run.problems.append(f"{where} measured other weights than this run's model: measure it again")
    return run


def read_alone(path: Path) -> Found:
    """The folder of one evaluation or attack that belongs to no run.

    Raises:
        UserError: there is no summary in `path`, or none that this page knows.
    """
    if (path / MANIFEST).exists():
        raise UserError(f"{path} is a run directory, not the folder of one evaluation")
    found = Found(path, {}, {}, {}, {}, alone=True)
    summary = _json(found, "summary.json", dict)
    kind = summary.get("kind")
    if kind == "attack":
        name = str(summary.get("attack") or "attack")
        found.attacks[name] = _known(summary, kind=kind, attack=name, place=name)
    elif isinstance(kind, str) and kind in KINDS:
        found.evaluations[kind] = _known(summary, kind=kind, place=kind)
    else:
        raise UserError(f"{path} holds no summary of an evaluation or an attack")
    return found


def read_controls(run: Found) -> list[Found]:
    """The runs in `controls/`, by name; what is no run there is one of `run`'s problems."""
    controls = []
    for path in sorted(path for path in (run.path / "controls").glob("*") if path.is_dir()):
        try:
            controls.append(read_run(path))
        except UserError as error:
            run.problems.append(str(error))
    return controls


def _places(folder: Path, known: Mapping[str, str]) -> list[tuple[str, str]]:
    """(folder, what was done there) of every summary: "canvas-star" is another concept's "canvas"; the known come first."""
    names = sorted(file.parent.name for file in folder.glob("*/summary.json"))
    told = [(name, next((one for one in known if name.split("-")[0] == one), name)) for name in names]
    order = list(known)
    return sorted(told, key=lambda one: order.index(one[1]) if one[1] in order else len(order))


def _known(summary: dict[str, Any], **names: str) -> dict[str, Any]:
    """A summary without its nulls, with an empty part for everything that has parts and is missing."""
    known = {name: value for name, value in summary.items() if value is not None}
    for parts, wanted in ((TABLES, dict), (LISTS, list)):
        for name in parts:
            known[name] = known[name] if isinstance(known.get(name), wanted) else wanted()
    for name in LISTS:
        known[name] = [one for one in known[name] if isinstance(one, dict)]
    if names["kind"] != "attack" and not isinstance(known.get("n"), dict):
        known["n"] = {}
    if not isinstance(known.get("baseline"), dict | str):
        known["baseline"] = {}
    return known | names


def _json(run: Found, name: str, wanted: type) -> Any:
    file = run.path / name
    if not file.exists():
        return wanted()
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if isinstance(value, wanted):
        return value
    run.problems.append(f"{name} is damaged and was left out")
    return wanted()


def _layers(run: Found) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    file = run.path / "selection.safetensors"
    if not file.exists():
        return {}
    try:
        with safe_open(file, "pt") as tensors:
            return json.loads(tensors.metadata()["facts"])["layers"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        run.problems.append(f"{file.name} is damaged and was left out")
        return {}
