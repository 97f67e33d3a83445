"""Shared by all tests: one thread of the CPU, a short erasure, and a pipeline that is not of the embedded world."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # in what tests start too: workers share the cores
os.environ["SDSCISSOR_CACHE"] = "off"  # each run draws
os.environ["ACCELERATE_USE_CPU"] = "1"  # where there is a GPU as well: bytes are promised of the CPU

import pytest
import torch

from sd_scissorhands import forgetting
from sd_scissorhands.classifier import load as classifiers
from sd_scissorhands.cli import main
from sd_scissorhands.models import load as models
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.report import forgetting_page, page
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.tiny import MODEL_DIR

torch.set_num_threads(1)
gc.set_threshold(50_000, 20, 20)  # as of the command line, see `cli.main`

LONGEST = (  # seconds of one core, most first
    "test_erase.py", "test_attack.py", "test_golden.py", "test_team.py", "test_evaluate.py", "test_methods.py",
    "test_calibration.py", "test_families.py", "test_families_world.py", "test_text_attacks.py", "test_inputs.py",
    "test_compare.py", "test_robust.py", "test_cli.py", "test_report_pages.py", "test_judges.py", "test_formats.py",
    "test_speed.py", "test_forget.py", "test_fuzz.py", "test_seams.py", "test_tiny.py", "test_benchmarks.py",
    "test_deployment.py", "test_chain.py", "test_measured_before.py", "test_export.py", "test_hub.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that all workers end at the same time."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))


SHORT = dict(
    recipe="scissorhands-anchored", model="tiny", concepts=("heart",), forget_count=4, retain_count=8, sampling_steps=2, guidance=3.0, score_draws=2,
    top_k=0.01, steps=4, memory_every=2, batch_size=4, device="cpu", verify=False,
)  # fmt: skip


@pytest.fixture(scope="session")
def short() -> EraseSettings:
    """An erasure of seconds, for mechanics alone."""
    return EraseSettings(**SHORT)


@pytest.fixture
def sdscissor(monkeypatch, capsys) -> Callable[..., CompletedProcess[str]]:
    """The command as a script sees it, in this process: a program that starts and loads torch takes five seconds."""

    def run(*words: str) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["sdscissor", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return CompletedProcess(words, ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def few_pictures_beside_an_attack(monkeypatch) -> None:
    """IRA and CRA of 8 pictures, where nothing but the attack measures them: 120 take ten seconds."""
    monkeypatch.setattr("sd_scissorhands.attacks.attack.RETAIN_COUNT", 8)


class Pickled:
    """A pipeline of which copies are made: as `copy.deepcopy`, five times as fast. The tokenizer, which nothing changes, is shared."""

    def __init__(self, pipeline: Any) -> None:
        self.outside, places, stream = list[Any](), dict[int, int](), io.BytesIO()

        def outside(part: Any) -> int | None:
            if not isinstance(part, torch.Tensor) and part is not pipeline.tokenizer:
                return None
            if id(part) not in places:
                places[id(part)] = len(self.outside)
                self.outside.append(part)
            return places[id(part)]

        pickler = pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = outside
        pickler.dump(pipeline)
        self.rest = stream.getvalue()

    def copy(self) -> Any:
        made = [copy.deepcopy(part) if isinstance(part, torch.Tensor) else part for part in self.outside]
        unpickler = pickle.Unpickler(io.BytesIO(self.rest))
        unpickler.persistent_load = made.__getitem__
        return unpickler.load()


@pytest.fixture(scope="session", autouse=True)
def embedded_model_from_disk_once() -> Iterator[None]:
    """What diffusers makes of the embedded model's own directory, and a copy of it each time: a tenth of the seconds.

    All that the package does then, such as comparing every tensor with the files, is done each time.
    """
    made, load = dict[torch.dtype, Pickled](), models._load

    def loaded(files: PipelineDirectory, dtype: torch.dtype) -> Any:
        if files.directory != MODEL_DIR:
            return load(files, dtype)
        if dtype not in made:
            made[dtype] = Pickled(load(files, dtype))
        return made[dtype].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_load", loaded)
        yield


@pytest.fixture(scope="session", autouse=True)
def digits_trained_once() -> Iterator[None]:
    """Classifiers of digits by seed and pictures, each trained once: the same training gives the same weights."""
    made, first, retrain = dict[Any, Any](), classifiers.train_digits, forgetting.retrain

    def once(key: Any, train: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = train()
        return copy.deepcopy(made[key])

    def retrained(model: Any, data: Any, how: Any, *, seed: int, tick: Callable[[], None]) -> Any:
        key = (
            classifiers.hash_weights(model),
            data.pictures.numpy().tobytes(),
            data.labels.numpy().tobytes(),
            how,
            seed,
        )
        return once(key, partial(retrain, model, data, how, seed=seed, tick=tick))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "train_digits", lambda seed: once(seed, partial(first, seed)))
        patch.setattr(forgetting, "retrain", retrained)
        yield


@pytest.fixture(scope="session", autouse=True)
def figures() -> Iterator[dict[str, Any]]:
    """The figures of pages by what they show, each drawn once: matplotlib takes nine tenths of a page's seconds."""
    made = dict[str, Any]()

    def once(draw: Callable[..., Any], *shown: Any) -> Any:
        key = f"{draw.__name__} {shown!r}"
        if key not in made:
            made[key] = draw(*shown)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        for place in (page, forgetting_page):
            for name in [name for name in vars(place) if name.endswith("_plot")]:
                patch.setattr(place, name, partial(once, getattr(place, name)))
        yield made


@pytest.fixture
def four_at_a_time(monkeypatch) -> None:
    """Small pictures on a CPU are computed by four and not by sixteen, for attacks on four."""
    monkeypatch.setattr("sd_scissorhands.evaluation.batch_size.LANE", 4)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory) -> Path:
    """A Stable Diffusion pipeline that nothing marks as the embedded model."""
    folder = tmp_path_factory.mktemp("foreign") / "sd"
    shutil.copytree(MODEL_DIR, folder)
    for file in ("world.json", "judge.safetensors"):
        (folder / file).unlink()
    return folder


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory):
    """A CLIP of 16 dimensions, random but spread out enough that pictures and texts differ."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip") / "model"
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    layers = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_factor=4.0
    )
    words = dict(
        vocab_size=len(tokenizer), max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**layers, **words},
            vision_config={**layers, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)):
        part.save_pretrained(folder)
    return folder
