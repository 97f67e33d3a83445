"""An attack from beginning to end: the same one on the original and on the model, and what the model retains beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..concepts import read_prompts
from ..diffusion.dataset import check_pictures
from ..disk import hash_files, locked, write_json
from ..elapsed import Elapsed
from ..errors import OccupiedError
from ..evaluation import concept as concept_evaluation
from ..evaluation.chance import wilson
from ..evaluation.evaluate import About, about
from ..evaluation.gone import broken, stays_gone
from ..evaluation.judge_set import JudgeSet, open_judges
from ..evaluation.recorder import SHOWN, sample_file
from ..evaluation.sample import Sampling, check_models, open_for_sampling
from ..files import read_json, read_object
from ..lineage import run_of
from ..machine import Processes
from ..models.locate import locate, profile_of_model
from ..picture_folders import list_pictures
from ..places import measurement_directory
from ..results.attack import AttackResult, AttackSample, OriginalRates, SecondRates
from ..results.evaluation import ConceptEvaluation
from ..run import NOT_IDENTITY, Progress, silent
from . import ATTACKS
from .attack_settings import AttackSettings
from .context import AttackContext, Side

STATE = "attack.json"  # what identifies the attack in a folder
RETAIN_COUNT = 120  # pictures for IRA and for CRA where no evaluation of this very model lies beside the attack


def attack(
    settings: AttackSettings, folder: Path, *, evaluation: ConceptEvaluation | None = None, measure_rest: bool = True,
    progress: Progress = silent,
) -> AttackResult:  # fmt: skip
    """Attack a model and its original alike, and write `folder`/summary.json. Repeated, a killed attack continues.

    Args:
        evaluation: of the model, for its IRA and CRA; None: the one beside the run is taken.
        measure_rest: whether one is made where there is none.

    Raises:
        UserError: bad input, before any work; or a folder that holds another attack.
    """
    processes = Processes.here()
    with locked(folder, processes.main):
        return _attack(settings, folder, evaluation, measure_rest, progress, processes)


def _attack(
    settings: AttackSettings,
    folder: Path,
    evaluation: ConceptEvaluation | None,
    measure_rest: bool,
    progress: Progress,
    processes: Processes,
) -> AttackResult:
    elapsed, found = Elapsed(folder, processes), about_of(settings)
    settings = dataclasses.replace(settings, concept=found.concept.name, baseline=found.baseline)
    settings = settings.resolved(profile_of_model(settings.model))
    remarks = check_files(settings)
    check_models(settings.model, found.baseline)
    judges = open_judges(
        found.concept, domain=found.domain, judge=settings.judge, threshold=settings.threshold, clip=settings.clip,
        device=settings.device,
    )  # fmt: skip
    contents = contents_of(settings) | ({"concept_sha256": hash_files([found.file])} if found.file else {})
    context = AttackContext(
        settings, found.concept, judges.judges, folder, found.domain, contents, elapsed.during(progress), processes
    )
    identity = {name: value for name, value in settings.to_json().items() if name not in NOT_IDENTITY}
    claim(folder / STATE, identity | contents | {"judges": [judge.facts for judge in judges.judges]}, processes)
    weights = {name: run_on(context, name) for name in ("original", "model")}
    evaluation = evaluation or evaluation_beside(context) or (evaluated(context, judges) if measure_rest else None)
    result = dataclasses.replace(
        result_of(context, evaluation), weights_sha256=weights["model"], baseline_sha256=weights["original"],
        seconds=elapsed.end(), remarks=(*remarks, *judges.remarks, *context.remarks),
    )  # fmt: skip
    if processes.main:
        write_json(folder / "summary.json", result.to_json())
    return result


def place_of(settings: AttackSettings) -> Path:
    """Where an attack goes by default: beside the run that the model belongs to, else under runs/.

    Raises:
        UserError: see `evaluation.evaluate.about`.
    """
    return measurement_directory("attack", settings.model, settings.attack, about_of(settings).concept.name)


def about_of(settings: AttackSettings) -> About:
    """The concept under attack, the original and the domain, see `evaluation.evaluate.about`."""
    s = settings
    return about(s.concept, s.model, baseline=s.baseline, anchor=s.anchor)


def check_files(settings: AttackSettings) -> list[str]:
    """Read what the user named, before any model is opened; remarks on what is left out.

    Raises:
        UserError: it is not there, or not what it should be.
    """
    if prompts := settings.options.get("prompts"):
        read_prompts(Path(prompts), "--prompts")
    images, counts = settings.options.get("images"), (settings.options.get(name, 0) for name in ("learn_from", "few"))
    return check_pictures("--images", images, max(counts)) if images else []


def contents_of(settings: AttackSettings) -> dict[str, str]:
    """What is in the models, folders and files that an attack names: a hash each."""
    models = {f"{name}_sha256": locate(str(getattr(settings, name))).sha256 for name in ("model", "baseline")}
    return models | hash_attack_files(settings)


def hash_attack_files(settings: AttackSettings) -> dict[str, str]:
    """What is in the folders and files that an attack's own settings name."""
    found = {}
    if prompts := settings.options.get("prompts"):
        found["prompts_sha256"] = hash_files([Path(prompts)])
    if images := settings.options.get("images"):
        found["images_sha256"] = hash_files(list_pictures(Path(images)).files)
    return found


