"""Draw docs/architecture.svg out of the package's imports: `python docs/architecture.py`.

A row is a layer, a box a group of folders and modules. The area of a box is its lines of code, unless it is too small for its text.
A group's layer is one above the highest that it imports from. Arrows show imports from the next row; those from lower rows are left out.
"""

import ast
import textwrap
from pathlib import Path

from matplotlib import pyplot as plt

PACKAGE = Path(__file__).parent.parent / "sd_scissorhands"
GROUPS = {  # name -> its folders and modules, what it does; each imports only what stands behind it, which tests/test_house.py checks
    "cli, api": ("__init__ __main__ cli show views terminal rehearsal then api demo pairs drawing publishing quiet", "Commands and Python functions: parse, call, print."),
    "comparison": ("comparison", "Many recipes on the same task, measured in the same way."),
    "report": ("report", "Reads results; writes the page and the model card."),
    "attacks": ("attacks", "Ways to bring a concept back. An attack is one file."),
    "erasure, forgetting": ("forecast evaluations erasure proof preparation forgetting", "One run in order: data, scores, selection, edit, repair, proof, model."),
    "evaluation": ("evaluation", "Counts what is left of a concept and of the rest. A metric or a judge is one file."),
    "classifier": ("classifier", "Image classifiers: data, model, task, figures."),
    "models": ("models", "Where models come from and go: hub, directories, single files, deltas, export, verify."),
    "diffusion": ("diffusion", "Denoisers, their data and training batches. A family of pipelines is one file."),
    "run": ("speeds stages tracking elapsed run measured_before drawn_before places lineage", "The run directory; resuming; what was drawn and measured before."),
    "settings": ("disk machine settings recipes naming pictures picture_folders", "Settings and recipes; devices, files and pictures."),
    "methods": ("methods", "The science, torch only. A scorer, an edit, an objective or a retain loss is one file."),
    "domains": ("domains concepts preset_check tiny", "What a model generates: concepts, prompts, judges, defaults. A domain is one file."),
    "declarations": ("declaration registry results classic files parsing errors", "Registries, declared settings, typed results."),
}  # fmt: skip
WIDTH, GAP, LOWEST, LINES = 9.0, 0.3, 0.5, 420  # inches; lines of code in a square inch


def measure() -> tuple[dict[str, int], dict[str, set[str]]]:
    """Lines of code of every group, and the groups that it imports from. A KeyError names what GROUPS leaves out."""
    group_of = {part: name for name, (parts, _) in GROUPS.items() for part in parts.split()}
    lines, imports = dict.fromkeys(GROUPS, 0), {name: set() for name in GROUPS}
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE).with_suffix("").parts
        group = group_of[path[0]]
        lines[group] += len(file.read_text().splitlines())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = [*path[: -node.level], *(node.module or "").split(".")][0]
                names = [above] if above else [alias.name for alias in node.names]
                imports[group] |= {group_of[name] for name in names if name in group_of} - {group}
    return lines, imports


def draw(lines: dict[str, int], imports: dict[str, set[str]]) -> None:
    """Full rows from the top layer to the lowest; `lines` and `imports` are those of `measure`."""
    level = lambda name: 1 + max(map(level, imports[name]), default=-1)  # noqa: E731
    rows = [[name for name in GROUPS if level(name) == one] for one in range(max(map(level, GROUPS)), -1, -1)]
    heights = [max(LOWEST, sum(lines[name] for name in row) / LINES / WIDTH) for row in rows]
    top = sum(heights) + GAP * (len(rows) - 1)
    axes = plt.figure(figsize=(WIDTH, top)).add_axes((0, 0, 1, 1), xlim=(-0.03, WIDTH + 0.03), ylim=(-0.03, top + 0.03))
    axes.axis("off")
    middle: dict[str, float] = {}
    for at, (row, height) in enumerate(zip(rows, heights, strict=True)):
        left, free = 0.0, WIDTH - 0.1 * (len(row) - 1)
        for name in row:
            width = free * lines[name] / sum(lines[other] for other in row)
            middle[name] = left + width / 2
            axes.add_patch(plt.Rectangle((left, top - height), width, height, fc="#e8eef7", ec="#334455"))
            text = textwrap.wrap(f"{GROUPS[name][1]} {lines[name]:,} lines.", int(width * 14.5))
            how = {"ha": "center", "fontsize": 8, "linespacing": 1.25}
            axes.text(middle[name], top - height / 2 + 0.08 * len(text), name, va="center", fontweight="bold", **how)
            axes.text(middle[name], top - height / 2 - 0.07, "\n".join(text), va="center", **how)
            for upper in (upper for upper in rows[at - 1] if at and name in imports[upper]):
                axes.annotate("", (middle[name], top), (middle[upper], top + GAP), arrowprops={"arrowstyle": "->"})
            left += width + 0.1
        top -= height + GAP
    plt.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "sd_scissorhands"
    draw(*measure())
