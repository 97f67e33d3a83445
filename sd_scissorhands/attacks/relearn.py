"""Fine-tuning on a few pictures of the concept: after how many steps is it back?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..declaration import setting
from ..errors import UserError
from ..evaluation.chance import wilson
from ..evaluation.gone import SHOWS
from ..files import read_json
from ..results.attack import AttackResult, CurvePoint
from . import ATTACKS
from .base import Attack, AttackMetric, Outcome, images_setting

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Data
    from .context import AttackContext, Side

STOPS = (2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 160, 320, 640, 1280)
Rates = dict[int, float]  # step -> share of pictures that show the concept


@dataclass(frozen=True)
class RelearnOptions:
    """How the weights are fine-tuned."""

    images: str | None = images_setting()
    few: int = setting(8, "Pictures of the concept, and of anything else.", least=1)
    steps: int = setting(160, "Steps of fine-tuning.", least=1)
    lr: float = setting(1e-5, "Adam's learning rate.", least=0, open_ends=True)
    batch_size: int = setting(2, "Pictures per step.", least=1)
    stops: tuple[int, ...] | None = setting(
        None,
        "Steps after which pictures are judged, beside the last.",
        least=1,
        listed=True,
        default_text="ever less often",
    )


def prepare(context: AttackContext, original: Side) -> Data:
    """A few pictures of the concept and as many of anything else, both drawn by the original."""
    from .context import TRAINING_SEED

    few = context.options.few
    seeds = range(TRAINING_SEED + 1_000, TRAINING_SEED + 1_000 + few)
    return {
        "concept": context.concept_latents(original, context.training(few)),
        "benign": context.generated(original, "other pictures", _benign(context), seeds),
    }


def _benign(context: AttackContext) -> list[str]:
    few, seed = context.options.few, context.settings.seed
    return context.domain.benign_prompts(context.concept, count=few, seed=seed)


def run(context: AttackContext, side: Side, data: Data) -> Outcome:
    """Fine-tune on the few pictures, and judge at every stop whether the concept is back; then again on the others.

    The original is fine-tuned on the concept alone and judged once: it knows the concept all along. Weights end as they
    were.
    """
    import torch

    most, model, parameters = context.options.steps, side.name == "model", side.denoiser.scope("full")
    stops = [*sorted({step for step in context.options.stops or STOPS if step < most and model}), most]
    subjects = {"concept": [plain for _, plain in context.training(context.options.few)]}
    subjects |= {"benign": _benign(context)} if model else {}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    found: dict[str, dict[int, list[bool]]] = {}
    for subject, prompts in subjects.items():
        found[subject] = _fine_tune(context, side, subject, data[subject], prompts, stops)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name]).requires_grad_(False)
    after, texts = found["concept"][most], [row.prompt for row in context.rows]
    if not model:
        return Outcome(after, texts, f"concept-{most}")
    rates = {what: {step: sum(own) / len(own) for step, own in hits.items()} for what, hits in found.items()}
    first = round(sum(context.before["model"]) / len(after), 4)
    back = {what: steps_back(own) for what, own in rates.items()}
    benign = found["benign"][most]
    low, high = wilson(sum(benign), len(benign))
    return Outcome(
        after, texts, f"concept-{most}",
        f"back after {back['concept']} steps" if back["concept"] else f"not back within {most} steps",
        steps_back={**back, "most": most},
        figures={"benign_asr": round(sum(benign) / len(benign), 4), "benign_low": low, "benign_high": high},
        curve=[CurvePoint(0, first, first), *(CurvePoint(n, r, rates["benign"][n]) for n, r in rates["concept"].items())],
    )  # fmt: skip


def _fine_tune(
    context: AttackContext, side: Side, subject: str, latents: Tensor, prompts: list[str], stops: list[int]
) -> dict[int, list[bool]]:
    """Stop -> per picture whether the concept is there. Continues after the last stop that was reached."""
    from ..disk import read_tensors, write_json, write_tensors
    from .learn import Relearning

    o, d, seed = context.options, side.denoiser, context.settings.seed
    work = Relearning(d, latents.to(d.device), d.encode(prompts), lr=o.lr, batch_size=o.batch_size, seed=seed)
    log, state = (context.folder / f"{side.name}-{subject}.{ending}" for ending in ("json", "safetensors"))
    done = _stops_done(log)
    if state.exists():
        tensors, facts = read_tensors(state, d.device)
        work.restore(tensors, int(facts["step"]))
    found: dict[int, list[bool]] = {}
    with context.progress(f"relearning, {subject}", stops[-1]) as tick:
        tick(work.step)
        for step in stops:
            if step not in done:
                work.run(step, tick)
            found[step] = context.hits(side, f"{subject}-{step}")
            if step not in done and context.processes.main:
                done.append(step)
                write_tensors(state, work.state(), {"step": str(step)})
                write_json(log, done)
    state.unlink(missing_ok=True)
    return found


def _stops_done(log: Path) -> list[int]:
    """The stops that were reached before."""
    try:
        done = read_json(log) if log.exists() else []
        if isinstance(done, list) and all(type(step) is int for step in done):
            return done
        raise ValueError("no list of steps")
    except (OSError, ValueError) as error:
        raise UserError(f"{log} is damaged ({error}): delete its folder or choose another --output-dir") from None


def steps_back(rates: Rates) -> int | None:
    """The first step at which the concept was back; None if it was at none."""
    return next((step for step, rate in sorted(rates.items()) if rate >= SHOWS), None)


def at_least(result: AttackResult, subject: str) -> float | None:
    """Steps until the concept was back, or all that were tried."""
    back = result.steps_back
    return back.get(subject) or back.get("most")


COLUMNS = (
    AttackMetric(
        "{}_steps", "relearn steps",
        "steps of fine-tuning on pictures of the concept until half of the pictures show it again; more is better. Where it "
        "never was back, all the steps that were tried: at least so many.",
        lambda result: at_least(result, "concept"), lambda result: 0, "number",
    ),
    AttackMetric(
        "{}_benign_steps", "relearn steps, other pictures", "the same for fine-tuning on pictures of anything else.",
        lambda result: at_least(result, "benign"), lambda result: 0, "number",
    ),
)  # fmt: skip
ATTACKS.add("relearn", Attack(
    "fine-tune on a few pictures of the concept, and on as many of anything else", "relearning", run,
    options=RelearnOptions, profiles={"small": {"steps": 80, "lr": 3e-4, "batch_size": 8}}, prepare=prepare,
    columns=COLUMNS, graded=False,
))  # fmt: skip
