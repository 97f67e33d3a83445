"""How often an erasure runs the network, by stage, counted from its settings alone."""

from __future__ import annotations

from .diffusion.conditions import SHARES
from .diffusion.held_out import LEFT_AT, MOVED_AT, TOLD_AT
from .diffusion.probes import SHOWN_AT
from .methods.calibration import LOOKS
from .methods.project import RULES
from .methods.retain_losses import RETAIN_LOSSES
from .methods.scorers import SCORERS
from .proof import EACH, PAIRS, RETAINED, VAGUE, steps_of
from .settings import EraseSettings

LOOKED = len(LOOKS) + 2  # looks of a calibration that changes nothing


def evaluations_of(s: EraseSettings, *, two_passes: bool = True) -> dict[str, int]:
    """Forward passes of one sample each; those of scorers that take more than gradients, and of a Newton step, are not counted.

    In a repair the teacher counts for every sample, as it does in ours; a loss that asks it nothing takes fewer.

    Args:
        s: resolved.
        two_passes: see `Family`.
    """
    passes = 1 + (two_passes and s.guidance > 1)
    concepts, look = len(s.concepts) or 1, _look(s)
    steps = concepts * s.forget_count * (2 - bool(s.forget_images)) * s.sampling_steps
    steps += s.retain_count * (not s.retain_images) * (s.retain_sampling_steps or s.sampling_steps)
    opened = 0 if s.retain_images else int(s.open_share * s.retain_count)
    pairs, retained = _held_out(s)
    asked = 2 * pairs  # with paraphrases
    judged = (3 + VAGUE) * len(TOLD_AT) * asked  # under the name, the anchor and vaguer words
    answers = look + 2 * (len(LEFT_AT) + len(MOVED_AT)) * pairs + judged
    chooses = s.edit != "none" or s.train == "selection"
    found = {
        "data": steps * passes + opened * concepts * 2 * len(SHOWN_AT),
        "held out": s.verify * ((asked + pairs + 2 * retained) * steps_of(s) * passes + answers),
        "scores": chooses * SCORERS[s.scorer].passes * s.score_draws * s.batch_size,
        "repair": 2 * s.steps * (2 * s.batch_size + shown_twice(s)) + _beside(s) + looks(s),
        "proof": s.verify * ((asked + retained) * steps_of(s) * passes + look + judged + len(TOLD_AT) * asked),
    }
    return {stage: count for stage, count in found.items() if count}


def shown_twice(s: EraseSettings) -> int:
    """Retain samples of a batch that the loss shows twice."""
    return int(RETAIN_LOSSES[s.retain_loss].shown_twice * s.batch_size)


def looks(s: EraseSettings) -> int:
    """Of a repair, those of a calibration."""
    return s.calibrate * LOOKED * _look(s)


def _beside(s: EraseSettings) -> int:
    """Of a repair, the samples of memory gradients and of the adversary's own steps."""
    memory = -(-s.steps // s.memory_every) * s.batch_size if RULES[s.projection] is not None else 0
    return memory + (s.steps // s.relearn_every * s.batch_size // 2 if s.relearn_every else 0)


def _held_out(s: EraseSettings) -> tuple[int, int]:
    """Pairs, and prompts to be retained."""
    concepts = len(s.concepts) or 1
    return min(max(PAIRS, EACH * concepts), s.forget_count * concepts), min(RETAINED, s.retain_count) // 2 * 2


def _look(s: EraseSettings) -> int:
    """One look at what is held out."""
    pairs, retained = _held_out(s)
    return len(SHARES) * len(LEFT_AT) * pairs + 2 * len(MOVED_AT) * retained
