"""Opening and saving classifiers: the embedded one, any transformers classifier, or a torch module of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..disk import atomic, share, write_json
from ..errors import UserError, reason
from ..files import check_regular, read_object
from ..models.config_bounds import check_bounds
from ..models.hub import fetch
from ..naming import absolute, may_be_on_hub
from ..recipes import BATCH_NORM
from ..results.manifest import BaseModel
from ..settings import DIGITS
from .preprocess import PREPROCESSING, prepare
from .reading import digits
from .train import Training, seeded, train

DIGITS_PREPROCESSING = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False,
}  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode and what it is."""

    model: nn.Module
    name: str  # as the user wrote it
    names: tuple[str, ...]  # of the classes
    preprocessing: dict[str, Any] | None  # preprocessor_config.json; None where there is none
    weights: str  # sha256, see `hash_weights`

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture as the model takes it, see `prepare`: (c, h, w) float32.

        Raises:
            UserError: there is no preprocessor_config.json, or it asks for something unknown.
        """
        if self.preprocessing is None:
            raise UserError(
                f"--model {self.name} has no {PREPROCESSING}, so pictures cannot be prepared for it: add one, or give floats as .npz"
            )
        return prepare(image, self.preprocessing, getattr(getattr(self.model, "config", None), "num_channels", 3))

    @property
    def identity(self) -> BaseModel:
        """What a run's manifest says of its base model."""
        return BaseModel(absolute(self.name), self.weights)


def open_classifier(
    name: str,
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
) -> Classifier:
    """A classifier in float32 and in eval mode.

    Args:
        name: "digits" (the embedded one), a directory, or a hub id of a transformers image classifier.
        cache_dir: where the embedded model, once trained, is stored; None: it is trained again, which takes seconds.
        seed: of the embedded model's training.

    Raises:
        UserError: no such model, another family, pickled or damaged weights, weights that do not fill the model, NaN.
    """
    found = _digits(cache_dir, seed) if name == DIGITS else _load(name, _locate(name, revision))
    found.model.to(device)
    return found


def wrap(module: nn.Module, names: Sequence[str], *, name: str = "torch module") -> Classifier:
    """A torch module of one's own, whose forward takes (B, c, h, w) and gives logits (B, classes) or has `.logits`.

    It is put in eval mode. Saved by `save_classifier`, its weights are a plain model.safetensors.
    """
    return Classifier(module.eval(), name, tuple(names), None, hash_weights(module))


def save_classifier(opened: Classifier, folder: Path) -> None:
    """Write the model as it stands in the format that it came in: safetensors, configuration and preprocessing.

    Raises:
        UserError: the disk refused; what stood there before is untouched.
    """
    from safetensors.torch import save_model
    from transformers import PreTrainedModel

    with atomic(folder) as new:
        new.mkdir()
        if isinstance(opened.model, PreTrainedModel):
            opened.model.save_pretrained(new)
        else:
            save_model(opened.model, str(new / "model.safetensors"))
            write_json(new / "classes.json", list(opened.names))
        if opened.preprocessing is not None:
            write_json(new / PREPROCESSING, opened.preprocessing)
        share(new)


def hash_weights(module: nn.Module) -> str:
    """sha256 over names, types, shapes and values of all parameters and buffers, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def profile_of_model(name: str, revision: str | None = None) -> str:
    """Which of `recipes.CLASSIFIERS` a model is, by the names of its tensors alone.

    Raises:
        UserError: no such model, or a file of weights that is damaged.
    """
    if name == DIGITS:
        return "classifier"
    from safetensors import SafetensorError, safe_open

    directory, keys = _locate(name, revision), list[str]()
    _check_files(directory)
    for file in sorted(directory.glob("model*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                keys += opened.keys()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({reason(error)}): download it again") from None
    return profile_of(keys)


def profile_of(keys: Iterable[str]) -> str:
    """Which of `recipes.CLASSIFIERS` has tensors of these names."""
    return BATCH_NORM if any(key.endswith("running_mean") for key in keys) else "classifier"


# ---------------------------------------------------------------- opening


def _digits(cache_dir: Path | None, seed: int) -> Classifier:
    stored = cache_dir / f"digits-{seed}" if cache_dir else None
    if stored is not None and (stored / "config.json").exists():
        return _load(DIGITS, stored)
    model = train_digits(seed)
    names = tuple(model.config.id2label[number] for number in range(10))
    found = Classifier(model, DIGITS, names, DIGITS_PREPROCESSING, hash_weights(model))
    if stored is not None:
        save_classifier(found, stored)
    return found


def train_digits(seed: int = 0) -> Any:
    """The embedded model, trained from nothing on the digits' training pictures.

    Measured over seeds 0 to 4: all training pictures right (mean loss .0008), 98.7 to 99.3 % of the test pictures;
    about 3.5 s on one core.
    """
    from .model import SmallCNN, SmallCNNConfig

    data = digits().train
    labels = dict(enumerate(data.names))
    with seeded(seed, torch.device("cpu")):
        model = SmallCNN(SmallCNNConfig(id2label=labels, label2id={name: number for number, name in labels.items()}))
    train(model, data, Training(), seed=seed)
    return model


def _locate(name: str, revision: str | None) -> Path:
    """The directory of a model, local or fetched from the hub into its cache."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"--model {name} is a file: name a directory with config.json and model.safetensors")
    if not may_be_on_hub(name):
        raise UserError(
            f"--model {name} does not exist: name a transformers directory, a hub id (owner/name), or {DIGITS}"
        )
    patterns = ["config.json", PREPROCESSING, "model*.safetensors", "model.safetensors.index.json"]
    return fetch(name, revision, patterns)


def _load(name: str, directory: Path) -> Classifier:
    _check_files(directory)
    from transformers import AutoConfig, AutoModelForImageClassification

    from . import model as _registered  # noqa: F401

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        known = type(config) in AutoModelForImageClassification._model_mapping
        if known:
            model, facts = AutoModelForImageClassification.from_pretrained(
                directory, config=config, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                torch_dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise UserError(
            f"{directory} cannot be loaded ({reason(error)}): save the model again, or use another"
        ) from None
    if not known:
        raise UserError(f"{directory} is a {config.model_type}: no image classifier of transformers, name one")
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if facts.get(key):
            what = {"missing_keys": "lacks", "unexpected_keys": "has, beyond the model,"}.get(
                key, "has in another shape"
            )
            raise UserError(
                f"{directory}: model.safetensors {what} {min(facts[key])}: its config.json does not fit its weights"
            )
    _check_finite(model, directory)
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return Classifier(model.eval(), name, names, _config(directory / PREPROCESSING), hash_weights(model))


def _check_files(directory: Path) -> None:
    """What can be known without loading anything."""
    check_regular(directory)
    if (directory / "model_index.json").exists():
        raise UserError(f"{directory} is a diffusers pipeline, not a classifier: sdscissor erase works on it")
    if _config(directory / "config.json") is None:
        raise UserError(f"{directory} is no transformers model: it has no config.json")
    if not list(directory.glob("model*.safetensors")):
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
        why = (
            "holds only pickled weights, which are never loaded: save it as safetensors"
            if pickled
            else "has no model.safetensors: it is incomplete"
        )
        raise UserError(f"{directory} {why}")


def _config(file: Path) -> dict[str, Any] | None:
    """A config with its numbers checked; None where there is none."""
    if not file.exists():
        return None
    values = read_object(file, "download it again")
    check_bounds(file, values)
    return values


def _check_finite(model: nn.Module, directory: Path) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{directory}: {name} holds NaN or infinite values: this checkpoint is broken, use another")
