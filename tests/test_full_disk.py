"""No space left while saving: one line, nothing half-written, and what was there before stays whole, for every writer.

The kernel refuses (RLIMIT_FSIZE: no file may grow beyond so many bytes), as a full disk does, in the middle of a write.
"""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from sd_scissorhands.disk import write_json, write_tensors
from sd_scissorhands.erasure import erase
from sd_scissorhands.errors import UserError
from sd_scissorhands.models.apply import apply_delta
from sd_scissorhands.models.export import export
from sd_scissorhands.report import write_card, write_report

ROOM = 20_000  # bytes that a file may have: configs fit, weights do not


@contextmanager
def full_disk(room: int = ROOM):
    """Within it no file grows beyond `room`; Python ignores the signal, so that a write says what the disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def settings(short):
    """An erasure that also writes a delta."""
    return replace(short, steps=1, sampling_steps=1, score_draws=1, retain_count=4, train="selection")


@pytest.fixture(scope="module")
def run(tmp_path_factory, settings):
    """A finished run of seconds, with card and page."""
    folder = tmp_path_factory.mktemp("runs") / "heart"
    erase(settings, folder)
    write_card(folder)
    write_report(folder)
    return folder


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextmanager
def refused(name, *folders, room=ROOM):
    """What must fail for want of room: in one line that names the file, and the folders are what they were, byte by byte."""
    before = [content(folder) for folder in folders]
    with (
        pytest.raises(UserError, match=rf"cannot write \S*{name}: .*too large.*; free some space") as failed,
        full_disk(room),
    ):
        yield
    assert "\n" not in str(failed.value) and [content(folder) for folder in folders] == before


@pytest.mark.parametrize(
    ("to", "dtype", "room"),
    [("single-file", None, ROOM), ("single-file", "float16", ROOM), ("unet-only", "float16", ROOM), ("diffusers", "float16", ROOM), ("delta", None, 1000)],
)  # fmt: skip
def test_no_export_is_left_half_written(run, to, dtype, room, tmp_path):
    out = tmp_path / ("out" if to == "diffusers" else "out.safetensors")
    (tmp_path / "thesis").write_text("x")
    with refused(out.name, tmp_path, run, room=room):
        export(run, to, output=out, dtype=dtype)
    export(run, to, output=out, dtype=dtype)
    assert out.exists()


def test_apply_leaves_nothing_half_written(run, tmp_path):
    with refused("model", tmp_path, run):
        apply_delta("tiny", run / "delta.safetensors", output_dir=tmp_path / "model")
    told = apply_delta("tiny", run / "delta.safetensors", output_dir=tmp_path / "model")
    assert told.weights_sha256 == json.loads((run / "run.json").read_text())["result"]["weights_sha256"]


def test_an_erasure_that_cannot_save_its_model_continues_where_there_is_room(run, settings, tmp_path):
    folder = tmp_path / "heart"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "model")
    (folder / "delta.safetensors").unlink()
    manifest = json.loads((folder / "run.json").read_text())
    del manifest["stages"]["model"], manifest["result"]
    write_json(folder / "run.json", manifest)
    with refused("model", folder):
        erase(settings, folder, resume=True)
    erase(settings, folder, resume=True)
    for name in ("model/unet/diffusion_pytorch_model.safetensors", "delta.safetensors"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_a_stage_card_page_and_manifest_stay_as_they_were(run, tmp_path):
    folder = tmp_path / "heart"
    shutil.copytree(run, folder)
    for name, write in (
        ("README.md", lambda: write_card(folder)),
        ("report.html", lambda: write_report(folder)),
        ("run.json", lambda: write_json(folder / "run.json", {"long": ROOM * "x"})),
        ("selection.safetensors", lambda: write_tensors(folder / "selection.safetensors", {"x": torch.ones(ROOM)})),
    ):
        with refused(name, folder, room=1000):
            write()
