"""The yardstick of relearning in docs/experiments.md: `python experiments/unseen.py`, half an hour on one core.

No erasure can be expected to be slower to relearn than a model that never knew the concept. Here such a model is trained: the
embedded model's UNet from nothing, on its own drawings less those that show a concept; the other parts are the shipped ones.
Two concepts, of two domains, are left out of one training.
"""

from __future__ import annotations

import subprocess
import sys

from robust import JUDGED, ONE, RELEARNED, RELEARNED_SLOWLY, ROOT, THREE, once
from runner import Options, Run, Table, main, measured, share, steps_back, success, text_of

CONCEPTS = ("ring", "yellow")
STEPS = 4000  # of training; the shipped model had 7,000
MEASURES = JUDGED | once(ONE) | once(THREE) | RELEARNED | RELEARNED_SLOWLY
TABLE = Table(
    [Run("never seen", {}, CONCEPTS, 0, MEASURES)],
    ("concept",),
    {
        "relearn steps at 3e-4": steps_back("relearn"),
        "at 1e-4": steps_back("relearn-slowly"),
        **{name.replace("_", " "): share("canvas", name) for name in ("UA", "UA_synonyms", "UA_generic", "IRA", "CRA")},
        "embedding ASR": success("embedding-once"),
        "three embeddings ASR": success("embedding-three-once"),
    },
)


def unseen(options: Options) -> str:
    """The table, of a model that is trained unless it is there."""
    run = options.runs(TABLE)[0]
    folder = run.folder(options.root)
    if not (folder / "model").exists():
        few = ["--steps", "2", "--drawings", "400"] if options.smoke else ["--steps", str(STEPS)]
        without = [word for concept in CONCEPTS for word in ("--without", concept)]
        places = ["--work", str(folder / "training"), "--output", str(folder / "model")]
        subprocess.run([sys.executable, "-m", "sd_scissorhands.tiny.train", *without, *few, *places], check=True)
    rows = [
        {"concept": concept, "seed": 0, **measured(str(folder / "model"), concept, 0, folder / concept, run.measures)}
        for concept in CONCEPTS
    ]
    return text_of(TABLE, rows)


if __name__ == "__main__":
    main(__doc__, {"unseen": unseen}, ROOT)
