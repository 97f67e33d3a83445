"""A diffusers pipeline on disk: checked before anything is loaded, read tensor by tensor, and the run that made it."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..diffusion.families import FAMILIES, Family
from ..disk import hash_files, read_tensors
from ..domains import DOMAINS
from ..errors import UserError
from ..files import check_regular, read_object
from ..lineage import run_of
from ..results.manifest import Manifest
from .component import Component
from .config_bounds import check_bounds
from .keys import canonical
from .tensor_files import TensorFile, conversion_command, read_header

CONVERTED = "converted.json"  # in a directory that was made of a single file: of which, and how
WEIGHTLESS = ("tokenizer", "scheduler", "feature_extractor", "image_processor")  # how parts without weights are called
WHOLE_TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt")  # each holds all of a vocabulary
SMALL = 50_000_000  # weights of a denoiser, below which it is small
NON_EMA = "non_ema"  # the variant that stands beside a moving average
ONE_FILE = 1 << 40  # bytes of a shard: diffusers else splits what is larger than 10 GB, as SDXL in float32 is
# Components that a pipeline may have and ours never use; a safety checker have Stable Diffusion 1 and 2 alone.
UNUSED: dict[str, Any] = dict(feature_extractor=None, image_encoder=None)
SAFETY: dict[str, Any] = dict(safety_checker=None, requires_safety_checker=False)


@dataclass(frozen=True)
class PipelineDirectory:
    """A pipeline directory, and which of the weights there are meant.

    Everything raises UserError where files are missing, damaged or of a kind that is not supported; `check` looks at all
    of them without loading any.
    """

    directory: Path
    variant: str | None = None

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json."""
        file = self.directory / "model_index.json"
        if file.exists():
            return read_object(file)
        if (self.directory / "pytorch_lora_weights.safetensors").exists():
            raise UserError(
                f"{self.directory} is a LoRA, no model: fuse it into its base (fuse_lora, save_pretrained) first"
            )
        raise UserError(f"{self.directory} is no diffusers pipeline: it has no model_index.json")

    @cached_property
    def family(self) -> type[Family]:
        """Its kind: Stable Diffusion, SDXL, ..."""
        name = self.index.get("_class_name")
        if not isinstance(name, str) or name not in FAMILIES:
            raise UserError(f"{self.directory} is a {name}: supported is {', '.join(FAMILIES)}")
        return FAMILIES[name]

    @cached_property
    def component_names(self) -> list[str]:
        """The components that hold weights, the denoiser first."""
        names = [self.family.part, "vae", *self.family.texts]
        absent = [name for name in names if self.index.get(name) in (None, [None, None])]
        if needed := [name for name in absent if name not in self.family.optional]:
            raise UserError(f"{self.directory} has no {needed[0]}: the model directory is incomplete")
        return [name for name in names if name not in absent]

    @property
    def parts(self) -> list[str]:
        """Everything that the index names, each in a folder: networks, tokenizers, scheduler, what prepares pictures."""
        named = (name for name, kind in self.index.items() if isinstance(kind, list) and kind[:1] not in ([], [None]))
        return [name for name in named if name.isidentifier()]  # a stranger's index must name no folder elsewhere

    @property
    def networks(self) -> list[str]:
        """The parts that have weights, a safety checker among them."""
        return [name for name in self.parts if not name.startswith(WEIGHTLESS)]

    def config(self, component: str) -> dict[str, Any]:
        """The config of a component, a tokenizer or the scheduler, its numbers checked; empty where there is none."""
        kind = component.partition("_")[0]
        name = f"{kind}_config.json" if kind in ("scheduler", "tokenizer") else "config.json"
        file = self.directory / component / name
        values = read_object(file) if file.exists() else {}
        check_bounds(file, values)
        return values

    def check_configs(self) -> None:
        """Check family and configs, and that no file would be waited for: before weights are fetched."""
        check_regular(self.directory)
        configs = {name: self.config(name) for name in (*self.component_names, "scheduler")}
        for text in self.family.texts:
            self.config(text.replace("text_encoder", "tokenizer"))
        for name, config in configs.items():
            if config.get("quantization_config"):
                where = self.directory / name
                raise UserError(f"{where} is quantised: erase from the weights that it was quantised from")
        if objection := self.family.objection(configs):
            raise UserError(
                f"{self.directory} cannot be used: {objection}; supported is text to image by {', '.join(FAMILIES)}"
            )

    def check(self) -> None:
        """Check layout, family, configs and file sizes without loading anything."""
        self.check_configs()
        found = sorted(set().union(*map(self.variants, self.component_names)))
        if self.variant and self.variant not in found:
            remedy = f"choose {', '.join(found)}" if found else "leave it out"
            raise UserError(f"{self.directory} has no variant {self.variant}: {remedy}")
        for component in self.component_names:
            for file in self.weight_files(component):
                read_header(file)
            if component in self.family.texts:
                self._check_tokenizer(self.directory / self.tokenizer_of(component))

    def tokenizer_of(self, text: str) -> str:
        """The part that a text encoder's ids come from."""
        return text.replace("text_encoder", "tokenizer")

    def added_tokens(self, text: str) -> list[str]:
        """The tokens that were added to a text encoder's vocabulary, as DreamBooth and textual inversion do; [] where none is known."""
        folder = self.directory / self.tokenizer_of(text)
        whole, config = (
            read_object(one) if one.exists() else {}
            for one in (folder / "tokenizer.json", folder / "tokenizer_config.json")
        )
        words, more = (
            read_object(one) if one.exists() else {} for one in (folder / "vocab.json", folder / "added_tokens.json")
        )
        words = words or (whole.get("model") or {}).get("vocab") or {}
        added = [*more, *(one["content"] for one in whole.get("added_tokens") or ())]
        added += [one["content"] for one in (config.get("added_tokens_decoder") or {}).values()]
        return [one for one in dict.fromkeys(added) if one not in words] if isinstance(words, dict) and words else []

    def _check_tokenizer(self, folder: Path) -> None:
        """Raises UserError for a tokenizer without a vocabulary: transformers 5 makes one of two tokens."""
        if any((folder / name).exists() for name in WHOLE_TOKENIZERS):
            return
        needed = ("vocab.json", "merges.txt") if (folder / "vocab.json").exists() else ("tokenizer.json",)
        if lacks := [name for name in needed if not (folder / name).exists()]:
            raise UserError(f"{folder / lacks[0]} is missing: the model directory is incomplete")

    # ------------------------------------------------------------ weights

    def variants(self, component: str) -> set[str]:
        """The variants of a component's weights."""
        form = re.compile(
            rf"{re.escape(_stem(component))}\.(?:safetensors\.index\.([\w-]+)\.json|([\w-]+)\.safetensors)"
        )
        found = (form.fullmatch(file.name) for file in (self.directory / component).glob("*"))
        return {one[1] or one[2] for one in found if one and not re.search(r"-\d{5}-of-\d{5}$", one[2] or "")}

    def weight_files(self, component: str, *, index: bool = False) -> list[Path]:
        """The safetensors files of one component: one, or the shards that its index lists, and with `index` that as well.

        A component that has no such variant is taken as it is without one, as diffusers does.
        """
        folder = self.directory / component
        for variant in dict.fromkeys((self.variant, None)):
            one, listed, _ = weight_file_names(component, variant)
            if (folder / one).exists():
                return [folder / one]
            if (folder / listed).exists():
                return [*_shards(folder / listed), *[folder / listed] * index]
        if found := sorted(self.variants(component)):
            raise UserError(
                f"{folder} has its weights as {' and '.join(found)} alone: add --variant {found[0]}, or :{found[0]} to the name"
            )
        if any(folder.glob("*.bin")):
            line = conversion_command(f"{shlex.quote(str(self.directory))}/*/*.bin")
            raise UserError(
                f"{folder} holds only pickled weights (.bin), which can run code and are never loaded: convert them with {line}"
            )
        raise UserError(f"{folder / weight_file_names(component)[0]} is missing: the model directory is incomplete")

    def component(self, name: str) -> Component:
        """One network, in one file or several."""
        found = self.weight_files(name, index=True)
        files = tuple(TensorFile.open(file) for file in found if file.suffix == ".safetensors")
        keys = {own: key for file in files for key in file.entries if (own := canonical(name, key))}
        return Component(name, files, keys, found[-1] if found[-1].suffix == ".json" else None)

    @cached_property
    def components(self) -> dict[str, Component]:
        """Every network, the denoiser first."""
        return {name: self.component(name) for name in self.component_names}

    @property
    def denoiser(self) -> Component:
        """The network that is edited: UNet or transformer."""
        return self.components[self.family.part]

    @property
    def profile(self) -> str:
        """Which of `recipes.PROFILES` fits, by the denoiser's size."""
        return "small" if sum(math.prod(self.denoiser.shape(name)) for name in self.denoiser.keys) < SMALL else "large"

    def denoiser_tensors(self) -> dict[str, Tensor]:
        """The denoiser's tensors by the names in its files, in one or several of these, on the CPU."""
        tensors: dict[str, Tensor] = {}
        for file in self.weight_files(self.family.part):
            tensors |= read_tensors(file)[0]
        return tensors

    @cached_property
    def sha256(self) -> str:
        """Over the names and bytes of all files that drawing reads: weights, configs, tokenizers, scheduler, marker."""
        folder, weights = self.directory, [one for name in self.component_names for one in self.weight_files(name)]
        others = [folder / "model_index.json", *map(folder.joinpath, markers())]
        others += [folder / name / "config.json" for name in self.component_names]
        others += [file for part in ("tokenizer*", "scheduler") for file in folder.glob(f"{part}/*") if file.is_file()]
        return hash_files(sorted({*weights, *(file for file in others if file.exists())}), folder)

    @property
    def ema(self) -> str:
        """Whether the denoiser's weights are the moving average (EMA) of those that were trained.

        used; "beside, not used" if the file or the variant's name shows it; unknown for most.
        """
        if (self.directory / CONVERTED).exists():
            return str(read_object(self.directory / CONVERTED).get("ema", "unknown"))
        if self.variant == NON_EMA:
            return "beside, not used"
        return "used" if NON_EMA in self.variants(self.family.part) else "unknown"

    # ------------------------------------------------------------ the run that made it

    @cached_property
    def manifest(self) -> Manifest | None:
        """Of the run that made it; None if none did."""
        return run_of(self.directory)

    def check_weights(self) -> str:
        """The denoiser's hash, which must be the one that the run's manifest names: else its recipe is not this model's."""
        found, erased = self.denoiser.sha256(), self.manifest and self.manifest.erased
        if erased and (named := erased.weights_sha256) not in ("", found):
            raise UserError(
                f"{self.directory} has other weights (sha256 {found[:12]}) than its run.json names ({named[:12]}): "
                "they were changed after the erasure; name the model alone, in a directory without run.json"
            )
        return found


def markers() -> list[str]:
    """The files that mark pipelines as those of a domain."""
    return [domain.marker for _, domain in DOMAINS if domain.marker]


def config_patterns() -> list[str]:
    """All files of a pipeline that are no weights."""
    return ["model_index.json", *markers(), "*/*.json", "*/*.txt", "*/*.model"]


def weight_file_names(component: str, variant: str | None = None) -> tuple[str, str, tuple[str, ...]]:
    """How a component's weights are named: one file, the index of several, and the patterns of these, now and formerly."""
    stem = _stem(component)
    if not variant:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json", (f"{stem}-?????-of-?????.safetensors",)
    shards = (f"{stem}.{variant}-?????-of-?????.safetensors", f"{stem}-?????-of-?????.{variant}.safetensors")
    return f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json", shards


def _stem(component: str) -> str:
    return "diffusion_pytorch_model" if component in ("unet", "transformer", "vae") else "model"


def _shards(index: Path) -> list[Path]:
    listed = read_object(index).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{index} is damaged: it lists no safetensors files beside it")
    shards = [index.with_name(name) for name in names]
    if missing := [shard for shard in shards if not shard.exists()]:
        raise UserError(f"{missing[0]} is missing: the model directory is incomplete")
    return shards
