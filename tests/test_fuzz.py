"""Every reader on damaged files, by the thousand: it accepts them or refuses in one line, within 5 s and 1 GB.

A case is a number: it says which file is damaged and how. `python tests/test_fuzz.py NUMBER` repeats one with its traceback.
"""

from __future__ import annotations

import faulthandler
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

CASES, SLOW_CASES = 2_000, 80  # of these with readers that build a model
SECONDS, BYTES = 5, 2**30  # of one case: of the processor, and beyond what the process has taken before
WAITING = 60  # seconds after which a case hangs, on a machine that is busy with other things
HERE = Path(__file__)


class TooSlow(BaseException):
    """Out of a case's time; no reader may catch it."""


# ---------------------------------------------------------------- damage

DIGITS = "9" * 5_000
NUMBERS = (0, -1, 1e9, 10**9, 10**30, 2**63, -0.5, True)
VALUES = (
    None,
    "",
    "x",
    "\0",
    "\x1b[2J",
    "\u202e",
    "../../etc/passwd",
    "/dev/zero",
    "a" * 100_000,
    [],
    {},
    [[]],
    [{}],
    *NUMBERS,
)
RAW = (
    "NaN",
    "-Infinity",
    DIGITS,
    "1e999",
    "[" * 50_000,
    '{"a":' * 50_000,
    "[" * 5_000 + "]" * 5_000,
)  # no values of Python's
TEXTS = (
    "\ufeff",
    "\0",
    "\u2028",
    "\x85",
    "\x0b",
    "\r",
    "\r\n",
    '"',
    ",",
    ",,,,",
    "\n\n",
    "\ud800",
    DIGITS,
    "=",
    "[[",
    "#",
    "inf",
    "-1",
    "1e400",
)
BYTES_IN = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\0\0\1\0")


def spoiled_json(text: str, draw: random.Random) -> str:
    """JSON with a few values put in others' places, or with what JSON has not."""
    value = json.loads(text)
    for _ in range(draw.choice([1, 1, 2, 3])):
        holder, key = draw.choice(places(value) or [({"": value}, "")])
        match draw.randrange(4):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1:
                holder[key] = "\ufdd0"  # becomes one of RAW
            case _:
                holder[key] = draw.choice(VALUES)
    return json.dumps(value).replace('"\\ufdd0"', draw.choice(RAW))


def places(value: object) -> list[tuple[object, object]]:
    """Every (container, key) in a JSON value, at most 60 of each container."""
    keys = (
        list(value)[:60] if isinstance(value, dict) else range(min(len(value), 60)) if isinstance(value, list) else []
    )
    return [(value, key) for key in keys] + [inner for key in keys for inner in places(value[key])]


def spoiled_bytes(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or put in, more of them near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) if draw.random() < 0.6 else min(len(data), 120)) if data else 0
        match draw.randrange(6):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                data[at : at + 4] = draw.choice(BYTES_IN)
            case 2:
                del data[at : at + draw.randrange(1, 40)]
            case 3:
                data[at:at] = data[draw.randrange(len(data)) :][: draw.randrange(1, 60)] if data else b""
            case 4:
                data[at:at] = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
            case 5 if draw.random() < 0.4:
                del data[at:]
    return bytes(data)


