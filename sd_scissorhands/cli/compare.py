"""`sdscissor compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..attacks import ATTACKS
from ..evaluation.judges import JUDGES
from ..files import read_toml
from ..recipes import CLASSIFIERS, DENOISERS, RECIPES, recipes_for
from ..settings import DIGITS, EraseSettings, ForgetSettings, MethodSettings, UserError, load_settings
from .options import Device, Json, Quiet, as_typed, check_choice, check_numbers, in_one_process, in_panel, refuse

what, denoisers, classifiers, how = map(in_panel, ("What", "Diffusion: judging and attacking", "Classifiers", "Run"))
OWN = ("concept", "concepts", "recipe", "model", "seed", "forget_class", "forget_random", "forget_indices")
ATTACK = (
    f"none, or attacks one after the other ({', '.join(ATTACKS.names())}), NAME or NAME:SETTING=VALUE,...; repeatable. The "
    "first one's success is the ASR of the table, each further one has columns of its own."
)


def compare(
    recipes: Annotated[str | None, what("Recipes, e.g. scissorhands,lra-npp,esd; see sdscissor recipes.", "all that fit the model")] = None,
    concept: Annotated[list[str] | None, what("Diffusion: what each recipe erases, one after the other. Repeatable.")] = None,
    forget_class: Annotated[list[str] | None, what("Classifier: the class that each recipe forgets. Repeatable.")] = None,
    forget_random: Annotated[float | None, what("Classifier: this share of the training pictures, drawn at random, in (0, 1).")] = None,
    forget_indices: Annotated[Path | None, what("Classifier: file with numbers of training pictures, one a line.")] = None,
    seeds: Annotated[int, what("Runs of every recipe on every target, with the seeds 0, 1, ...", True)] = 3,
    model: Annotated[str | None, what("Hub id or directory of what all runs start from.", "tiny; classifier digits")] = None,
    config: Annotated[Path | None, what("Settings of every run as TOML, laid over each recipe's.")] = None,
    limit: Annotated[int | None, denoisers("Pictures for UA and for IRA, each, per run; at most 60 of them under attack.", "200")] = None,
    sampling_steps: Annotated[int | None, denoisers("Sampling steps of the pictures that are judged.", "50; tiny 20")] = None,
    guidance: Annotated[float | None, denoisers("Guidance scale of the pictures that are judged.", "7.5; tiny 3")] = None,
    judge: Annotated[str | None, denoisers("nudenet, clip or canvas.", "what fits")] = None,
    threshold: Annotated[float | None, denoisers("NudeNet's score, or CLIP's probability, that counts.", "0.6; clip 0.5")] = None,
    clip: Annotated[str | None, denoisers("CLIP model, local or hub; none for none.", "openai/clip-vit-large-patch14")] = None,
    anchor: Annotated[str | None, denoisers("What takes the concepts' place.", "each one's own")] = None,
    attack: Annotated[list[str] | None, denoisers(ATTACK, "embedding")] = None,
    restarts: Annotated[int | None, denoisers("Embeddings learned from different starts; the strongest counts.", "4")] = None,
    tokens: Annotated[int | None, denoisers("Learned vectors, or tokens of the suffix.", "embedding 1, token 5; tiny 3")] = None,
    attack_steps: Annotated[int | None, denoisers("Steps of learning.", "embedding 200, token 40")] = None,
    data: Annotated[str | None, classifiers("Image folder or .npz file.", "the digits")] = None,
    output_dir: Annotated[Path, how("Where the runs, rows.json, rows.csv and the page go.")] = Path("runs/compare"),
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compare recipes: one command, one table, one page. A killed comparison continues when the command is repeated.

    Examples:

        sdscissor compare --concept heart --concept blue --recipes scissorhands,lra-npp,esd --seeds 3

        sdscissor compare --concept heart --attack embedding,token --attack relearn:lr=3e-4,steps=160

        sdscissor compare --forget-class 3 --forget-random 0.1 --output-dir runs/digits
    """
    targets: list[dict[str, Any]] = [{"forget_class": name} for name in forget_class or ()]
    targets += [] if forget_random is None else [{"forget_random": forget_random}]
    targets += [] if forget_indices is None else [{"forget_indices": str(forget_indices)}]
    if bool(concept) == bool(targets):
        raise typer.BadParameter(
            "choose one of --concept (diffusion) and --forget-class, --forget-random or --forget-indices (classifier)"
        )
    if forget_random is not None and not 0 < forget_random < 1:
        raise typer.BadParameter(f"{forget_random} is outside (0, 1)", param_hint="--forget-random")
    check_numbers(threshold, {
        "--seeds": seeds, "--limit": limit, "--sampling-steps": sampling_steps, "--restarts": restarts,
        "--tokens": tokens, "--attack-steps": attack_steps,
    })  # fmt: skip
    check_choice("--judge", judge, JUDGES.names())
    attacks = attacks_of(attack)
    learning = {"--restarts": restarts, "--tokens": tokens, "--attack-steps": attack_steps}
    if concept:
        refuse("--forget-class, --forget-random or --forget-indices", {"--data": data})
        if attacks is None:
            refuse("an attack", learning)
        settings: Any = settings_of(EraseSettings, config, model=model or "tiny", anchor=anchor, device=device)
        targets = [{"concepts": (name,)} for name in concept]
    else:
        refuse("--concept", {
            "--limit": limit, "--sampling-steps": sampling_steps, "--guidance": guidance, "--judge": judge,
            "--threshold": threshold, "--clip": clip, "--anchor": anchor, "--attack": attack, **learning,
        })  # fmt: skip
        settings = settings_of(ForgetSettings, config, model=model or DIGITS, data=data, device=device)
    named = names_of(recipes, DENOISERS if concept else CLASSIFIERS)
    from .. import api, show
    from ..comparison.jobs import Comparison, Measures

    show.still_libraries()
    in_one_process("sdscissor compare")

    attacking = {"restarts": restarts, "tokens": tokens, "steps": attack_steps}
    measures = Measures(
        limit or Measures.count, sampling_steps, guidance, judge, threshold, clip, attacks,
        {k: v for k, v in attacking.items() if v is not None},
    )  # fmt: skip
    asked = Comparison(settings, tuple(targets), named, seeds, measures)
    told = api.compare(asked, output_dir, command=as_typed(), progress=show.progress(quiet))
    show.result(told, as_json)