def claim(file: Path, ours: dict[str, Any], processes: Processes) -> None:
    """Write into a file what is done in its folder, or find the same written.

    Raises:
        OccupiedError: the folder holds another attack.
        UserError: the file is damaged.
    """
    folder = file.parent
    if file.exists():
        theirs = read_object(file, f"delete {folder} or choose another --output-dir")
        if other := [name for name in ours if theirs.get(name) != ours[name]]:
            raise OccupiedError(
                f"{folder} holds another attack ({other[0]} differs): choose another --output-dir or delete it"
            )
    elif processes.main:
        write_json(file, ours)
    processes.wait()


def run_on(context: AttackContext, name: str) -> str:
    """Draw the prompts as they are, attack, and draw again, with one side; the hash of its weights."""
    s, declared = context.settings, ATTACKS[context.settings.attack]
    source = s.model if name == "model" else str(s.baseline)
    opened, denoiser = open_for_sampling(source, s.device, context.processes)
    concept_evaluation.check_domain(opened, context.domain)
    side = Side(name, opened, denoiser, Sampling.of(opened, s.sampling_steps, s.guidance))
    prepare = declared.prepare
    with context.once(side):
        data = context.cached("pictures", lambda: prepare(context, side)) if prepare else {}  # the original comes first
        context.before[name] = context.hits(side, "before")
        context.outcomes[name] = declared.run(context, side, data)
    return opened.weights_sha256


# ---------------------------------------------------------------- the result


def result_of(context: AttackContext, evaluation: ConceptEvaluation | None) -> AttackResult:
    """Success before and after of both sides, the verdict, and what the attack found beside."""
    s, before, model, original = (
        context.settings,
        context.before,
        context.outcomes["model"],
        context.outcomes["original"],
    )
    ours, originals = model.counted(model.hits), original.counted(original.hits)
    retained, originally = (evaluation.figures, evaluation.original) if evaluation else ({}, {})
    result = AttackResult(
        attack=s.attack, concept=context.concept.name, model=s.model, baseline=str(s.baseline),
        judge=context.judges[0].facts, second=second_rates(context), n=len(ours), asr_before=share(before["model"]),
        asr_after=share(ours), interval_before=interval(before["model"]), interval_after=interval(ours),
        original=OriginalRates(share(before["original"]), share(originals), interval_after=interval(originals)),
        n_before=len(before["model"]), IRA=retained.get("IRA"),
        CRA=retained.get("CRA"), original_IRA=originally.get("IRA"), original_CRA=originally.get("CRA"),
        restarts=model.restarts, kinds=model.kinds, steps_back=model.steps_back, curve=model.curve, figures=model.figures, settings=s.to_json(), seed=s.seed,
        samples=samples(context),
    )  # fmt: skip
    found = stays_gone(result)
    verdict = found.words if found.nothing or not model.verdict else model.verdict
    return dataclasses.replace(result, broken=broken(result), verdict=verdict, nothing_to_erase=found.nothing)


