"""`sdscissor eval` and `sdscissor attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..attacks.attack_settings import AttackSettings
from ..evaluation.evaluate_settings import EvaluateSettings
from ..evaluation.judges import JUDGES
from .options import Device, Json, NoBlur, Quiet, as_typed, check_gates, fields_of, in_panel, parse_gates

CONFIG = "Of single files: diffusers directory or hub id of their family, for configs and tokenizer."
which, rows, draw, judging, out = map(in_panel, ("What", "Rows of I2P", "Drawing and counting", "Judges", "Run"))
ATTACK_GATES = ("asr_before", "asr_after", "IRA", "CRA", "broken")  # broken: 1 if it fails on the original, too


def evaluate(
    model: Annotated[str | None, which("Pipeline directory, single .safetensors file, hub id or tiny.")] = None,
    baseline: Annotated[str | None, which("The model to compare with.", "what a run's model was made from")] = None,
    model_config: Annotated[str | None, which(CONFIG, "by the file")] = None,
    concept: Annotated[str | None, which("Judge what is left of it, and of everything else.")] = None,
    i2p: Annotated[bool, which("NudeNet on the I2P prompts, each row with its own seed.", False, "--i2p")] = False,
    i2p_file: Annotated[Path | None, which("A local I2P CSV, official or ESD-style columns.", "hub copy AIML-TUDA/i2p")] = None,
    prompts: Annotated[Path | None, which("NudeNet on your own prompts, one a line.")] = None,
    images: Annotated[Path | None, which("NudeNet on a directory of pictures; nothing is generated.")] = None,
    canvas: Annotated[bool, which("The embedded world's own judge, as --judge canvas; with --concept.", False, "--canvas")] = False,
    protocol: Annotated[str | None, rows("published: guidance 7.5, 512 x 512; per-row: each row's own.", "published")] = None,
    categories: Annotated[str | None, rows("Only these, e.g. sexual,violence.", "all")] = None,
    min_nudity: Annotated[float | None, rows("Only rows with a nudity_percentage of at least this.")] = None,
    row_file: Annotated[Path | None, rows("Only the rows numbered in this file, from 0.", False, "--rows")] = None,
    limit: Annotated[int | None, draw("First rows only; with --concept pictures for UA and IRA, each.", "all; 500")] = None,
    steps: Annotated[int | None, draw("Sampling steps.", "50; tiny 20")] = None,
    guidance: Annotated[float | None, draw("Guidance scale, where no protocol has its own.", "7.5; tiny 3")] = None,
    batch_size: Annotated[int | None, draw("Pictures drawn, judged and written at a time.", "32 small, 4 large")] = None,
    seed: Annotated[int, draw("For --prompts and --concept; I2P brings its own.", True)] = 0,
    threshold: Annotated[float | None, judging("NudeNet's score, or CLIP's probability, that counts.", "0.6; clip 0.5")] = None,
    judge: Annotated[str | None, judging(f"Who decides: {', '.join(JUDGES.names())}.", "what fits")] = None,
    anchor: Annotated[str | None, judging("What takes the place of a concept in free text.")] = None,
    clip: Annotated[str | None, judging("CLIP model, local or hub; none for none.", "openai/clip-vit-large-patch14 with --concept")] = None,
    features: Annotated[Path | None, judging("TorchScript file (Inception, say) whose features the distances use.", "CLIP's")] = None,
    reference: Annotated[Path | None, judging("Directory of real pictures to measure distances from, too.")] = None,
    keep_images: Annotated[bool, out("Keep every picture, under images/.", False, "--keep-images")] = False,
    no_blur: NoBlur = False,
    output_dir: Annotated[Path | None, out("Where results go.", "RUN/eval/KIND of a run's model, else runs/eval-MODEL-KIND")] = None,
    fail_above: Annotated[list[str] | None, out("NAME=VALUE: exit 3 if the figure is above. Repeatable.")] = None,
    fail_below: Annotated[list[str] | None, out("NAME=VALUE: exit 3 if the figure is below. Repeatable.")] = None,
    device: Device = None,
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
    if canvas and concept is None:
        raise typer.BadParameter("missing: name the concept that --canvas is to judge", param_hint="--concept")
    judge, device = "canvas" if canvas else judge, device or "auto"
    given = fields_of(EvaluateSettings, locals(), rows=row_file and str(row_file), categories=words(categories))
    settings = EvaluateSettings(**given)
    from ..evaluation.metrics import gate_values, gates_of
    from ..results.evaluation import read_evaluation

    gates = parse_gates(gates_of(settings.kind), fail_above, fail_below)
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    speaks = Processes.here().main
    if settings.kind == "images" and not speaks:
        return  # there is nothing to share
    told = api.evaluate(settings, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if speaks:
        show.evaluation(told, as_json)
        check_gates(gates, gate_values(read_evaluation(told)))


def attack(
    model: Annotated[str, which("The model under attack: pipeline directory, single .safetensors file or hub id.")],
    concept: Annotated[str, which("What was erased.")],
    attack: Annotated[str, which("embedding, token, paraphrase, list or relearn.", True)] = "embedding",
    baseline: Annotated[str | None, which("The original, which is attacked as well.", "what a run's model was made from")] = None,
    model_config: Annotated[str | None, which(CONFIG, "by the file")] = None,
    prompts: Annotated[Path | None, which("For list: the prompts, one a line.")] = None,
    images: Annotated[Path | None, which("Directory of pictures of the concept.", "the original draws them")] = None,
    steps: Annotated[int | None, draw("Steps of learning.", "embedding 200, token 40, relearn 160, tiny 80")] = None,
    restarts: Annotated[int, draw("Embeddings learned from different starts; the strongest counts.", True)] = 4,
    tokens: Annotated[int | None, draw("Learned vectors, or tokens of the suffix.", "embedding 1, token 5; tiny 3")] = None,
    lr: Annotated[float | None, draw("Learning rate; embedding and token: share of the vocabulary's spread.", "0.3; token 0.5; relearn 1e-5, tiny 3e-4")] = None,
    batch_size: Annotated[int | None, draw("Pictures per step.", "4; tiny 16; relearn 2, tiny 8")] = None,
    limit: Annotated[int, draw("Prompts that name the concept, and pictures of every rate.", True)] = 60,
    sampling_steps: Annotated[int | None, draw("Sampling steps.", "50; tiny 20")] = None,
    guidance: Annotated[float | None, draw("Guidance scale.", "7.5; tiny 3")] = None,
    seed: Annotated[int, draw("The same seed gives the same attack.", True)] = 0,
    judge: Annotated[str | None, judging(f"Who decides: {', '.join(JUDGES.names())}.", "what fits")] = None,
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
    settings = AttackSettings(**fields_of(AttackSettings, locals(), count=limit))
    from .. import api, show
    from ..machine import Processes

    show.still_libraries()
    told = api.attack(settings, output_dir, blur=not no_blur, command=as_typed(), progress=show.progress(quiet))
    if Processes.here().main:
        show.attack(told, as_json)
        check_gates(gates, told)


def words(listed: str | None) -> tuple[str, ...] | None:
    """The words of a list with commas."""
    return None if listed is None else tuple(word.strip() for word in listed.split(",") if word.strip())
