"""What a new user waits for, from a clone to the page: `python benchmarks/first_steps.py [STEP ...]`.

Every line is a process of its own, in a temporary directory with an empty cache; the commands are README's. Each step writes its row of
docs/benchmarks.md and docs/benchmarks.json, so that steps may be measured one by one; `install` fetches 2 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import rows
from rows import ROOT, Row, Turn, spread

NO_MODEL = ["sdscissor erase --model ./nowhere --concept heart", "sdscissor erase --model tiny --concept haert"]
QUICK = ["sdscissor --help", *NO_MODEL, "sdscissor erase --model tiny --concept heart --dry-run"]
SET_UP = {"clone": f"git clone --quiet {ROOT} clone", "install": "make --directory clone .venv/ready"}
STEPS = ("quick", "readme", *SET_UP)


def readme() -> list[str]:
    """The lines of README's first try, without the installation."""
    found = re.search(r"## Try it.*?```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return [line for line in found[1].splitlines() if line.startswith("sdscissor")]


def lines_of(steps: list[str]) -> Iterator[str]:
    """The lines of some steps; those of README are needed in order, so that one brings those before it along."""
    for step in steps:
        yield from {"quick": QUICK, "readme": readme()}.get(step) or [SET_UP[step]]


def waited(line: str, folder: Path) -> Row:
    """A row: seconds by the clock and of the CPU."""
    ours = [sys.executable, "-m", "sd_scissorhands"]
    words = shlex.split(line)
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*ours, *words[1:]] if words[0] == "sdscissor" else words, cwd=folder, env=environment, capture_output=True
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode and line not in NO_MODEL:
        raise SystemExit(f"{line} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shown = line.replace(f" {ROOT} clone", " sd_scissorhands").replace("--directory clone ", "")
    return rows.row(f"first: {shown}", [Turn(seconds, 0)], [], [], memory=False) | {"cpu_seconds": round(cpu, 2)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; without any quick and readme")
    parser.add_argument("--place", type=Path, help="work here and leave it, so that a later step finds the run")
    parser.add_argument("--only", default="", help="the lines alone that hold these words")
    given = parser.parse_args()
    if unknown := set(given.steps) - set(STEPS):
        parser.error(f"there is no step {min(unknown)}: choose from {', '.join(STEPS)}")
    with tempfile.TemporaryDirectory() as temporary:
        place = given.place or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        for line in lines_of(given.steps or ["quick", "readme"]):
            if given.only in line:
                rows.record([row := waited(line, place)])
                print(f"{row['name']}: {row['ours']:.1f} s, {row['cpu_seconds']} s of CPU", flush=True)
    rows.tabulate("first", "line; s; of these CPU, s", cells, note="Other work shared the machine.")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [f"`{rows.short(row)}`", spread(row["rounds"]["ours"]).split(" ")[0], f"{row['cpu_seconds']:.1f}"]


if __name__ == "__main__":
    main()
