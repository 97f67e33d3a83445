"""Wheel and sdist, built into dist/, and what a stranger gets of them: every file, the commands, an erasure and its evaluation.

The wheel goes into an empty environment, torch first: whatever else asks for torch pulls gigabytes of another build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
SHORT = """recipe = "scissorhands-anchored"
forget_count = 4
retain_count = 8
sampling_steps = 2
score_draws = 1
steps = 2
batch_size = 2
memory_every = 2
verify = false
"""


def run(*command: object, cwd: Path | None = None, code: int = 0) -> str:
    """What a command prints on stdout, if it ends as it should."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=clean | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == code, f"{' '.join(words)}\nended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(what: str, source: Path, target: Path) -> Path:
    """A wheel or an sdist of a source tree, built in an environment of its own."""
    run(sys.executable, "-m", "build", f"--{what}", "--outdir", target, source)
    return next(target.glob("*.whl" if what == "wheel" else "*.tar.gz"))


def files_of(archive: Path) -> set[str]:
    """The files of an archive as the package's tree has them; of an sdist without its first folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    return {"/".join(PurePosixPath(name).parts[1:]) for name in tarfile.open(archive).getnames()}


@pytest.fixture(scope="module")
def sdist() -> Path:
    for old in (ROOT / "dist").glob("*.tar.gz"):
        old.unlink()
    return build("sdist", ROOT, ROOT / "dist")


@pytest.fixture(scope="module")
def wheel() -> Path:
    for old in (ROOT / "dist").glob("*.whl"):
        old.unlink()
    return build("wheel", ROOT, ROOT / "dist")


def test_both_hold_every_file_and_nothing_else(sdist, wheel):
    tracked = run("git", "ls-files", "sd_scissorhands", "prompts", cwd=ROOT).splitlines()
    inside = {f"sd_scissorhands/{name}" if name.startswith("prompts/") else name for name in tracked}
    assert inside <= files_of(wheel)
    assert {*tracked, "LICENSE", "README.md", "pyproject.toml", "Makefile", "tests/conftest.py"} <= files_of(sdist)
    for archive in (sdist, wheel):
        assert any(name.endswith("LICENSE") for name in files_of(archive))
        parts = {part for name in files_of(archive) for part in PurePosixPath(name).parts}
        assert not parts & {"__pycache__", "runs", ".venv", "shared"}


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    again = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "again")
    assert files_of(again) == files_of(wheel)


def test_the_wheel_works_where_nothing_else_is(wheel, tmp_path):
    env = tmp_path / "env"
    venv.create(env, with_pip=True, clear=True)
    pip, sdscissor = env / "bin" / "pip", env / "bin" / "sdscissor"
    for package in (TORCH, wheel):
        run(pip, "install", "--quiet", package)
    (tmp_path / "short.toml").write_text(SHORT)
    assert run(sdscissor, "--version", cwd=tmp_path).strip()
    assert json.loads(run(sdscissor, "recipes", "--json", cwd=tmp_path))
    assert json.loads(run(sdscissor, "concepts", "--json", cwd=tmp_path))["presets"]
    erase = (sdscissor, "erase", "--model", "tiny", "--concept", "heart", "--config", "short.toml")
    erased = json.loads(run(*erase, "--output-dir", "runs/heart", "--json", "--quiet", cwd=tmp_path))
    judge = (sdscissor, "eval", "--model", "runs/heart/model", "--concept", "heart", "--limit", "8", "--quiet")
    judged = json.loads(run(*judge, "--json", cwd=tmp_path))
    assert erased["weights_sha256"] == judged["weights_sha256"]
    run(*judge, "--fail-below", "UA=1.1", cwd=tmp_path, code=3)
    run(sdscissor, "verify", "runs/heart", cwd=tmp_path)
    assert (tmp_path / "runs" / "heart" / "report.html").exists()
    packages = run(pip, "list", "--format", "freeze")
    assert "torchvision" not in packages and "nvidia" not in packages
    location = run(env / "bin" / "python", "-c", "import sd_scissorhands as s; print(s.__file__)", cwd=tmp_path)
    assert Path(location.strip()).is_relative_to(env.resolve())
