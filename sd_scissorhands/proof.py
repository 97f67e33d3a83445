"""The proof of an erasure: prompts that nothing learned from, what the erased model makes of them, and a sentence on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .concepts import SLOT, Concept, shuffled
from .diffusion.conditions import ConceptSlot, Mixture
from .diffusion.dataset import at_once, scheduler_of
from .diffusion.drawing_again import DrawLatents
from .diffusion.held_out import Asked, Drawn, HeldOut, HeldOutPrompts, HeldOutSampling, draw_held_out
from .diffusion.sampler import FEW_STEP
from .methods.calibration import Look
from .methods.interface import Weights
from .results.proof import Proof
from .run import Progress, Run
from .settings import EraseSettings

if TYPE_CHECKING:
    from .preparation import Prepared

PAIRS, EACH, RETAINED = 16, 8, 16  # held out, of all concepts together, of each at least; captions and open prompts
APART = 1_000_003  # added to the seed of what is held out
DRAWN = 8 * PAIRS  # pictures of a proof, of both models
VAGUE = 2  # vaguer words beside nothing that a picture is compared with
DRAWN_LEFT, CHANGED, MOVED = 0.25, 0.5, 1.0  # of the original's pictures, that may be left; limits of what has changed
EXPLAINED, KNOWN = 0.3, 0.5  # of the noise that a trained model finds; of its pictures, that show a concept it can draw
KIND_WORDS = {
    "name": "its name",
    "near": "words near its name",
    "arbitrary": "arbitrary vectors",
    "generic": "vaguer words",
}


# ---------------------------------------------------------------- what is held out


def held_out(run: Run, prepared: Prepared, draw: DrawLatents, teacher: Weights, progress: Progress) -> HeldOut:
    """What is held out of an erasure, with the original's answers to it; to be made before a weight changes.

    Args:
        draw: as the original draws.
        teacher: the original's weights.
    """
    settings, denoiser = prepared.settings, prepared.denoiser
    prompts, slots = _prompts(prepared)
    how = HeldOutSampling(
        steps_of(settings), settings.guidance, at_once(denoiser, settings.memory),
        settings.seed, scheduler_of(settings), run.processes,
    )  # fmt: skip

    def make():
        with progress("held out", len(prompts.asked) + len(prompts.named) + 2 * len(prompts.retained)) as tick:
            return draw_held_out(draw, prompts, how, tick), {"asked": [one.prompt for one in prompts.asked]}

    latents = run.stage("held-out", make, denoiser.device)[0]
    held = HeldOut(denoiser, prompts, latents, how, teacher, Mixture(denoiser, slots))
    run.count("held-out")
    return held


def steps_of(settings: EraseSettings) -> int:
    """Sampling steps of what is held out, for both models: half of those that are learned from, of the few-step solver's all.

    In half of 10 it draws under guidance 7.5 what changes by half where the model changes by little.
    """
    return max(1, settings.sampling_steps // (1 if settings.solver == FEW_STEP else 2))


def _prompts(prepared: Prepared) -> tuple[HeldOutPrompts, list[ConceptSlot]]:
    """Prompts of all concepts in turn, and the slots of those that pairs are made of."""
    settings, concepts = prepared.settings, prepared.concepts
    seed, domain = settings.seed + APART, prepared.opened.domain
    pairs = min(max(PAIRS, EACH * len(concepts)), settings.forget_count * len(concepts))
    named, paraphrased, slots = list[Asked](), list[Asked](), list[ConceptSlot]()
    for at, concept in enumerate(concepts):
        count = pairs // len(concepts) + (at < pairs % len(concepts))
        for forget, anchor in shuffled(concept.pairs, count, seed):
            template, word = concept.places[forget]
            named.append(_asked(concept, template, forget, forget, anchor))
            slots.append(ConceptSlot(template, word, concept.generic))
        paraphrased += _paraphrased(concept, count, seed)
    erased, half = prepared.erased, min(RETAINED, settings.retain_count) // 2
    captions = domain.captions(10 * half, seed, erased)
    open_ = [
        text for concept in concepts for text in domain.open_prompts(concept, seed=seed, count=half, erased=erased)
    ]
    retained = [*shuffled(captions, half, seed), *shuffled(open_, half, seed)]
    return HeldOutPrompts(named, paraphrased, retained), slots


def _asked(concept: Concept, template: str, prompt: str, named: str, anchor: str) -> Asked:
    vague = [word for word in concept.generic if word][:VAGUE]
    vague += [""] * (1 + VAGUE - len(vague))
    return Asked(
        prompt, named, concept.name, (anchor, *(" ".join(template.replace(SLOT, word).split()) for word in vague))
    )


def _paraphrased(concept: Concept, count: int, seed: int) -> list[Asked]:
    """Prompts with other names of a concept; none where it has none."""
    words, templates = concept.paraphrases, concept.templates
    if not words:
        return []
    chosen = zip(shuffled(words, count, seed), shuffled(templates, count, seed + 1), strict=True)
    return [
        _asked(concept, template, *(template.replace(SLOT, one) for one in (word, concept.words[0], concept.anchor)))
        for word, template in chosen
    ]


# ---------------------------------------------------------------- what is found


def unknown_of(original: Mapping[str, int], pictures: Mapping[str, int]) -> list[str]:
    """The concepts that the original's own pictures do not show."""
    return [name for name, count in original.items() if not count >= KNOWN * pictures[name]]


