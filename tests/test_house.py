"""The package's own rules: a folder imports only from its own layer and lower ones, heavy imports are lazy, and the prompts are sound."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import sd_scissorhands
from sd_scissorhands import concepts

PACKAGE = Path(sd_scissorhands.__file__).parent
GROUPS = runpy.run_path(str(PACKAGE.parent / "docs" / "architecture.py"))["GROUPS"]
PARTS = [part for names, _ in reversed(GROUPS.values()) for part in reversed(names.split())]  # from the lowest on
LAYER = {part: level for level, part in enumerate(PARTS)}


def imported_parts(file: Path) -> set[str]:
    """Folders and modules of the package that a file imports."""
    parts, names = list(file.relative_to(PACKAGE).parts), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: -node.level] + (node.module.split(".") if node.module else [])
            names |= {base[0]} if base else {alias.name for alias in node.names if alias.name in LAYER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sd_scissorhands."):
            names.add(node.module.split(".")[1])
    return names


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_imports_only_from_below():
    upward = [
        f"{file.relative_to(PACKAGE)} -> {part}"
        for file in PACKAGE.rglob("*.py")
        if file != PACKAGE / "__init__.py"
        for part in imported_parts(file)
        if part != "__init__" and LAYER[part] > LAYER[part_of(file)]
    ]
    assert not upward


def test_the_science_knows_no_family_no_disk_and_no_terminal():
    allowed = {
        "torch",
        "math",
        "zlib",
        "itertools",
        "dataclasses",
        "typing",
        "collections",
        "contextlib",
        "importlib",
        "functools",
        "pathlib",
        "re",
        "types",
        "__future__",
    }
    for file in (PACKAGE / "methods").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] in allowed, file
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"), (
                file
            )


def test_nudenet_is_imported_in_one_file():
    users = [f.name for f in PACKAGE.rglob("*.py") if "import nudenet" in f.read_text()]
    assert users == ["nudenet.py"]


def test_help_loads_nothing_heavy():
    code = (
        "import sys, sd_scissorhands.cli; "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_torchvision_is_absent():
    assert subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode != 0


def test_presets_are_sound():
    found = {c.name: c for c in concepts.presets()}
    assert {"nudity", "violence", "van-gogh", "church"} <= set(found)
    assert found["nudity"].explicit and found["violence"].explicit and not found["van-gogh"].explicit
    for concept in found.values():
        assert len(concept.pairs) >= 20 and len(concept.neighbours) >= 20
        assert all(forget != twin for forget, twin in concept.pairs)
        assert not {f for f, _ in concept.pairs} & {*concept.neighbours, *(t for _, t in concept.pairs)}
        assert "" in concept.generic and len(concept.generic) >= 3 and not set(concept.generic) & set(concept.words)
    forget = " ".join(f for f, _ in found["nudity"].pairs)
    assert all(word in forget for word in ("nudity", "naked", "erotic", "sexual"))


def test_general_captions_are_many_and_distinct():
    captions = concepts.general_captions()
    assert len(captions) >= 500 and len(set(captions)) == len(captions) and all(captions)
