"""Where each tensor of a diffusers pipeline stands in a single file of the LDM layout, which A1111 and ComfyUI read.

The names are those of the original code: UNetModel (openaimodel.py), Encoder and Decoder (model.py) of
CompVis/latent-diffusion, the CLIP of transformers (Stable Diffusion 1), OpenCLIP's text tower (2), or both (SDXL, by
Stability-AI/generative-models). What is where in a UNet follows from its config; a name that does not is refused and
never guessed.

On diffusers' side a name here is canonical: no `text_model.`, which releases of transformers write or leave out, and
the VAE's attention as `to_q`, which older files call `query`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..settings import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
LAST_BLOCK, UNUSED_BLOCK = (
    f"{OPEN_CLIP}transformer.resblocks.{n}." for n in (22, 23)
)  # of Stable Diffusion 2; the last of all is in no pipeline
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
EMA = "model_ema."  # a second copy of the UNet, as training left it
DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # block type: whether it has attention
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
MID = "UNetMidBlock2DCrossAttn"
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
BUFFERS = ("embeddings.position_ids",)  # that old files hold and no program needs


@dataclass(frozen=True)
class KeyLocation:
    """Under which key of an LDM file a tensor of diffusers stands, and in which layout."""

    key: str
    qkv_index: int | None = None  # which third of a joined query, key and value, along the first axis
    as_conv: bool = False  # a linear layer of diffusers that is a 1 x 1 convolution there
    transposed: bool = False  # a matrix that OpenCLIP has on the right of what it multiplies, diffusers on the left

    def ldm_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole tensor in the LDM file, from that of diffusers' tensor."""
        if self.qkv_index is not None:
            return (3 * shape[0], *shape[1:])
        if self.transposed:
            return shape[::-1]
        return (*shape, 1, 1) if self.as_conv else shape

    def read(self, whole: Tensor) -> Tensor:
        """diffusers' tensor out of the one that stands in the LDM file."""
        if self.qkv_index is not None:
            return whole.chunk(3)[self.qkv_index]
        if self.transposed:
            return whole.T
        return whole[..., 0, 0] if self.as_conv and whole.dim() == 4 else whole


def canonical(component: str, name: str) -> str | None:
    """A tensor's name as used here, from that in a file of a diffusers pipeline; None for a buffer that is left out."""
    if component.startswith("text_encoder"):
        name = name.removeprefix("text_model.")
        return None if name in BUFFERS else name
    if component == "vae":
        old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\b")
        return old.sub(lambda found: f"{found[1]}.{OLD_ATTENTION[found[2]]}", name)
    return name


# ---------------------------------------------------------------- UNet


@dataclass(frozen=True)
class Blocks:
    """How a UNet is built: what decides its names."""

    layers: int  # resnets of a level on the way down; one more on the way up
    down: tuple[bool, ...]  # whether a level has attention
    up: tuple[bool, ...]

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Blocks:
        """From a UNet2DConditionModel's config.

        Raises:
            UserError: block types or layers per block that no LDM UNet has.
        """
        layers = config.get("layers_per_block", 2)
        if isinstance(layers, list | tuple):
            if len(set(layers)) != 1:
                raise UserError(
                    f"the UNet's layers_per_block {list(layers)} differ: the LDM layout has one for all levels"
                )
            layers = layers[0]
        mid = config.get("mid_block_type", MID)
        for block in (*config["down_block_types"], *config["up_block_types"], mid):
            if block not in (*DOWN, *UP, MID):
                raise UserError(f"the UNet's {block} has no place in the LDM layout: export it --to diffusers")
        down = tuple(DOWN.get(block, False) for block in config["down_block_types"])
        return cls(layers, down, tuple(UP.get(block, False) for block in config["up_block_types"]))

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Blocks:
        """From the names of a UNet's tensors, where there is no config.

        Raises:
            UserError: they are those of no UNet.
        """
        parts = {tuple(name.split(".")[:4]) for name in names}
        levels = {int(one[1]) for one in parts if one[0] == "down_blocks"}
        if not levels:
            raise UserError("the tensors are those of no UNet: there are no down_blocks")
        layers = {int(one[3]) for one in parts if one[:3] == ("down_blocks", "0", "resnets")}
        down, up = (
            tuple((side, str(n), "attentions") in {one[:3] for one in parts} for n in sorted(levels))
            for side in ("down_blocks", "up_blocks")
        )
        return cls(len(layers), down, up)

    def modules(self) -> dict[str, str]:
        """LDM's name of every resnet, attention and resampler, by diffusers'."""
        found = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
        found["mid_block.resnets.1"] = "middle_block.2"
        at = 1  # input_blocks.0 is conv_in
        for level, attends in enumerate(self.down):
            for layer in range(self.layers):
                found |= _layer(f"down_blocks.{level}", layer, f"input_blocks.{at}", attends)
                at += 1
            found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{at}.0.op"
            at += 1
        at = 0
        for level, attends in enumerate(self.up):
            for layer in range(self.layers + 1):
                found |= _layer(f"up_blocks.{level}", layer, f"output_blocks.{at}", attends)
                at += 1
            found[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{at - 1}.{1 + attends}.conv"
        return found


def _layer(block: str, layer: int, ldm_block: str, attends: bool) -> dict[str, str]:
    resnet = {f"{block}.resnets.{layer}": f"{ldm_block}.0"}
    return resnet | {f"{block}.attentions.{layer}": f"{ldm_block}.1"} if attends else resnet


def _unet_location(name: str, modules: Mapping[str, str]) -> KeyLocation:
    """`modules` are LDM's names by diffusers'."""
    module, _, kind = name.rpartition(".")
    if module in modules:
        return KeyLocation(f"{UNET}{modules[module]}.{kind}")
    depth = 3 if name.startswith("mid_block.") else 4
    block, inner = ".".join(name.split(".")[:depth]), ".".join(name.split(".")[depth:])
    if block in modules and ".attentions." in block:
        return KeyLocation(f"{UNET}{modules[block]}.{inner}")
    within = inner.rpartition(".")[0]
    if block in modules and within in RESNET:
        return KeyLocation(f"{UNET}{modules[block]}.{RESNET[within]}.{kind}")
    raise UserError(f"the UNet's {name} has no place in the LDM layout: export it --to diffusers")


# ---------------------------------------------------------------- VAE


def _vae_location(name: str, last: int) -> KeyLocation:
    """`last` is the highest of the decoder's up_blocks, which LDM counts from the other end."""
    key = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)
    key = re.sub(r"^encoder\.down_blocks\.(\d+)", r"encoder.down.\1", key)
    key = re.sub(r"\.(down|up)samplers\.0\.", r".\1sample.", key)
    key = re.sub(r"\.mid_block\.resnets\.([01])\.", lambda found: f".mid.block_{int(found[1]) + 1}.", key)
    key = re.sub(r"\.resnets\.(\d+)\.", r".block.\1.", key)
    key = key.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    attends = re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", key)
    if attends and attends[2] in VAE_ATTENTION:
        is_linear = attends[2] != "group_norm" and attends[3] == "weight"
        return KeyLocation(f"{VAE}{attends[1]}.mid.attn_1.{VAE_ATTENTION[attends[2]]}.{attends[3]}", as_conv=is_linear)
    if re.search(r"blocks?\.|attentions|samplers", key.replace(".block.", ".")):
        raise UserError(
            f"the VAE's {name} has no place in the LDM layout: use --base FILE, or export it --to diffusers"
        )
    return KeyLocation(VAE + key)


