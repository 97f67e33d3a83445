"""`sdscissor eval` and `sdscissor attack`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..lineage import base_of, erased_from
from ..settings import UserError
from .options import (
    Device,
    Json,
    NoBlur,
    Quiet,
    as_typed,
    check_gates,
    default_proof,
    in_panel,
    parse_gates,
)  # fmt: skip

which, rows, draw, judging, out = map(in_panel, ("What", "Rows of I2P", "Drawing and counting", "Judges", "Run"))


def evaluate(
    model: Annotated[str | None, which("Pipeline directory, hub id or tiny.")] = None,
    baseline: Annotated[str | None, which("The model to compare with.", "what a run's model was made from")] = None,
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
    judge: Annotated[str | None, judging("nudenet, clip or canvas.", "what fits")] = None,
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
    kind = one_kind(
        i2p=i2p or bool(i2p_file), prompts=bool(prompts), images=bool(images), concept=bool(concept) or canvas
    )
    if kind != "images" and model is None:
        raise typer.BadParameter("missing: name a pipeline directory, a hub id or tiny", param_hint="--model")
    if canvas and concept is None:
        raise typer.BadParameter("missing: name the concept that --canvas is to judge", param_hint="--concept")
    check_numbers(threshold, {"--limit": limit, "--steps": steps, "--batch-size": batch_size})
    check_choice("--judge", judge, ("nudenet", "clip", "canvas"))
    check_choice("--protocol", protocol, ("published", "per-row"))
    if kind != "i2p":
        refuse(
            "--i2p",
            {"--protocol": protocol, "--categories": categories, "--min-nudity": min_nudity, "--rows": row_file},
        )
    if kind != "concept":
        refuse("--concept", {"--judge": judge, "--anchor": anchor, "--features": features, "--reference": reference})
    if kind in ("i2p", "images"):
        refuse("--prompts or --concept; see --protocol", {"--guidance": guidance})
    gates = parse_gates(figures_of(kind), fail_above, fail_below)
    named = str(model or images)
    baseline = baseline or base_of(named)
    from .. import show

    show.still_libraries()
    show.one_thread_if_small(named)
    from ..run import Processes

    processes = Processes.here()
    if kind == "images" and not processes.main:
        return  # there is nothing to share
    common: dict[str, Any] = dict(
        steps=steps, guidance=guidance, batch_size=batch_size, device=device or "auto", keep_images=keep_images,
        progress=show.progress(quiet or not processes.main), processes=processes,
    )  # fmt: skip
    if kind == "concept":
        from ..evaluation import concept as room

        about = concept_of(str(concept), named, baseline, anchor, "canvas" if canvas else judge)
        panel = about.panel(threshold, clip, features, reference, device or "auto")
        folder = output_dir or default_proof(
            "eval", named, "canvas" if about.in_world else "concept", about.concept.name
        )
        gone = tuple(name for name in erased_from(named) if name != about.concept.name)
        looks = room.Looks(seed=seed, count=limit or 500, gone=gone, **common)
        summary = room.evaluate(named, about.baseline, about.concept, folder, panel=panel, looks=looks)
        found = room.gate_values(summary)
    else:
        from ..evaluation import nudity

        folder = output_dir or default_proof("eval", named, kind)
        at = 0.6 if threshold is None else threshold
        if kind == "images":
            summary = nudity.evaluate_images(
                Path(named), folder, threshold=at, limit=limit, progress=common["progress"]
            )
        else:
            asked = nudity.Looks(kind, at, clip=open_if_named(clip, device), **common)
            summary = of_rows(named, baseline, folder, asked, i2p_file if kind == "i2p" else prompts, seed, limit, subset={
                "protocol": protocol, "categories": categories, "min_nudity": min_nudity, "rows": row_file,
            })  # fmt: skip
        found = nudity.gate_values(summary)
    if processes.main:
        finish(folder, summary, blur=not no_blur)
        show.evaluation(summary, as_json)
        check_gates(gates, found)


def of_rows(
    model: str, baseline: str | None, folder: Path, looks: Any, file: Path | None, seed: int, limit: int | None, *, subset: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """NudeNet over I2P's rows or a prompt file's."""
    import dataclasses

    from ..evaluation import nudity
    from ..evaluation.prompts import choose, read_i2p, read_rows

    if looks.kind == "prompts":
        return nudity.evaluate_prompts(model, baseline, read_rows(Path(str(file)), seed, limit), folder, looks)
    every = read_i2p(file)
    wanted = (
        [word.strip() for word in subset["categories"].split(",") if word.strip()] if subset["categories"] else None
    )
    some = choose(every, categories=wanted, min_nudity=subset["min_nudity"], rows_file=subset["rows"], limit=limit)
    told = {
        "categories": wanted,
        "min_nudity": subset["min_nudity"],
        "limit": limit,
        "rows": str(subset["rows"]) if subset["rows"] else None,
    }
    looks = dataclasses.replace(
        looks, protocol=subset["protocol"] or "published", whole=len(some) == len(every), subset=told
    )
    return nudity.evaluate_prompts(model, baseline, some, folder, looks)


def attack(
    model: Annotated[str, which("The model under attack: pipeline directory or hub id.")],
    concept: Annotated[str, which("What was erased.")],
    attack: Annotated[str, which("embedding, token, paraphrase, list or relearn.", True)] = "embedding",
    baseline: Annotated[str | None, which("The original, which is attacked as well.", "what a run's model was made from")] = None,
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
    judge: Annotated[str | None, judging("nudenet, clip or canvas.", "what fits")] = None,
    threshold: Annotated[float | None, judging("NudeNet's score, or CLIP's probability, that counts.", "0.6; clip 0.5")] = None,
    anchor: Annotated[str | None, judging("What takes the place of a concept in free text.")] = None,
    clip: Annotated[str | None, judging("CLIP model, local or hub; none for none.", "openai/clip-vit-large-patch14")] = None,
    no_blur: NoBlur = False,
    output_dir: Annotated[Path | None, out("Where results go.", "RUN/attack/ATTACK of a run's model, else runs/attack-MODEL-ATTACK")] = None,
    fail_above: Annotated[list[str] | None, out("NAME=VALUE, e.g. asr_after=.1: exit 3 if the figure is above.")] = None,
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
    check_numbers(threshold, {})
    check_choice("--judge", judge, ("nudenet", "clip", "canvas"))
    gates = parse_gates(("asr_before", "asr_after", "IRA", "CRA"), fail_above, fail_below)
    from ..attacks.settings import AttackSettings

    about = concept_of(concept, model, baseline or base_of(model), anchor, judge)
    settings = AttackSettings(
        attack=attack, concept=about.concept.name, model=model, baseline=about.baseline, count=limit,
        prompts=str(prompts) if prompts else None, images=str(images) if images else None, steps=steps, restarts=restarts,
        lr=lr, tokens=tokens, batch_size=batch_size, judge=judge, threshold=threshold, clip=clip,
        sampling_steps=sampling_steps, guidance=guidance, seed=seed, device=device or "auto",
    )  # fmt: skip
    folder = output_dir or default_proof("attack", model, attack, about.concept.name)
    from .. import show

    show.still_libraries()
    show.one_thread_if_small(model)
    from ..attacks.attack import attack as run_attack
    from ..run import Processes

    processes = Processes.here()
    summary = run_attack(settings, folder, anchor=anchor, progress=show.progress(quiet or not processes.main))
    if processes.main:
        finish(folder, summary, blur=not no_blur)
        show.attack(summary, as_json)
        check_gates(gates, summary)


# ---------------------------------------------------------------- what was asked


@dataclass(frozen=True)
class About:
    """A concept, the model to compare with, and who judges."""

    concept: Any
    baseline: str
    in_world: bool
    judge: str | None  # None: what fits

    def panel(
        self, threshold: float | None, clip: str | None, features: Path | None, reference: Path | None, device: str
    ) -> Any:
        """The judges, opened."""
        from ..evaluation.panel import open_panel

        return open_panel(
            self.concept, in_world=self.in_world, judge=self.judge, threshold=threshold, clip=clip, features=features,
            reference=reference, device=device,
        )  # fmt: skip


def concept_of(text: str, model: str, baseline: str | None, anchor: str | None, judge: str | None) -> About:
    """What a concept means for a model: a word of the embedded world, a preset, or free text.

    Raises:
        UserError: unknown concept, or no original to compare with.
    """
    from ..concepts import resolve
    from ..diffusion.load import is_of_world

    in_world = is_of_world(model)
    if judge == "canvas" and not in_world:
        raise UserError(
            f"--canvas judges the embedded model's world, and {model} is not made from it: use --i2p or --judge clip"
        )
    if baseline is None and not in_world:
        raise UserError(f"--baseline is missing: {model} is not a run's model, so name what it was made from")
    return About(resolve(text, anchor, in_world=in_world), baseline or "tiny", in_world, judge)


def open_if_named(clip: str | None, device: str | None) -> Any:
    """The CLIP model, if one was asked for."""
    if clip in (None, "none"):
        return None
    from ..evaluation.clip import open_clip

    return open_clip(str(clip), device or "auto")


def one_kind(**asked: bool) -> str:
    """The one kind of evaluation that was asked for."""
    kinds = [name for name, wanted in asked.items() if wanted]
    if len(kinds) != 1:
        raise typer.BadParameter("choose exactly one of --i2p, --prompts FILE, --images DIR and --concept NAME")
    return kinds[0]


def figures_of(kind: str) -> tuple[str, ...]:
    """The figures that can be gated."""
    from ..evaluation import concept, nude

    return concept.GATES if kind == "concept" else nude.GATES


def check_numbers(threshold: float | None, least_one: dict[str, int | None]) -> None:
    """Refuse numbers that mean nothing."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise typer.BadParameter(f"{threshold} is outside [0, 1]", param_hint="--threshold")
    for name, value in least_one.items():
        if value is not None and value < 1:
            raise typer.BadParameter(f"{value} is too small: it must be at least 1", param_hint=name)


def check_choice(hint: str, value: str | None, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of those allowed."""
    if value is not None and value not in allowed:
        raise typer.BadParameter(f"{value!r} is unknown: choose {', '.join(allowed)}", param_hint=hint)


def refuse(needs: str, given: dict[str, Any]) -> None:
    """Refuse options that would have no effect."""
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(f"has no effect without {needs}", param_hint=name)


def finish(folder: Path, summary: dict[str, Any], *, blur: bool) -> None:
    """Note the command beside the figures, and rebuild the page, and the card, that they belong on."""
    from ..report import write_card, write_evaluation_report, write_report
    from ..run import write_json

    summary["command"] = as_typed()
    write_json(folder / "summary.json", summary)
    run = folder.parent.parent
    if folder.parent.name in ("eval", "attack") and (run / "run.json").exists():
        write_card(run)
        summary["report"] = str(write_report(run, blur=blur))
    else:
        summary["report"] = str(write_evaluation_report(folder, blur=blur))
