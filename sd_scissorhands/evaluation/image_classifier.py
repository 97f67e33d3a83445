"""Image classifiers of users, as judges: a transformers model in safetensors, or an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..disk import hash_files
from ..errors import UserError, reason
from ..files import check_regular, read_object
from ..machine import resolve_device
from ..models.config_bounds import check_bounds
from ..models.hub import fetch
from ..models.pretrained import WEIGHTS, check_safetensors, check_whole
from ..naming import may_be_on_hub

BATCH = 32  # pictures at once
FILES = ("config.json", WEIGHTS, "preprocessor_config.json")
ONNX = ".onnx"
MOST_SIDE = 4096  # pixels a side of an input


@dataclass(frozen=True)
class ImageClassifier:
    """Pictures in, a probability for each label out."""

    name: str  # as the user wrote it
    sha256: str  # of its files
    labels: tuple[str, ...]
    answers: Callable[[np.ndarray], np.ndarray]  # (B, h, w, 3) uint8 RGB -> (B, labels) float
    exclusive: bool = True  # whether one label alone is true of a picture, so that their probabilities sum to 1

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Probabilities of the labels, (B, labels) float64.

        By softmax, or by a sigmoid each where labels do not exclude each other.
        """
        found = [self.answers(pictures[at : at + BATCH]) for at in range(0, len(pictures), BATCH)]
        every = np.concatenate(found).astype(np.float64) if found else np.zeros((0, len(self.labels)))
        if not len(every):
            return every
        if not self.exclusive:
            return 1 / (1 + np.exp(-every.clip(-60, 60)))
        every = np.exp(every - every.max(1, keepdims=True))
        return every / every.sum(1, keepdims=True)


def open_classifier(source: str, device: str = "auto") -> ImageClassifier:
    """Load a classifier from a directory, the hub or an .onnx file, and try it once.

    Args:
        source: what `AutoModelForImageClassification.save_pretrained` wrote, with its image processor; or a file NAME.onnx, see
            `_onnx`.

    Raises:
        UserError: it cannot be had, is no image classifier, is pickled or damaged, or answers nonsense.
    """
    path = Path(source).expanduser()
    found = _onnx(source, path) if path.suffix == ONNX else _transformers(source, path, resolve_device(device))
    try:
        answer = found(np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)]))
    except Exception as error:  # whatever its parts raise
        raise UserError(
            f"--judge {source}: its parts do not fit together ({reason(error)}): save model and image processor of one model"
        ) from None
    if answer.shape != (2, len(found.labels)) or not np.isfinite(answer).all():
        raise UserError(
            f"--judge {source} answers {answer.shape} numbers, or NaN: it must give a finite number for each of its {len(found.labels)} labels"
        )
    return found


def _transformers(source: str, path: Path, device: str) -> ImageClassifier:
    directory = _locate(source, path)
    check_regular(directory)
    file = directory / "config.json"
    config = (
        read_object(file, f"name a directory that save_pretrained wrote with --judge {source}") if file.exists() else {}
    )
    check_bounds(file, config)
    kinds = config.get("architectures")
    if not any("ForImageClassification" in str(one) for one in (kinds if isinstance(kinds, list) else [])):
        raise UserError(
            f"--judge {source} is no image classifier (its config.json names {kinds}): name one that AutoModelForImageClassification loads"
        )
    check_safetensors(f"--judge {source}", directory)
    model, processor = _load(source, directory)
    model.to(device)
    named = model.config.id2label
    labels = tuple(str(named.get(n, n)) for n in range(model.config.num_labels))

    def answers(pictures: np.ndarray) -> np.ndarray:
        """Through its own processor."""
        import torch

        with torch.no_grad():
            ready = processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
            return model(ready["pixel_values"].to(device)).logits.float().cpu().numpy()

    return ImageClassifier(
        source,
        hash_files([file for name in FILES if (file := directory / name).exists()]),
        _distinct(source, labels),
        answers,
        exclusive=model.config.problem_type != "multi_label_classification",
    )


