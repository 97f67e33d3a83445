"""Four prompts as the original and the erased model draw them under the same seeds, at the end of `sdscissor erase`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .disk import atomic
from .drawing import pictures
from .evaluation.evaluate import About, about
from .lineage import erased_from
from .models.locate import convert_single_files, profile_of_model
from .preset_check import name_of
from .proof import APART
from .results.erase import EraseResult
from .results.pairs import FILE, FOLDER, Pair, Pairs
from .run import Progress
from .settings import EraseSettings

COUNT, NAMING, MOST_NAMING = 4, 2, 3  # pairs; of them those whose prompt names a concept; the same of several concepts


def draw_pairs(erased: EraseResult, settings: EraseSettings, progress: Progress) -> str | None:
    """Draw the pairs into the run, unless they are there; why they were not drawn, in a sentence.

    Everything is opened anew from the disk, so that the run's own weights and seeds are not touched. Pictures of an explicit
    concept are blurred before they are written.
    """
    run, model = Path(erased.run_dir), erased.model_dir
    if Pairs.of(run, erased.weights_sha256):
        return None
    known = [about(name, model, anchor=settings.anchor) for name in erased.concepts]
    prompts = _prompts(known, model, settings.seed)
    if erased.device == "cpu" and profile_of_model(model) == "large":
        words = shlex.join(["sdscissor", "draw", str(run), "--prompt", prompts[0]])
        return f"no pictures before and after were drawn, which takes a CPU minutes at this size: {words}"
    convert_single_files(settings.model_config, known[0].baseline)
    rows = [(prompt, seed) for seed, prompt in enumerate(prompts)]
    sides = {
        name: pictures(which, rows, device=erased.device, progress=progress)
        for name, which in (("original", known[0].baseline), ("model", model))
    }
    _write(run, erased, rows, sides)
    return None


def _prompts(known: Sequence[About], model: str, seed: int) -> list[str]:
    """Two that name a concept, of several concepts one each and up to three; then a near neighbour's and any caption's."""
    erased, each = erased_from(model), list[dict[str, list[str]]]()
    for one in known:
        others = tuple(name for name in erased if name_of(name) != one.concept.name)
        each.append(one.domain.evaluation_prompts(one.concept, seed=seed + APART, count=COUNT, erased=others))
    naming = [texts["forget"][n] for n in range(NAMING) for texts in each if len(texts["forget"]) > n]
    chosen = naming[: max(NAMING, min(len(known), MOST_NAMING))]
    rest = [*each[0]["retain"][:1], *each[0]["caption"]]
    return [*chosen, *rest[: COUNT - len(chosen)]]


def _write(run: Path, erased: EraseResult, rows: Sequence[tuple[str, int]], sides: dict[str, list[np.ndarray]]) -> None:
    """The pictures and what they are of, whole or not at all."""
    from PIL import Image

    from .pictures import blurred

    blur = erased.explicit is not False
    each = (Pair(prompt, seed, f"{n}-original.png", f"{n}-model.png") for n, (prompt, seed) in enumerate(rows))
    found = Pairs(erased.weights_sha256, blur, tuple(each))
    with atomic(run / FOLDER) as folder:
        folder.mkdir()
        for side, drawn in sides.items():
            for n, pixels in enumerate(drawn):
                picture = Image.fromarray(pixels)
                (blurred(picture) if blur else picture).save(folder / f"{n}-{side}.png")
        (folder / FILE).write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
