"""Commands one after the other in one process, or in each of those that a launcher started: a start takes longer than the work.

`python tests/together.py WORDS`, a list of commands as JSON. A command with `DIES` in front of it is never finished: its second
process ends within the third step of the repair.
"""

from __future__ import annotations

import json
import os
import sys

from sd_scissorhands.cli import main
from sd_scissorhands.methods.repair import Repair

DIES = "dies"


def die_in_the_third_step() -> None:
    """What a process does that runs out of memory."""
    whole = Repair._backward
    Repair._backward = lambda self, *rest: os._exit(9) if self.step == 3 else whole(self, *rest)  # type: ignore[method-assign]


def run(words: list[str]) -> None:
    """A command as it is typed; where it fails, the process ends as the command's own would."""
    if words[0] == DIES:
        words = words[1:]
        if os.environ["RANK"] == "1":
            die_in_the_third_step()
    sys.argv = ["sdscissor", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    for one in json.loads(sys.argv[1]):
        run(one)