# ---------------------------------------------------------------- text encoder


def _clip_location(name: str, prefix: str) -> KeyLocation:
    """OpenAI's text encoder, by its canonical names: transformers' own, with `text_model.`."""
    return KeyLocation(f"{prefix}text_model.{name}")


def _open_clip_location(name: str, prefix: str) -> KeyLocation:
    """OpenCLIP's text encoder, by its canonical names: there query, key and value are one tensor.

    A published file also holds a scale, and one of Stable Diffusion 2 a last layer and a projection, which nothing uses
    and a diffusers pipeline does not have; they are not made up, and A1111, ComfyUI and diffusers load without them.
    """
    if name == "text_projection.weight":
        return KeyLocation(f"{prefix}text_projection", transposed=True)
    if name in OPEN_CLIP_ENDS:
        return KeyLocation(prefix + OPEN_CLIP_ENDS[name])
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        block = f"{prefix}transformer.resblocks.{found[1]}"
        if found[2] in OPEN_CLIP_LAYER:
            return KeyLocation(f"{block}.{OPEN_CLIP_LAYER[found[2]]}.{found[3]}")
        if (one := found[2].removeprefix("self_attn.").removesuffix("_proj")) in ("q", "k", "v"):
            return KeyLocation(f"{block}.attn.in_proj_{found[3]}", qkv_index="qkv".index(one))
    raise UserError(f"the text encoder's {name} has no place in OpenCLIP's layout: use --base FILE")


# ---------------------------------------------------------------- all of a pipeline


def ldm_locations(
    components: Mapping[str, Iterable[str]], *, xl: bool, open_clip: bool, blocks: Blocks | None = None
) -> dict[str, dict[str, KeyLocation]]:
    """Where a pipeline's tensors stand, by component and canonical name; components that no LDM file holds are left out.

    Args:
        components: canonical tensor names by component.
        xl: whether it is SDXL, which has both kinds of text encoder.
        open_clip: whether the one of another model is OpenCLIP's.
        blocks: of the UNet; None: by its tensors' names.

    Raises:
        UserError: a name that has no place.
    """
    names = {component: list(names) for component, names in components.items()}
    ups = (re.match(r"decoder\.up_blocks\.(\d+)", name) for name in names.get("vae", ()))
    locate: dict[str, Callable[[str], KeyLocation]] = {
        "vae": partial(_vae_location, last=max((int(up[1]) for up in ups if up), default=0)),
        "text_encoder": partial(_open_clip_location, prefix=OPEN_CLIP)
        if open_clip
        else partial(_clip_location, prefix=CLIP),
    }
    if "unet" in names:
        modules = ENDS | (blocks or Blocks.of_names(names["unet"])).modules()
        locate["unet"] = partial(_unet_location, modules=modules)
    if xl:
        locate["text_encoder"] = partial(_clip_location, prefix=XL_CLIP)
        locate["text_encoder_2"] = partial(_open_clip_location, prefix=XL_OPEN_CLIP)
    return {one: {name: locate[one](name) for name in names[one]} for one in names if one in locate}