def attacks_of(listed: list[str] | None) -> str | None:
    """The attacks of a command line as one list; None for none.

    Raises:
        typer.BadParameter: an unknown attack or setting.
    """
    text = ",".join(listed or ["embedding"])
    if text == "none":
        return None
    from ..attacks.attack_settings import parse_attacks

    try:
        parse_attacks(text)
    except UserError as error:
        raise typer.BadParameter(str(error).removeprefix("--attack "), param_hint="--attack") from None
    return text


def names_of(recipes: str | None, profiles: tuple[str, ...]) -> tuple[str, ...]:
    """The recipes of a list with commas; none for all that fit.

    Raises:
        typer.BadParameter: one that is unknown, or that fits none of the profiles.
    """
    if recipes is None:
        return ()
    fit = dict.fromkeys(name for profile in profiles for name in recipes_for(profile))
    names = tuple(name.strip() for name in recipes.split(",") if name.strip())
    if not names:
        raise typer.BadParameter("names none", param_hint="--recipes")
    for name in names:
        check_choice("--recipes", name, tuple(RECIPES))
        if name not in fit:
            raise typer.BadParameter(
                f"{name} is not for this kind of model: choose {', '.join(fit)}", param_hint="--recipes"
            )
    return names


def settings_of(kind: type[MethodSettings], config: Path | None, **flags: Any) -> MethodSettings:
    """Settings that all runs share.

    Raises:
        UserError: a file that cannot be read, or that says what the comparison itself does.
    """
    settings = load_settings(kind, config, flags)
    given = {name.replace("-", "_") for name in read_toml(config, "--config")} if config else set()
    for name in OWN:
        if name in given:
            raise UserError(f"{config}: leave out {name!r}: in a comparison the command line says it")
    return settings