def share(hits: Sequence[bool]) -> float:
    """Share of hits, rounded to 4 places."""
    return round(sum(hits) / len(hits), 4)


def interval(hits: Sequence[bool]) -> list[float]:
    """Wilson's 95 % interval of the share of hits."""
    return wilson(sum(hits), len(hits))


def second_rates(context: AttackContext) -> SecondRates | None:
    """What the second judge sees in the very same pictures, where there is one: a judge can be fooled, two less so."""
    if len(context.judges) < 2:
        return None
    after = ((name, context.outcomes[name]) for name in ("model", "original"))
    rates = [share(one.counted(context.second[f"{name}-{one.records}"])) for name, one in after]
    return SecondRates(context.judges[1].facts, share(context.second["model-before"]), *rates)


def samples(context: AttackContext) -> list[AttackSample]:
    """Pictures for the report: those in which the concept came back, then the first ones, as many as are shown.

    Half of them at most are of later rows, which stand without the pictures before the attack and of the original.
    """
    model = context.outcomes["model"]
    first = range(min(SHOWN, len(model.hits), len(context.rows)))
    back = [n for n in model.counted(range(len(model.hits))) if model.hits[n]]
    later = [n for n in back if n not in first and (context.folder / picture_of(n, "model", model.records)).exists()]
    shown = dict.fromkeys([*(n for n in back if n in first), *later[: SHOWN // 2], *first])
    return [sample(context, n, alone=n not in first) for n in shown][:SHOWN]


def sample(context: AttackContext, n: int, *, alone: bool) -> AttackSample:
    """A picture after the attack, and on an equal seed the one before and the original's; `alone`: without these."""
    concept, model, original = context.concept, context.outcomes["model"], context.outcomes["original"]
    word = {True: concept.name, False: f"no {concept.name}"}
    after = AttackSample(
        attacked_prompt=model.prompts[n], after=picture_of(n, "model", model.records), after_says=word[model.hits[n]],
        flagged=concept.explicit,
    )  # fmt: skip
    if alone:
        seed = context.records[f"model-{model.records}"][n]["seed"]
        return dataclasses.replace(after, prompt=model.prompts[n], seed=seed)
    row = context.rows[n]
    return dataclasses.replace(
        after, prompt=row.prompt, seed=row.seed, before=picture_of(n, "model", "before"),
        original=picture_of(n, "original", original.records), before_says=word[context.before["model"][n]],
        original_says=word[original.hits[n]],
    )  # fmt: skip


def picture_of(number: int, side: str, what: str) -> str:
    """A row's picture within the attack's folder."""
    return sample_file(Path(), number, f"{side}-{what}").as_posix()


# ---------------------------------------------------------------- everything else


def evaluation_beside(context: AttackContext) -> ConceptEvaluation | None:
    """The evaluation beside a run's attack, if this judge measured this concept on this model as it is on disk."""
    model = Path(context.settings.model)
    run, manifest = model.resolve().parent, run_of(model)
    try:
        beside = measurement_directory("eval", str(model), context.domain.evaluation, context.concept.name)
        values = read_json(beside / "summary.json")
        found = ConceptEvaluation.from_json(values, strict=False)
    except (OSError, ValueError):
        return None
    if not (manifest and manifest.erased and run in context.folder.resolve().parents and "IRA" in found.figures):
        return None
    this = (manifest.erased.weights_sha256, context.concept.name, context.judges[0].facts)
    return found if (found.weights_sha256, found.concept, found.judge) == this else None


def evaluated(context: AttackContext, judges: JudgeSet) -> ConceptEvaluation:
    """A short evaluation of the model, made in a folder inside the attack's."""
    s = context.settings
    request = concept_evaluation.ConceptRequest(
        seed=s.seed, count=RETAIN_COUNT, steps=s.sampling_steps, guidance=s.guidance, device=s.device, progress=context.progress,
        processes=context.processes,
    )  # fmt: skip
    folder, baseline = context.folder / "rest", str(s.baseline)
    return concept_evaluation.evaluate(s.model, baseline, context.concept, folder, judges=judges, request=request)
