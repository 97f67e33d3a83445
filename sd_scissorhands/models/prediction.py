"""What a denoiser predicts: as a scheduler's config has it, as single files name it, and as other programs guess it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .keys import OPEN_CLIP, XL_OPEN_CLIP
from .tensor_files import TensorFile, TensorToWrite

V_PRED, ZTSNR = MARKERS = ("v_pred", "ztsnr")  # tensors without a value, which A1111 and ComfyUI look for
V_NAMES = ("v", "v_prediction")
KEY, ZERO_KEY = "modelspec.prediction_type", "sdscissor.zero_terminal_snr"
ZERO_KEYS = (ZERO_KEY, "ss_zero_terminal_snr")  # ours, and kohya's sd-scripts'
RESCALED = "rescale_betas_zero_snr"  # of diffusers' schedulers
GUESSED_FROM = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
GUESSED_V = 0.09  # ComfyUI takes an SD 2 whose `GUESSED_FROM` has a larger standard deviation for one that predicts v


@dataclass(frozen=True)
class Prediction:
    """What a denoiser predicts, and from how much noise."""

    velocity: bool = False  # v; else the noise, epsilon
    zero_snr: bool = False  # whether no signal is left at the last step (zero terminal SNR)

    @classmethod
    def of_scheduler(cls, config: Mapping[str, Any]) -> Prediction:
        """As a scheduler's config has it."""
        return cls(config.get("prediction_type") == "v_prediction", bool(config.get(RESCALED)))

    @classmethod
    def of_file(cls, file: TensorFile) -> Prediction:
        """As a single file names it, in marker tensors or in metadata; a file that names nothing predicts epsilon."""
        zero = any(file.metadata.get(name, "").lower() == "true" for name in ZERO_KEYS)
        return cls(V_PRED in file.entries or file.metadata.get(KEY) in V_NAMES, ZTSNR in file.entries or zero)

    @property
    def name(self) -> str:
        """As ModelSpec calls what is predicted."""
        return "v" if self.velocity else "epsilon"

    def markers(self, code: str) -> dict[str, TensorToWrite]:
        """The marker tensors of a single file; `code` is the dtype of its UNet, which they have too."""
        named = {V_PRED: self.velocity, ZTSNR: self.zero_snr}
        return {name: TensorToWrite(code, (0,), 0, lambda: iter(())) for name, there in named.items() if there}

    def metadata(self) -> dict[str, str]:
        """What a single file's metadata name of it."""
        return {KEY: self.name} | ({ZERO_KEY: "true"} if self.zero_snr else {})

    def scheduler(self, scheduler: Any) -> Any:
        """A scheduler that samples so: of the same class, or DDIM where that knows no zero terminal SNR.

        Sampling must begin at the last step then (Lin et al. 2024, arXiv 2305.08891, section 3.3): spacing "trailing".
        """
        changed: dict[str, Any] = {"prediction_type": "v_prediction"} if self.velocity else {}
        if self.zero_snr and not scheduler.config.get(RESCALED):
            changed |= {RESCALED: True, "timestep_spacing": "trailing"}
        if self.zero_snr and RESCALED not in scheduler.config:
            from diffusers import DDIMScheduler

            return DDIMScheduler.from_config(scheduler.config, **changed, clip_sample=False)
        return type(scheduler).from_config(scheduler.config, **changed) if changed else scheduler

    def misread_by_comfyui(self, tensors: Mapping[str, TensorToWrite]) -> str | None:
        """What ComfyUI would take a single file for, if it is not this, and what to choose there; None if it reads it right.

        SDXL goes by the markers alone, Stable Diffusion 2 by a guess from the weights, 1 is always taken for epsilon.

        Args:
            tensors: those of the file, by its keys.
        """
        is_xl, is_2 = (any(key.startswith(prefix) for key in tensors) for prefix in (XL_OPEN_CLIP, OPEN_CLIP))
        guess = self if is_xl else Prediction(is_2 and _guessed_v(tensors))
        if guess == self:
            return None
        right, wrong = (f"{one.name}{' with zero terminal SNR' * one.zero_snr}" for one in (self, guess))
        setting = f"{'v_prediction' if self.velocity else 'eps'}{', zsnr true' * self.zero_snr}"
        return f"ComfyUI takes this file for {wrong}, and it is {right}: add the node ModelSamplingDiscrete there ({setting})"


def _guessed_v(tensors: Mapping[str, TensorToWrite]) -> bool:
    if GUESSED_FROM not in tensors:
        return False
    return bool(tensors[GUESSED_FROM].tensor().std(correction=0) > GUESSED_V)
