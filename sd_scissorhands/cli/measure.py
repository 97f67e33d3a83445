"""`sdscissor eval` and `sdscissor attack`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..attacks import ATTACKS
from ..attacks.attack_settings import AttackSettings
from ..attacks.suite_settings import SUITES, Suite
from ..declaration import BASIC
from ..errors import UsageError, UserError
from ..evaluation.evaluate_settings import EvaluateSettings
from ..evaluation.gone import proves_nothing
from ..evaluation.metrics import METRICS, gate_values, gates_of
from ..results.evaluation import NudityEvaluation
from .flags import Field, fields_of, with_flags_of
from .options import Gate, Json, NoBlur, Quiet, as_typed, check_concepts, check_gates, in_panel, parse_gates

basic, which, out = map(in_panel, (BASIC, "What", "Run"))
ATTACK_PANEL = "Attacks' own settings"  # a panel of --help
SUITE_GATES = ("asr_after", "working")
ATTACK_GATES = ("asr_before", "asr_after", "IRA", "CRA", "broken")  # broken: 1 if it fails on the original, too


@with_flags_of(EvaluateSettings)
def evaluate(
    given: dict[str, Any],
    canvas: Annotated[bool, which("The embedded world's own judge, as --judge canvas; with --concept.", False, "--canvas")] = False,
    no_blur: NoBlur = False,
    output_dir: Annotated[Path | None, basic("Where results go.", "RUN/eval/KIND of a run's model, else runs/eval-MODEL-KIND")] = None,
    fail_above: Annotated[list[str] | None, out(f"Exit 3 if the figure is above. Repeatable. With --concept {', '.join(gates_of('concept'))}; else nudity, core, collapsed or a label of NudeNet's.", metavar="NAME=VALUE")] = None,
    fail_below: Annotated[list[str] | None, out("Exit 3 if the figure is below. Repeatable.", metavar="NAME=VALUE")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure what a model still draws. A killed evaluation continues when the command is repeated.

    Of --images, a file that cannot be read is named and the others are judged; the exit code is then 1.

    Several processes share the drawing: accelerate launch -m sd_scissorhands eval ...

    Examples:

        sdscissor eval --model runs/nudity/model --i2p --categories sexual

        sdscissor eval --model runs/heart/model --concept heart --json

        sdscissor eval --model runs/fox/model --concept "a red fox" --anchor "a grey cat" --judge clip

        sdscissor eval --images pictures/ --fail-above nudity=0
    """
    if canvas and "concept" not in given:
        raise typer.BadParameter("missing: name the concept that --canvas is to judge", param_hint="--concept")
    settings = EvaluateSettings(**(given | ({"judge": "canvas"} if canvas else {})))
    gates = parse_gates(gates_of(settings.kind), fail_above, fail_below)
    _check_concept(settings)
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    speaks = Processes.here().main
    if settings.kind == "images" and not speaks:
        return  # there is nothing to share
    settings = api.composed(settings)
    if speaks:
        show.origin(settings.model)
    result = api.evaluate(settings, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if speaks:
        show.result(result, as_json)
        check_evaluation(gates, result)
        if isinstance(result, NudityEvaluation) and result.unreadable:
            raise UserError(
                f"{len(result.unreadable):,} of the pictures in --images {settings.images} could not be read, and the figures are of "
                f"the other {result.images:,}: replace or remove them"
            )


def check_evaluation(gates: Sequence[Gate], result: Any) -> None:
    """Hold an evaluation against its gates, see `check_gates`."""
    check_gates(gates, gate_values(result), {name for name, one in METRICS if one.of_erased}, proves_nothing(result))


def attack_columns(attack: str) -> dict[str, Any]:
    """An attack's own columns by their names."""
    return {one.name.format(attack): one for one in ATTACKS[attack].columns}


def check_attack(gates: Sequence[Gate], result: Any) -> None:
    """Hold an attack against its gates, see `check_gates`."""
    columns = attack_columns(result.attack)
    found = result.to_json() | {name: column.value(result) for name, column in columns.items()}
    plain = ["asr_before"] * result.nothing_to_erase  # a rate without the attack, which may be a broken one
    check_gates(gates, found, {"asr_after", *columns, *plain}, proves_nothing(result))


def check_suite(gates: Sequence[Gate], result: Any) -> None:
    """Hold a suite against its gates, see `check_gates`."""
    check_gates(gates, {"asr_after": result.asr_after, "working": result.working})


def attack_options() -> list[Field]:
    """The settings that attacks have for themselves, each with what every attack that takes it says of it."""
    found: dict[str, list[tuple[str, Field]]] = {}
    for attack, one in ATTACKS:
        for field in fields_of(one.options):
            found.setdefault(field[0], []).append((attack, field))
    return [_joined(fields) for fields in found.values()]


def _joined(fields: list[tuple[str, Field]]) -> Field:
    (_, (name, hint, declared, _)), *_ = fields
    takers: dict[str, list[str]] = {}
    for attack, field in fields:
        takers.setdefault(field[2].help, []).append(attack)
    help_ = " ".join(f"{', '.join(attacks)}: {text}" for text, attacks in takers.items())
    texts = {attack: _default(attack, field) for attack, field in fields}
    same = len(set(texts.values())) == 1
    defaults = texts[fields[0][0]] if same else "; ".join(f"{attack} {text}" for attack, text in texts.items())
    return name, hint, dataclasses.replace(declared, help=help_, default_text=defaults, panel=ATTACK_PANEL), False


def _default(attack: str, field: Field) -> str:
    """An attack's default of one of its settings, and those that it has on models of some profiles."""
    others = ATTACKS[attack].profiles.items()
    return ", ".join([
        field[2].default_text or "", *(f"{profile} {values[field[0]]:g}" for profile, values in others if field[0] in values)
    ])  # fmt: skip


@with_flags_of(AttackSettings, attack_options())
def attack(
    given: dict[str, Any],
    suite: Annotated[str | None, basic(f"Several attacks as one: {', '.join(SUITES)}.", "none", "--suite")] = None,
    no_blur: NoBlur = False,
    output_dir: Annotated[Path | None, basic("Where results go.", "RUN/attack/ATTACK of a run's model, else runs/attack-MODEL-ATTACK")] = None,
    fail_above: Annotated[list[str] | None, out("Exit 3 if the figure is above, e.g. asr_after=.1, broken=0.", metavar="NAME=VALUE")] = None,
    fail_below: Annotated[list[str] | None, out("Exit 3 if the figure is below, e.g. IRA=.9.", metavar="NAME=VALUE")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Try to bring an erased concept back, and its original beside it. A killed attack continues when repeated.

    Examples:

        sdscissor attack --model runs/heart/model --concept heart --attack embedding

        sdscissor attack --model runs/nudity/model --concept nudity --attack token --json

        sdscissor attack --model runs/nudity/model --concept nudity --attack list --prompts attacks.txt

        sdscissor attack --model runs/heart/model --concept heart --suite quick
    """
    if suite is not None:
        return _attack_suite(suite, given, no_blur, output_dir, (fail_above, fail_below), as_json, quiet)
    settings = AttackSettings(**({"attack": "embedding"} | given))
    gates = parse_gates((*ATTACK_GATES, *attack_columns(settings.attack)), fail_above, fail_below)
    _check_concept(settings)
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    settings = api.composed(settings)
    show.origin(settings.model)
    result = api.attack(settings, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if Processes.here().main:
        show.result(result, as_json)
        check_attack(gates, result)


def _check_concept(settings: EvaluateSettings | AttackSettings) -> None:
    named = [settings.concept] if settings.concept else []
    check_concepts(named, settings.anchor, str(settings.model), on_hub=settings.baseline is not None)


def _attack_suite(
    name: str, given: dict[str, Any], no_blur: bool, output_dir: Path | None,
    bounds: tuple[list[str] | None, list[str] | None], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """`sdscissor attack --suite`."""
    if "attack" in given:
        raise UsageError("--suite brings its own attacks: leave out --attack, or --suite")
    suite, gates = Suite.of(name, **given), parse_gates(SUITE_GATES, *bounds)
    _check_concept(suite.first)
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    result = api.attack_suite(suite, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if Processes.here().main:
        show.origin(result.model)
        show.result(result, as_json)
        check_suite(gates, result)