def spoiled_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header is JSON with other values, and as long as it says."""
    length = int.from_bytes(content[:8], "little")
    header = spoiled_json(content[8 : 8 + length].decode(), draw).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def replace_by_no_file(path: Path, draw: random.Random) -> None:
    """Something of the name that is no regular file."""
    path.unlink()
    match draw.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path)
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.write_bytes(b"")


def spoil(path: Path, draw: random.Random) -> None:
    """Damage a file, in the way of its format or any other."""
    content = path.read_bytes()
    if draw.random() < 0.1:
        return replace_by_no_file(path, draw)
    if path.suffix == ".safetensors" and draw.random() < 0.6:
        content = spoiled_header(content, draw)
    elif path.suffix in (".json", ".jsonl") and draw.random() < 0.8:
        first, newline, rest = (
            content.decode().partition("\n") if path.suffix == ".jsonl" else (content.decode(), "", "")
        )
        content = (spoiled_json(first, draw) + newline + rest).encode()
        if path.suffix == ".jsonl" and draw.random() < 0.6:
            content = "\n".join([first, *(spoiled_json(line, draw) for line in rest.splitlines())]).encode()
    else:
        content = spoiled_bytes(content, draw)
    path.write_bytes(content)
    return None


# ---------------------------------------------------------------- readers

Reader = tuple[
    Path, str, Callable[[Path], object]
]  # folder, pattern of the files that are damaged, what reads the folder


def quick_readers(root: Path) -> list[Reader]:
    """A folder of sound files for every reader that builds no model."""
    import numpy as np
    import torch
    from PIL import Image

    from sd_scissorhands.classifier.reading import read_folder, read_indices, read_npz
    from sd_scissorhands.concepts import read_prompts
    from sd_scissorhands.disk import read_tensors, write_json, write_tensors
    from sd_scissorhands.evaluation.prompts import read_i2p, read_numbers
    from sd_scissorhands.evaluation.records import Ledger
    from sd_scissorhands.lineage import runs_behind
    from sd_scissorhands.models.delta import Origin, read_delta, write_delta
    from sd_scissorhands.models.pipeline_directory import PipelineDirectory
    from sd_scissorhands.models.tensor_files import TensorFile, hash_tensors
    from sd_scissorhands.picture_folders import list_pictures
    from sd_scissorhands.pictures import PictureError, read_many
    from sd_scissorhands.results.manifest import BaseModel, Manifest
    from sd_scissorhands.run import Run
    from sd_scissorhands.settings import EraseSettings, load_settings
    from sd_scissorhands.tiny import MODEL_DIR

    def folder(name: str) -> Path:
        (root / name).mkdir(parents=True)
        return root / name

    def text(name: str, content: str) -> Path:
        (folder(name) / name).write_text(content)
        return root / name

    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    tensors = folder("tensors")
    write_tensors(
        tensors / "a.safetensors",
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.int32)},
        {"format": "pt"},
    )
    delta, base = folder("delta"), {"w": torch.zeros(40)}
    changed = {"w": torch.zeros(40).index_fill(0, torch.tensor([3, 9]), 1.0)}
    origin = Origin("m", hash_tensors(base.items()), hash_tensors(changed.items()), "r", ("c",), 0)
    write_delta(delta / "d.safetensors", changed, base=base, origin=origin)
    pipeline = root / "pipeline"
    shutil.copytree(MODEL_DIR, pipeline)
    shards = root / "shards"
    shutil.copytree(MODEL_DIR, shards)
    (unet,) = (shards / "unet").glob("*.safetensors")
    names = sorted(read_tensors(unet)[0])
    for n, own in enumerate((names[::2], names[1::2]), 1):
        write_tensors(
            unet.with_name(f"diffusion_pytorch_model-0000{n}-of-00002.safetensors"),
            {name: torch.zeros(2) for name in own},
        )
    where = {name: f"diffusion_pytorch_model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    write_json(unet.with_name("diffusion_pytorch_model.safetensors.index.json"), {"metadata": {}, "weight_map": where})
    unet.unlink()
    npz = folder("npz")
    np.savez_compressed(
        npz / "a.npz", pictures=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4), names=np.array(["a", "b", "c", "d"])
    )
    pictures = folder("pictures")
    for name in ("a.png", "b.jpg", "c.gif", "d.webp", "e.tif"):
        Image.fromarray(pixels).save(pictures / name)
    classes = folder("classes/train/a").parent.parent
    Image.fromarray(pixels).save(classes / "train" / "a" / "0.png")
    run = folder("run")
    source = BaseModel("tiny", "0" * 64)
    manifest = Manifest(
        EraseSettings(concepts=("heart",), model="tiny").to_json(),
        source,
        {"data": {"file": "data.safetensors", "seconds": 1.0}},
        1.0,
    )
    write_json(run / "run.json", manifest.to_json())
    ledger, header = folder("ledger"), {"weights_sha256": "0", "judges": [{"judge": "canvas"}]}
    lines = [header, *({"number": n, "prompt": "a", "seed": n, "thumb": "AAAA", "found": []} for n in range(5))]
    (ledger / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = folder("summary")
    write_json(
        summary / "summary.json",
        {"kind": "images", "images": 3, "boxes": {"FACE_MALE": 2}, "threshold": 0.6, "sweep": []},
    )
    shutil.copy(run / "run.json", summary)
    toml = 'concept = ["heart"]\nmodel = "tiny"\nsteps = 20\nlr = 1e-4\n'

    def open_tensors(path: Path) -> None:
        file = TensorFile.open(path / "a.safetensors")
        for key in file.entries:
            file.shape(key), file.tensor(key), list(file.raw(key))

    def read_pictures(path: Path) -> None:
        for _, found in read_many(list_pictures(path).files):
            assert not isinstance(found, PictureError) or "\n" not in str(found)

    def evaluation(path: Path) -> None:
        from sd_scissorhands.report.reading import read_run

        read_run(path)

    return [
        (tensors, "*", open_tensors), (tensors, "*", lambda path: read_tensors(path / "a.safetensors")),
        (delta, "*", lambda path: read_delta(path / "d.safetensors")),
        (pipeline, "*.json", lambda path: PipelineDirectory(path).check()),
        (pipeline, "*/*config.json", lambda path: PipelineDirectory(path).check()),
        (pipeline, "*/*.safetensors", lambda path: PipelineDirectory(path).components),
        (shards, "unet/*.json", lambda path: [PipelineDirectory(path).check(), PipelineDirectory(path).denoiser_tensors()]),
        (text("i2p.csv", 'prompt,categories,sd_seed,sd_guidance_scale\n"a, b",sexual,12,7.5\n"c\nd",hate,13,7\n'), "*", lambda path: read_i2p(path / "i2p.csv")),
        (text("own.csv", "prompt,seed\na heart,1\n"), "*", lambda path: read_prompts(path / "own.csv", "--prompts")),
        (text("prompts.txt", "a heart\n\na ring\r\nein Bär\n"), "*", lambda path: read_prompts(path / "prompts.txt", "--prompts")),
        (text("numbers.txt", "0\n1 2\n"), "*", lambda path: read_numbers(path / "numbers.txt", rows=9)),
        (text("indices.txt", "0\n1\n2\n"), "*", lambda path: read_indices(path / "indices.txt")),
        (text("settings.toml", toml), "*", lambda path: load_settings(EraseSettings, path / "settings.toml", {})),
        (pictures, "*", read_pictures), (npz, "*", lambda path: read_npz(path / "a.npz")),
        (classes, "train/a/*", lambda path: read_folder(path, ["a"], lambda image: torch.zeros(1))),
        (run, "*", lambda path: [Run.read(path), runs_behind(str(path / "model"))]),
        (ledger, "*", lambda path: Ledger(path / "l.jsonl", header).in_order()), (summary, "*", evaluation),
    ]  # fmt: skip


def slow_readers(root: Path) -> list[Reader]:
    """Readers that build a model."""
    from sd_scissorhands.classifier.load import open_classifier
    from sd_scissorhands.models.load import open_pipeline
    from sd_scissorhands.tiny import MODEL_DIR

    loaded, digits = root / "loaded", root / "digits"
    shutil.copytree(MODEL_DIR, loaded)
    open_classifier("digits", cache_dir=root)
    (root / "digits-0").rename(digits)
    draw = lambda path: open_pipeline(str(path)).family.ids(["a heart"])  # noqa: E731
    return [
        (loaded, "*/*config.json", draw), (loaded, "tokenizer/*", draw), (loaded, "*/*.safetensors", draw),
        (digits, "*", lambda path: open_classifier(str(path))),
    ]  # fmt: skip


# ---------------------------------------------------------------- cases


def run_case(number: int, readers: list[Reader], slow: list[Reader]) -> str | None:
    """Damage one file, read it, mend it; what was wrong with the reader, if anything."""
    from sd_scissorhands.errors import UserError

    draw = random.Random(number)
    folder, pattern, read = draw.choice(slow) if number % (CASES // SLOW_CASES) == 0 else readers[number % len(readers)]
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    path = draw.choice(files)
    content, began = path.read_bytes(), time.process_time()
    spoil(path, draw)
    what = f"case {number}, {path.relative_to(folder.parent)}"
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(WAITING, exit=True)
    print(what, file=sys.stderr)
    try:
        read(folder)
    except UserError as error:
        return None if "\n" not in str(error) and str(error) else f"{what}: not one line: {error!r}"
    except (Exception, TooSlow) as error:
        if len(sys.argv) == 2:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{what}: {type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}, line {place.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(content)
    return f"{what}: {time.process_time() - began:.1f} s" if time.process_time() - began > SECONDS else None


def main(numbers: list[int]) -> None:
    """Run cases in this process, which may not take more than `BYTES` beyond what it begins with."""

    def too_slow(*_: object) -> None:
        raise TooSlow(f"over {SECONDS} s")

    gc.set_threshold(50_000, 20, 20)  # as of the command line, see `cli.main`
    signal.signal(signal.SIGPROF, too_slow)
    with tempfile.TemporaryDirectory() as folder:
        readers, slow = quick_readers(Path(folder) / "quick"), slow_readers(Path(folder) / "slow")
        for _, _, read in slow:
            read(Path(folder) / "slow" / ("digits" if read is slow[-1][2] else "loaded"))  # what is imported only then
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, resource.RLIM_INFINITY))
        wrong = [found for number in numbers if (found := run_case(number, readers, slow))]
    print(json.dumps(wrong))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited and measured as on Linux")
def test_damaged_files_are_read_or_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, HERE, "0", str(CASES)], capture_output=True, text=True, cwd=HERE.parent.parent
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    wrong = json.loads(done.stdout.strip().splitlines()[-1])
    assert not wrong, "\n".join(
        [*wrong, f"repeat one with: python tests/test_fuzz.py NUMBER ({len(wrong)} of {CASES})"]
    )


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    first, *last = map(int, sys.argv[1:])
    sys.stdout, out = io.StringIO(), sys.stdout  # libraries print
    logged = sys.stdout
    try:
        main(list(range(first, *last)) if last else [first])
    finally:
        sys.stdout = out
        print(logged.getvalue())
