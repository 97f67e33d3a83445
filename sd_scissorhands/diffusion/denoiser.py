"""Stable Diffusion 1 and 2 as one denoiser: encode words and pictures, add noise, predict, generate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..stages import scope_of
from ..unlearn.team import ALONE, Team, standing_in

SCOPES = {"xattn": r"\.attn2\.", "attn": r"\.attn[12]\.", "full": ""}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Denoiser:
    """A pipeline seen as a noise predictor.

    Latents are scaled by the VAE's own factor; conditions are the text encoder's last hidden state, (B, tokens, width).
    """

    def __init__(self, pipeline, *, mixed_precision: str = "no", checkpointing: bool = False, compiled: bool = False):
        self.pipeline, self.module = pipeline, pipeline.unet
        self.device = pipeline.unet.device
        scheduler = pipeline.scheduler
        self.alphas = scheduler.alphas_cumprod.to(self.device, torch.float32)
        self.velocity = scheduler.config.prediction_type == "v_prediction"
        self.precision = PRECISIONS.get(mixed_precision)
        self.dtype = pipeline.unet.dtype
        self.parameters = dict(self.module.named_parameters())
        self.in_step = False  # whether other processes make this one's passes with it, see `sharding.shared_out`
        if checkpointing:
            self.module.enable_gradient_checkpointing()
        if compiled:
            self.module.compile_repeated_blocks()  # the transformer blocks, once for all: the whole takes minutes a shape

    def scope(self, expression: str) -> dict[str, nn.Parameter]:
        """Parameters of the UNet by name, norm layers left out by type.

        Args:
            expression: `xattn` (cross-attention), `attn` (all attention), `full`, or a regular expression searched for
                in the parameter names.

        Raises:
            UserError: a bad expression, or one that matches nothing.
        """
        return scope_of(self.module, expression, SCOPES, "the UNet")

    def teacher(self, parameters: Mapping[str, nn.Parameter], *, thin: bool = False) -> dict[str, Tensor]:
        """Frozen copies of parameters as they stand; with the weights that nobody changes they are the frozen original.

        Args:
            thin: keep them in bf16, which is what autocast would make of them.
        """
        kind = torch.bfloat16 if thin else None
        return {name: parameter.detach().to(dtype=kind, copy=True) for name, parameter in parameters.items()}

    @torch.no_grad()
    def thin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep in bf16 what is not among `parameters`, norm layers apart: autocast computes with nothing more."""
        for name, frozen in self.scope("full").items():
            if name not in parameters:
                frozen.data = frozen.data.bfloat16()

    @contextlib.contextmanager
    def whole_graph(self) -> Iterator[None]:
        """Within it no forward pass is checkpointed, for who wants to see every activation's gradient."""
        was = self.module.is_gradient_checkpointing
        if was:
            self.module.disable_gradient_checkpointing()
        try:
            yield
        finally:
            if was:
                self.module.enable_gradient_checkpointing()

    # ------------------------------------------------------------ words and pictures

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Conditions of prompts, truncated and padded to the text encoder's length: (B, tokens, width) float32."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)
        return encoder(ids)[0].float()

    @torch.no_grad()
    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of pictures (B, 3, h, w) in [-1, 1]: (B, c, h/f, w/f) twice."""
        posterior = self.pipeline.vae.encode(pictures.to(self.device, self.pipeline.vae.dtype)).latent_dist
        scale = self.pipeline.vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    @property
    def picture_size(self) -> int:
        """Side of the pictures that the UNet was made for, in pixels."""
        return self.module.config.sample_size * self.pipeline.vae_scale_factor

    # ------------------------------------------------------------ noise

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e: (B, c, h, w)."""
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def predict(
        self, noisy: Tensor, t: Tensor, condition: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The module's output, noise or velocity as it was trained: (B, c, h, w) float32.

        Args:
            weights: parameters by name that stand in for the module's own, a `teacher`'s; without a pass back.
        """
        if not len(noisy):  # which diffusers' attention cannot reshape
            one, time, words = (given.new_zeros(1, *given.shape[1:]) for given in (noisy, t, condition))
            return self.predict(one, time, words, weights)[:0] if self.in_step else noisy.float()
        with self.autocast(), standing_in(self.parameters, weights or {}):
            return self.module(noisy.to(self.dtype), t, condition.to(self.dtype)).sample.float()

    def autocast(self):
        """Mixed precision around a forward pass, if asked for."""
        return torch.autocast(self.device.type, self.precision) if self.precision else contextlib.nullcontext()

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the module was trained to output: the noise, or the velocity sqrt(abar) e - sqrt(1 - abar) x_0."""
        if not self.velocity:
            return noise
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def clean(self, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 that an output of the module amounts to: (B, c, h, w)."""
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        if self.velocity:
            return alpha.sqrt() * noisy - (1 - alpha).sqrt() * output
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()

    def leading_to(self, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The output that leads from x_t to a given x_0, the inverse of `clean`: (B, c, h, w)."""
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        if self.velocity:
            return (alpha.sqrt() * noisy - clean) / (1 - alpha).sqrt()
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    def pair_weight(self, t: Tensor) -> Tensor:
        """Weight of a paired target's error: of noise min(1, (1 - abar) / abar), of velocity the same error's: (B,).

        A wrong x_0 costs no more at low noise, where it is a large error of the noise, than elsewhere.
        """
        alpha = self.alphas[t]
        weight = ((1 - alpha) / alpha).clamp_max(1)
        return alpha * weight if self.velocity else weight

    def loss(self, latents: Tensor, condition: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Denoising loss per sample, mean over channels and space: (B,)."""
        predicted = self.predict(self.noised(latents, noise, t), t, condition)
        return (predicted - self.target(latents, noise, t)).square().mean((1, 2, 3))

    @torch.no_grad()
    def half_finished(
        self, conditions: Tensor, noise: Tensor, *, steps: int, stop: int, guidance: float
    ) -> tuple[Tensor, Tensor]:
        """Latents of a sampling that was left after `stop` of `steps` steps, and the timestep it stands at: (B, c, h, w), (B,).

        By DDIM with the module as it is now, as ESD samples (Gandikota et al., section 4.1).
        """
        from diffusers import DDIMScheduler

        scheduler, empty = (
            DDIMScheduler.from_config(self.pipeline.scheduler.config),
            self.encode([""]).expand_as(conditions),
        )
        scheduler.set_timesteps(steps, device=self.device)
        noisy = noise
        for time in scheduler.timesteps[:stop]:
            t, asked = time.expand(2 * len(noisy)), torch.cat([empty, conditions])
            without, told = self.predict(torch.cat([noisy, noisy]), t, asked).chunk(2)
            noisy = scheduler.step(without + guidance * (told - without), time, noisy).prev_sample
        return noisy, scheduler.timesteps[min(stop, steps - 1)].expand(len(noisy))

    # ------------------------------------------------------------ pictures out

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance: float,
        batch_size: int = 32,
        team: Team = ALONE,
        tick: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """Sampled latents of prompts, at the model's own size, scaled: (B, c, h, w). See `sample`, which draws each batch.

        Args:
            team: who draw a batch each in turn; all are told all of them, which are the same whatever its size.
            tick: called with the number of pictures after each batch.
        """
        config, batches, starts = self.module.config, [], range(0, len(prompts), batch_size)
        for first in range(0, len(starts), team.count):
            own: Tensor | None = None
            if first + team.index < len(starts):
                at = starts[first + team.index]
                conditions = self.encode(prompts[at : at + batch_size])
                own = self.sample(conditions, seeds[at : at + batch_size], steps=steps, guidance=guidance)
            for owner, at in enumerate(starts[first : first + team.count]):
                count = len(seeds[at : at + batch_size])
                shape = (count, config.in_channels, config.sample_size, config.sample_size)
                mine = own if own is not None and owner == team.index else torch.empty(shape, device=self.device)
                team.tell([mine], owner)
                batches.append(mine)
                tick(count)
        return torch.cat(batches)

    @torch.no_grad()
    def sample(
        self,
        conditions: Tensor,
        seeds: Sequence[int],
        *,
        steps: int,
        guidance: float,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Sampled latents, scaled, with the pipeline's own scheduler: (B, c, h, w) float32.

        Every row starts from its own CPU generator, so its noise depends on its seed alone.

        Args:
            conditions: (B, tokens, width), from `encode` or from anywhere else.
            size: (height, width) in pixels; the model's own when None.
        """
        height, width = size or (self.picture_size, self.picture_size)
        with self.autocast():
            out = self.pipeline(
                prompt_embeds=conditions, negative_prompt_embeds=self.encode([""] * len(seeds)),
                num_inference_steps=steps, guidance_scale=guidance, height=height, width=width,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent",
            )  # fmt: skip
        return out.images.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of scaled latents: (B, 3, h, w) float32 in [-1, 1] on the CPU."""
        vae = self.pipeline.vae
        return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample.float().clamp(-1, 1).cpu()
