"""Another program's own loaders on our files: `python tests/clients.py comfyui|kohya CHECKOUT FOLDER`.

It imports the program from the checkout and nothing of this package, reads what `test_clients.world` wrote into the folder, and prints
one JSON object: for every file how many tensors the program has, how many equal the erased model's in float16, which keys it does not
know, and how far its UNet's output lies from diffusers'. The first import is a stub for torchvision, which no loader here calls.
"""

from __future__ import annotations

import importlib.machinery
import json
import logging
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


class Said(logging.Handler):
    """What a program logs as a warning or an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def stub_torchvision() -> None:
    """Modules of which every name is an empty class; transformers and diffusers, which would take them for the real, look before."""
    import diffusers
    import transformers

    assert diffusers.StableDiffusionPipeline and transformers.CLIPTextModel
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.models"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.__getattr__ = _empty_class  # type: ignore[method-assign]
        sys.modules[name] = module


def _empty_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def compared(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """How many tensors equal those that are expected, in float16 and whatever 1s a shape ends in."""
    equal = [
        name
        for name in found.keys() & expected.keys()
        if torch.equal(found[name].half().flatten(), expected[name].half().flatten())
    ]
    return {
        "tensors": len(expected),
        "found": len(found),
        "equal": len(equal),
        "only_one": sorted(found.keys() ^ expected.keys())[:5],
    }


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def far(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance."""
    return ((made.float() - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------- ComfyUI


@torch.no_grad()
def comfyui(folder: Path) -> dict[str, Any]:
    """Checkpoint, add-ons and UNet file, by the functions behind its nodes."""
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    said, passed = Said(), load_file(folder / "pass.safetensors")
    logging.getLogger().addHandler(said)
    whole = load_file(folder / "whole.safetensors")
    unet = part(whole, UNET)

    def output(patcher: Any) -> float:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        network = patcher.model.diffusion_model.float()
        made = network(passed["latents"], timesteps=passed["timestep"], context=passed["context"])
        return far(made, passed["noise"])

    def unet_of(patcher: Any) -> dict[str, torch.Tensor]:
        return dict(patcher.model.diffusion_model.state_dict())

    def checkpoint(name: str) -> tuple[Any, Any, Any]:
        return comfy.sd.load_checkpoint_guess_config(str(folder / name), output_vae=True, output_clip=True)[:3]

    results = {}
    model, clip, vae = checkpoint("whole.safetensors")
    texts = {
        key: one
        for key, one in clip.cond_stage_model.state_dict().items()
        if "logit_scale" not in key and "text_projection" not in key
    }
    results["single file, UNet"] = compared(unet_of(model), unet) | {"far": output(model)}
    results["single file, VAE"] = compared(dict(vae.first_stage_model.state_dict()), part(whole, VAE))
    expected = {f"clip_l.{name}": one for name, one in part(whole, CLIP).items()}
    results["single file, text encoder"] = compared(texts, expected) | {"tokens": tokens(clip)}
    del model, clip, vae
    model = comfy.sd.load_diffusion_model(str(folder / "unet.safetensors"))
    results["UNet file"] = compared(unet_of(model), unet) | {"far": output(model)}
    del model
    for name in ("lycoris", "rank"):
        model, clip, _ = checkpoint("base.safetensors")
        addon = comfy.utils.load_torch_file(str(folder / f"{name}.safetensors"))
        patched, _ = comfy.sd.load_lora_for_models(model, clip, addon, 1.0, 1.0)
        away = output(patched)
        results[name] = compared(unet_of(patched), unet) | {"patches": len(patched.patches), "far": away}
    return results | {"warnings": said.lines}


def tokens(clip: Any) -> list[int]:
    """How it reads a prompt, by the vocabulary that it ships."""
    return [int(one[0]) for one in clip.tokenize("a photo of a heart")["l"][0]][:8]


# ---------------------------------------------------------------- kohya's sd-scripts


@torch.no_grad()
def kohya(folder: Path) -> dict[str, Any]:
    """Checkpoint and LoRA, as its training and merging scripts read them; it has no loader for whole differences."""
    from library import model_util
    from networks import lora

    passed, erased = load_file(folder / "pass.safetensors"), load_file(folder / "unet.safetensors")

    def loaded(name: str) -> tuple[Any, Any, Any]:
        return model_util.load_models_from_stable_diffusion_checkpoint(False, str(folder / name), dtype=torch.float32)

    def output(unet: Any) -> float:
        return far(unet.float()(passed["latents"], passed["timestep"], passed["context"]).sample, passed["noise"])

    results = {}
    text, vae, unet = loaded("whole.safetensors")
    results["single file, UNet"] = compared(dict(unet.state_dict()), erased) | {"far": output(unet)}
    results["single file, VAE"] = compared(dict(vae.state_dict()), load_file(folder / "vae.safetensors"))
    names = {
        key.removeprefix("text_model."): one for key, one in text.state_dict().items() if "position_ids" not in key
    }
    expected = {key.removeprefix("text_model."): one for key, one in load_file(folder / "text.safetensors").items()}
    results["single file, text encoder"] = compared(names, expected)
    text, vae, unet = loaded("base.safetensors")
    network, weights = lora.create_network_from_weights(
        1.0, str(folder / "rank.safetensors"), vae, text, unet, for_inference=True
    )
    unknown = sorted({key.split(".")[0] for key in weights} - {one.lora_name for one in network.unet_loras})
    network.merge_to([text], unet, weights, torch.float32, "cpu")
    results["rank"] = compared(dict(unet.state_dict()), erased) | {
        "unknown": unknown,
        "layers": len(network.unet_loras),
        "far": output(unet),
    }
    return results


def main(words: Iterable[str]) -> None:
    program, checkout, folder = words
    sys.path.insert(0, checkout)
    sys.argv = sys.argv[:1]
    stub_torchvision()
    print(json.dumps({"comfyui": comfyui, "kohya": kohya}[program](Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
