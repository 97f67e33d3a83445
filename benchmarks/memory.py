"""GPU memory of an erasure by family, forecast from the published configurations alone: `python benchmarks/memory.py`.

Nothing is loaded. Networks are made of tensors without values, a sample goes forward and backward through the package's own
denoiser, and the bytes that are alive at a time are counted; the rest is the arithmetic of `sdscissor erase --dry-run`. The table
goes to docs/families.md. It takes a minute and 2 GiB.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rows import ROOT
from sd14 import SCHEDULE, SD14, VAE, WORDS
from tables import markdown, publish
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.forecast import Probe, peaks
from sd_scissorhands.methods.distributed import gradient_hooks
from sd_scissorhands.preparation import Prepared
from sd_scissorhands.settings import EraseSettings

DOCUMENT = ROOT / "docs" / "families.md"
CONCEPT = "nudity"
CONFIGS = {
    "CLIPTextModel": "CLIPTextConfig",
    "CLIPTextModelWithProjection": "CLIPTextConfig",
    "T5EncoderModel": "T5Config",
}
WAYS = {  # columns -> settings
    "low, `--scope xattn`": {"memory": "low", "scope": "xattn"}, "low": {"memory": "low"},
    "balanced": {"memory": "balanced"}, "fast": {"memory": "fast"},
}  # fmt: skip
GIB = 1 << 30
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
)
CLIP_H = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512
)
T5 = dict(
    d_model=4096, d_ff=10240, d_kv=64, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128
)
TRANSFORMER = ("transformer", "FlowMatchEulerDiscreteScheduler", {})
UNET = ("unet", "DDIMScheduler", SCHEDULE)


@dataclass(frozen=True)
class Published:
    """What a family's flagship is made of, by its public configurations."""

    pipeline: str  # diffusers' class
    network: str  # and that of what is edited
    config: dict[str, Any]
    texts: tuple[tuple[str, dict[str, Any]], ...]  # text encoders: transformers' class and config
    condition: tuple[int, int]  # tokens and width, see `Family`
    part: tuple[str, str, dict[str, Any]] = UNET  # name of what is edited, the scheduler's class and config


CLIP = ("CLIPTextModel", WORDS)
FAMILIES = {
    "SD 1": Published("StableDiffusionPipeline", "UNet2DConditionModel", SD14, (CLIP,), (77, 768)),
    "SD 2.1": Published(
        "StableDiffusionPipeline", "UNet2DConditionModel",
        SD14 | dict(sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        (("CLIPTextModel", CLIP_H),), (77, 1024),
    ),
    "SDXL": Published(
        "StableDiffusionXLPipeline", "UNet2DConditionModel",
        dict(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        (CLIP, ("CLIPTextModelWithProjection", CLIP_G)), (78, 2048),
    ),
    "SD 3 medium": Published(
        "StableDiffusion3Pipeline", "SD3Transformer2DModel",
        dict(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
            joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
        ),
        (("CLIPTextModelWithProjection", WORDS), ("CLIPTextModelWithProjection", CLIP_G), ("T5EncoderModel", T5)),
        (334, 4096), TRANSFORMER,
    ),
    "FLUX.1 dev": Published(
        "FluxPipeline", "FluxTransformer2DModel", dict(guidance_embeds=True), (CLIP, ("T5EncoderModel", T5)), (513, 4096), TRANSFORMER,
    ),
}  # fmt: skip


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that come into being within it and are still alive."""

    def __init__(self, before: Iterable[Tensor]):
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in before}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Run an operation, and count what it made."""
        made = operation(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


class Counted(Denoiser):
    """A denoiser whose words come from no encoder."""

    condition: tuple[int, int] = (0, 0)

    def encode(self, prompts: Any) -> Tensor:
        """Conditions without values."""
        return torch.empty(len(prompts), *self.condition)


def opened(family: Published, mode: FakeTensorMode) -> Any:
    """The pipeline, its networks without values."""
    import diffusers
    import transformers

    part, scheduler, config = family.part
    with mode:
        network = getattr(diffusers, family.network)(**family.config).requires_grad_(False)
        texts = {
            f"text_encoder{f'_{n}' * (n > 1)}": getattr(transformers, kind)(getattr(transformers, CONFIGS[kind])(**own))
            for n, (kind, own) in enumerate(family.texts, 1)
        }
        vae = diffusers.AutoencoderKL(**VAE)
    return type(family.pipeline, (SimpleNamespace,), {})(
        **{part: network}, **texts, vae=vae, scheduler=getattr(diffusers, scheduler)(**config), vae_scale_factor=8
    )


def forecast(family: Published, **settings: Any) -> tuple[int, dict[str, int]]:
    """Weights of what is edited, and bytes at most by stage."""
    asked = EraseSettings(concepts=(CONCEPT,), guidance=7.5, **settings).resolved("large")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    pipeline = opened(family, mode)
    d = Counted(pipeline, mixed_precision=asked.mixed_precision, checkpointing=asked.checkpointing)
    d.condition = family.condition
    parameters = d.scope(asked.scope)
    concept = DOMAINS["photographs"].resolve(CONCEPT, None, frozenset())
    with mode:
        prepared = Prepared(asked, SimpleNamespace(pipeline=pipeline), d, [concept], parameters, [], [], [CONCEPT])  # type: ignore[arg-type]
        modules = [part for part in vars(pipeline).values() if isinstance(part, nn.Module)]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        resident = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        with torch.no_grad():
            forward = held(tensors, lambda: predicted(d))
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with gradient_hooks(parameters, lambda name, gradient: None):
            backward = held(tensors, lambda: predicted(d).sum().backward())
        return prepared.scope_size, peaks(prepared, Probe(0.0, 0.0, forward, backward, resident))


def predicted(d: Counted) -> Tensor:
    """What the network makes of one sample."""
    return d.predict(torch.empty(1, *d.latent_shape), torch.tensor([500]), d.encode([""]))


def held(before: Sequence[Tensor], work: Callable[[], object]) -> int:
    """Bytes that are alive at most while something works, beyond tensors that were there."""
    with Alive(before) as alive:
        work()
    return alive.most


def line(title: str) -> list[str]:
    """A family's line of the table."""
    cells = []
    for settings in WAYS.values():
        scope, by_stage = forecast(FAMILIES[title], **settings)
        cells.append(f"{max(by_stage.values()) / GIB:.1f} ({scope / 1e6:,.0f} M)")
    print(title, cells, flush=True)
    return [title, *cells]


def main() -> None:
    """Print the table and put it into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"{', '.join(FAMILIES)}; some alone write no document")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    given = parser.parse_args()
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(f"{min(unknown)} is no family here: choose {', '.join(FAMILIES)}")
    header = "; ".join(["family", *WAYS])
    text = markdown(header, [line(title) for title in given.families or FAMILIES])
    print(text)
    if not given.families:
        publish(
            "memory",
            f"{text}\n\nGiB by `--memory`, and millions of weights that change; forecast by counted tensors, not measured.",
            given.document,
        )


if __name__ == "__main__":
    main()
