"""Shared by all tests: one thread, a short erasure, and a pipeline that is not of the embedded world."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.tiny import MODEL_DIR

torch.set_num_threads(1)

SHORT = dict(
    model="tiny", concepts=("heart",), forget_count=4, retain_count=8, sampling_steps=2, guidance=3.0, score_draws=2,
    top_k=0.01, steps=4, memory_every=2, batch_size=4, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="session")
def short() -> EraseSettings:
    """An erasure of seconds, for mechanics alone."""
    return EraseSettings(**SHORT)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory) -> Path:
    """A Stable Diffusion pipeline that nothing marks as the embedded model."""
    folder = tmp_path_factory.mktemp("foreign") / "sd"
    shutil.copytree(MODEL_DIR, folder)
    for file in ("world.json", "judge.safetensors"):
        (folder / file).unlink()
    return folder