def _locate(source: str, path: Path) -> Path:
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(
            f"--judge {source} is a file of another kind: name a directory of an image classifier, a hub id, or a file NAME{ONNX}"
        )
    if not may_be_on_hub(source):
        raise UserError(
            f"--judge {source} is neither a judge (see --help) nor a directory: name one of the judges, a directory of an image classifier, or a hub id (owner/name)"
        )
    return fetch(source, None, list(FILES), flag="--judge")


def _load(source: str, directory: Path) -> tuple[Any, Any]:
    import transformers

    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            directory,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        processor = transformers.AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the two raise; the first line names the file
        raise UserError(
            f"--judge {source} cannot be loaded ({reason(error)}): download or save it again, with its image processor"
        ) from None
    check_whole(f"--judge {source}", report)
    return model.float().eval().requires_grad_(False), processor


@dataclass(frozen=True)
class _OnnxFacts:
    """What stands beside an ONNX file."""

    labels: tuple[str, ...]
    size: int  # pixels a side of its input
    mean: np.ndarray  # (3,) of the channels in [0, 1]
    std: np.ndarray


def _onnx(source: str, path: Path) -> ImageClassifier:
    """An ONNX file of one input (B, 3, size, size) float32 and one output (B, labels), see `_facts_beside`."""
    if not path.is_file():
        raise UserError(f"--judge {source} does not exist: name an ONNX file")
    beside = path.with_name(path.name + ".json")
    facts = _facts_beside(source, beside)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options)
    except Exception as error:  # onnxruntime has a dozen kinds of its own
        raise UserError(
            f"--judge {source} is no ONNX file that onnxruntime reads ({reason(error)}): export it again"
        ) from None
    name = session.get_inputs()[0].name

    def answers(pictures: np.ndarray) -> np.ndarray:
        """Resized, scaled and normalised as the file beside it says."""
        from PIL import Image

        side = (facts.size, facts.size)
        small = [np.asarray(Image.fromarray(one).resize(side, Image.Resampling.BICUBIC)) for one in pictures]
        ready = (np.stack(small) / 255 - facts.mean) / facts.std
        rows = ready.transpose(0, 3, 1, 2).astype(np.float32)
        batches = np.split(rows, len(rows)) if session.get_inputs()[0].shape[0] == 1 else [rows]
        found = np.concatenate([np.asarray(session.run(None, {name: batch})[0]) for batch in batches]).astype(
            np.float64
        )
        if found.min() >= 0 and np.allclose(
            found.sum(-1), 1, atol=1e-3
        ):  # probabilities already, whose logarithms are logits
            return np.log(found.clip(1e-12))
        return found

    return ImageClassifier(source, hash_files([path, beside]), facts.labels, answers)


def _facts_beside(source: str, file: Path) -> _OnnxFacts:
    """NAME.onnx.json: labels; size, 224 by default; mean and std, .5 by default.

    Raises:
        UserError: it is not there, or holds something else.
    """
    example = '{"labels": ["cat", "dog"], "size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    if not file.exists():
        raise UserError(f"--judge {source}: write {file} with its labels, such as {example}")
    values = read_object(file, f"write {example}")
    labels, size = values.get("labels"), values.get("size", 224)
    channels = [values.get(name, [0.5] * 3) for name in ("mean", "std")]
    numbers = all(
        isinstance(one, list) and len(one) == 3 and all(type(v) in (int, float) for v in one) for one in channels
    )
    texts = isinstance(labels, list) and all(isinstance(one, str) for one in labels)
    if not (texts and numbers and type(size) is int and 0 < size <= MOST_SIDE and all(channels[1])):
        raise UserError(f"--judge {source}: {file} holds something else than {example}")
    return _OnnxFacts(_distinct(source, labels or ()), size, *(np.array(one, np.float64) for one in channels))


def _distinct(source: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Labels of which each stands once: of several that are called alike, as ImageNet's two cranes, with their numbers."""
    if len(labels) < 2:
        raise UserError(f"--judge {source} has the labels {json.dumps(list(labels))}: it needs two or more")
    return tuple(f"{one} #{at}" if labels.count(one) > 1 else one for at, one in enumerate(labels))
