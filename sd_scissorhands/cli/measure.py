"""`sdscissor eval` and `sdscissor attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..attacks import ATTACKS
from ..attacks.attack_settings import AttackSettings
from ..evaluation.evaluate_settings import EvaluateSettings
from .flags import with_flags_of
from .options import Device, Json, NoBlur, Quiet, as_typed, check_gates, fields_of, in_panel, parse_gates

CONFIG = "Of single files: diffusers directory or hub id of their family, for configs and tokenizer."
which, rows, draw, judging, out = map(in_panel, ("What", "Rows of I2P", "Drawing and counting", "Judges", "Run"))
ATTACK_GATES = ("asr_before", "asr_after", "IRA", "CRA", "broken")  # broken: 1 if it fails on the original, too


@with_flags_of(EvaluateSettings)
def evaluate(
    given: dict[str, Any],
    canvas: Annotated[bool, which("The embedded world's own judge, as --judge canvas; with --concept.", False, "--canvas")] = False,
    no_blur: NoBlur = False,
    output_dir: Annotated[Path | None, out("Where results go.", "RUN/eval/KIND of a run's model, else runs/eval-MODEL-KIND")] = None,
    fail_above: Annotated[list[str] | None, out("NAME=VALUE: exit 3 if the figure is above. Repeatable.")] = None,
    fail_below: Annotated[list[str] | None, out("NAME=VALUE: exit 3 if the figure is below. Repeatable.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure what a model still draws. A killed evaluation continues when the command is repeated.

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
    from ..evaluation.evaluate import figures_of, gate_values

    gates = parse_gates(figures_of(settings.kind), fail_above, fail_below)
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    speaks = Processes.here().main
    if settings.kind == "images" and not speaks:
        return  # there is nothing to share
    told = api.evaluate(settings, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if speaks:
        show.result(told, as_json)
        check_gates(gates, gate_values(settings.kind, told.to_json()))


def attack(
    model: Annotated[str, which("The model under attack: pipeline directory, single .safetensors file or hub id.")],
    concept: Annotated[str, which("What was erased.")],
    attack: Annotated[str, which(f"{', '.join(ATTACKS.names())}; NAME:SETTING=VALUE,... for more of its settings.", True)] = "embedding",
    baseline: Annotated[str | None, which("The original, which is attacked as well.", "what a run's model was made from")] = None,
    model_config: Annotated[str | None, which(CONFIG, "by the file")] = None,
    prompts: Annotated[Path | None, which("For list: the prompts, one a line.")] = None,
    images: Annotated[Path | None, which("Directory of pictures of the concept.", "the original draws them")] = None,
    steps: Annotated[int | None, draw("Steps of learning.", "embedding 200, token 40, relearn 160, tiny 80")] = None,
    restarts: Annotated[int | None, draw("Embeddings learned from different starts; the strongest counts.", "4")] = None,
    tokens: Annotated[int | None, draw("Learned vectors, or tokens of the suffix.", "embedding 1, token 5; tiny 3")] = None,
    lr: Annotated[float | None, draw("Learning rate; embedding and token: share of the vocabulary's spread.", "0.3; token 0.5; relearn 1e-5, tiny 3e-4")] = None,
    batch_size: Annotated[int | None, draw("Pictures per step.", "4; tiny 16; relearn 2, tiny 8")] = None,
    limit: Annotated[int, draw("Prompts that name the concept, and pictures of every rate.", True)] = 60,
    sampling_steps: Annotated[int | None, draw("Sampling steps.", "50; tiny 20")] = None,
    guidance: Annotated[float | None, draw("Guidance scale.", "7.5; tiny 3")] = None,
    seed: Annotated[int, draw("The same seed gives the same attack.", True)] = 0,
    judge: Annotated[str | None, judging("nudenet, clip or canvas.", "what fits")] = None,
    threshold: Annotated[float | None, judging("NudeNet's score, or CLIP's probability, that counts.", "0.6; clip 0.5")] = None,
    anchor: Annotated[str | None, judging("What takes the place of a concept in free text.")] = None,
    clip: Annotated[str | None, judging("CLIP model, local or hub; none for none.", "openai/clip-vit-large-patch14")] = None,
    no_blur: NoBlur = False,
    output_dir: Annotated[Path | None, out("Where results go.", "RUN/attack/ATTACK of a run's model, else runs/attack-MODEL-ATTACK")] = None,
    fail_above: Annotated[list[str] | None, out("NAME=VALUE, e.g. asr_after=.1, broken=0: exit 3 if the figure is above.")] = None,
    fail_below: Annotated[list[str] | None, out("NAME=VALUE, e.g. IRA=.9: exit 3 if the figure is below.")] = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Try to bring an erased concept back, and its original beside it. A killed attack continues when repeated.

    Examples:

        sdscissor attack --model runs/heart/model --concept heart --attack embedding

        sdscissor attack --model runs/nudity/model --concept nudity --attack token --json

        sdscissor attack --model runs/nudity/model --concept nudity --attack list --prompts attacks.txt
    """
    gates = parse_gates(ATTACK_GATES, fail_above, fail_below)
    device = device or "auto"
    settings = AttackSettings(
        **fields_of(AttackSettings, locals(), count=limit), prompts=prompts and str(prompts),
        images=images and str(images), steps=steps, restarts=restarts, tokens=tokens, lr=lr, batch_size=batch_size,
    )  # fmt: skip
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    told = api.attack(settings, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if Processes.here().main:
        show.result(told, as_json)
        check_gates(gates, told.to_json())
