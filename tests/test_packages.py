"""`make dist`: wheel and sdist into dist/, and what a stranger gets of them: every file, the commands, an erasure and its evaluation.

The wheel goes into an empty environment, torch first: whatever else asks for torch pulls gigabytes of another build. `--env DIR` keeps
that environment, and the demo can be run in it: DIR/bin/sdscissor demo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

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
"""


def build(what: str, source: Path, target: Path) -> Path:
    """A wheel or an sdist of a source tree, built in an environment of its own."""
    run(sys.executable, "-m", "build", f"--{what}", "--outdir", str(target), str(source))
    return next(target.glob("*.whl" if what == "wheel" else "*.tar.gz"))


def run(*command: str, cwd: Path | None = None, fails: int = 0) -> str:
    """What a command says on stdout; ends with all that it said if it ends otherwise than it should."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=clean | {"HF_HUB_OFFLINE": "1"})
    if done.returncode != fails:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def inside(archive: Path) -> set[str]:
    """The files of an archive as the package's tree has them; of an sdist without its first folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    return {"/".join(PurePosixPath(name).parts[1:]) for name in tarfile.open(archive).getnames()}


def wanted(wheel: bool) -> set[str]:
    """Every file of package and prompts that git knows, where an archive has it, and the licence."""
    tracked = run("git", "ls-files", "sd_scissorhands", "prompts", cwd=ROOT).splitlines()
    if not wheel:
        return {*tracked, "LICENSE", "README.md", "pyproject.toml", "Makefile", "tests/conftest.py"}
    return {f"sd_scissorhands/{name}" if name.startswith("prompts/") else name for name in tracked}


def check_files(archive: Path) -> None:
    """Ends if anything is missing from an archive, or if it holds what nobody should get."""
    files = inside(archive)
    if missing := wanted(archive.suffix == ".whl") - files:
        sys.exit(f"{archive.name} lacks {', '.join(sorted(missing)[:5])} and more: {len(missing)}")
    if not any(name.endswith("LICENSE") for name in files):
        sys.exit(f"{archive.name} has no LICENSE")
    parts = [part for name in files for part in PurePosixPath(name).parts]
    if odd := {"__pycache__", "runs", ".venv", "shared"} & set(parts):
        sys.exit(f"{archive.name} holds {', '.join(odd)}")
    print(f"{archive.name}: {len(files)} files, {archive.stat().st_size / 2**20:.1f} MiB")


def check_commands(env: Path, wheel: Path, folder: Path) -> None:
    """Install the wheel where nothing is, and use it somewhere else than in the source tree."""
    venv.create(env, with_pip=True, clear=True)
    pip = (str(env / "bin" / "pip"), "install", "--quiet")
    run(*pip, TORCH)
    run(*pip, str(wheel))
    sdscissor = str(env / "bin" / "sdscissor")
    (folder / "short.toml").write_text(SHORT)
    told = {
        "version": run(sdscissor, "--version", cwd=folder).strip(),
        "recipes": len(json.loads(run(sdscissor, "recipes", "--json", cwd=folder))),
        "presets": len(json.loads(run(sdscissor, "concepts", "--json", cwd=folder))["presets"]),
    }
    erase = (sdscissor, "erase", "--model", "tiny", "--concept", "heart", "--config", "short.toml")
    erased = json.loads(run(*erase, "--output-dir", "runs/heart", "--json", "--quiet", cwd=folder))
    judge = (sdscissor, "eval", "--model", "runs/heart/model", "--concept", "heart", "--limit", "8")
    judged = json.loads(run(*judge, "--json", "--quiet", cwd=folder))
    run(*judge, "--quiet", "--fail-below", "UA=1.1", cwd=folder, fails=3)
    run(sdscissor, "verify", "runs/heart", cwd=folder)
    has_report = (folder / "runs" / "heart" / "report.html").exists()
    told |= {"erased": erased["weights_sha256"] == judged["weights_sha256"], "UA": judged["UA"], "page": has_report}
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    packages = run(*pip[:1], "list", "--format", "freeze")
    if "torchvision" in packages or "nvidia" in packages:
        sys.exit("the environment has torchvision or CUDA packages in it")
    location = run(str(env / "bin" / "python"), "-c", "import sd_scissorhands as s; print(s.__file__)", cwd=folder)
    print(f"{len(packages.split())} packages; the package is {Path(location.strip()).relative_to(env.resolve())}")


def main() -> None:
    """Build both, look into both, build the sdist again, install and run the wheel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", type=Path, help="keep the environment here")
    env = parser.parse_args().env
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dist = ROOT / "dist"
        for old in [*dist.glob("*.whl"), *dist.glob("*.tar.gz")]:
            old.unlink()
        sdist, wheel = build("sdist", ROOT, dist), build("wheel", ROOT, dist)
        for archive in (sdist, wheel):
            check_files(archive)
        with tarfile.open(sdist) as archive_of_source:
            archive_of_source.extractall(folder / "unpacked", filter="data")
        again = build("wheel", next((folder / "unpacked").iterdir()), folder / "again")
        if inside(again) != inside(wheel):
            sys.exit(f"the wheel of the sdist differs: {', '.join(sorted(inside(again) ^ inside(wheel))[:5])}")
        print("the sdist builds the same wheel")
        check_commands((env or folder / "env").absolute(), wheel, folder)


if __name__ == "__main__":
    main()