def can_tell(held: HeldOut) -> bool:
    """Whether anything can be found out: the original draws, and it draws the concepts."""
    return held.explained >= EXPLAINED and not unknown_of(held.original, held.pictures)


def prove(held: HeldOut, progress: Progress) -> Proof:
    """Look at the erased model, draw with it, and say what is so."""
    with progress("proof", 1) as tick:
        look, drawn, explained = held.look(), held.draw(), held.explained
        tick(1)
    return proof_of(look, drawn, original=held.original, pictures=held.pictures, explained=explained)


def proof_of(
    look: Look, drawn: Drawn, *, original: Mapping[str, int], pictures: Mapping[str, int], explained: float
) -> Proof:
    """The verdict on what was found.

    Gone: under no kind of words more than `MOST_LEFT` is left in noised latents, and of the pictures in which the original shows
    the concept at most a quarter do. The diffusion classifier errs on the side of the concept: where an erased model draws
    neither concept nor anchor it may still find the name the best of the words that it knows.
    """
    unknown = unknown_of(original, pictures)
    drawn_still = [name for name, count in drawn.shown.items() if count > DRAWN_LEFT * original[name]]
    known = explained >= EXPLAINED and not unknown
    gone = known and not look.stays and not drawn_still
    whole = drawn.changed <= CHANGED and max(look.moved.values()) <= MOVED
    if explained < EXPLAINED:
        sentence = f"cannot tell: the original finds {max(explained, 0):.0%} of the noise in its own pictures"
        remedy = "it was not trained, or is damaged: start from a model that draws"
    elif unknown:
        shows = f"{original[unknown[0]]} of {pictures[unknown[0]]} of the original's own pictures show it more than vaguer words would"
        sentence = f"nothing to erase: {unknown[0]}: {shows}"
        remedy = "name the concept as the model knows it, or take an anchor that is something else"
    else:
        sentence = _found(look, drawn, sum(original.values()), gone=gone, whole=whole)
        remedy = _remedy(look, drawn_still, whole=whole)
    return Proof(
        converged=gone and whole, gone=gone, whole=whole, sentence=sentence, remedy=remedy, left=look.left, moved=look.moved,
        pictures=sum(pictures.values()), original=sum(original.values()), shown=sum(drawn.shown.values()), changed=drawn.changed, explained=explained,
    )  # fmt: skip


def _found(look: Look, drawn: Drawn, original: int, *, gone: bool, whole: bool) -> str:
    """Gone or not, whole or not, by how much, and how that was found out."""
    drew = f"{sum(drawn.shown.values())} of the {original} pictures in which the original shows it"
    words = ", ".join(f"{share:.0%} under {KIND_WORDS[kind]}" for kind, share in look.left.items())
    rest = f"the rest {'whole' if whole else 'damaged'} (changed by {drawn.changed:.0%} of what another seed changes)"
    return f"{'gone' if gone else 'not gone'} (left in {drew}; in noised latents {words}), {rest}"


def _remedy(look: Look, drawn_still: list[str], *, whole: bool) -> str:
    """Which kind of prompt stayed, and the knob to turn; nothing where all is well."""
    if not whole:
        return "lower --lr or --forget-weight, or choose a smaller --scope"
    stays = look.stays
    if not stays and not drawn_still:
        return ""
    kind = max(stays, key=lambda one: look.left[one]) if stays else ""
    worst = f"it stays most under {KIND_WORDS[kind]}" if kind else f"{drawn_still[0]} stays in the pictures"
    return f"{worst}: raise --steps or --forget-weight, or choose --scope full"
