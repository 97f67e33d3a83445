"""Every family as one denoiser: encode words and pictures, add noise, predict, generate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.distributed import SINGLE_PROCESS, ProcessGroup, swapped_weights
from ..methods.scope import scope_of
from .families import family_of
from .noise_process import Predict
from .sampler import UNCHANGED, Changes, scheduled

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Denoiser:
    """A pipeline seen as a predictor of noise or of a velocity, as its family trained it.

    Latents are shifted and scaled as the VAE's config has it. A condition is one tensor, (B, tokens, width), see `Family`. t is an
    index into `timesteps`, more noise the higher.
    """

    def __init__(self, pipeline, *, mixed_precision: str = "no", checkpointing: bool = False, compiled: bool = False):
        self.pipeline, self.family = pipeline, family_of(pipeline)
        self.device, self.process = self.family.device, self.family.process()
        self.precision = PRECISIONS.get(mixed_precision)
        self.dtype = self.module.dtype
        self.parameters = dict(self.module.named_parameters())
        self.evaluations = 0  # samples that the module was run on, forward passes alone
        self.together: dict[tuple[int, int], int] = {}  # size of pictures -> how many memory holds, once measured
        if checkpointing:
            self.module.enable_gradient_checkpointing()
        if compiled:
            self.module.compile_repeated_blocks()  # the transformer blocks, once for all: the whole takes minutes a shape

    @property
    def module(self) -> Any:
        """What is edited: a UNet or a transformer."""
        return self.family.module

    @property
    def texts(self) -> list[nn.Module]:
        """The text encoders that the pipeline has."""
        found = [getattr(self.pipeline, name, None) for name in self.family.texts]
        return [encoder for encoder in found if encoder is not None]

    def scope(self, expression: str) -> dict[str, nn.Parameter]:
        """Parameters of the module by name, norm layers left out by type.

        Args:
            expression: `xattn` (cross-attention, or what the family has for it), `attn` (all attention), `full`, or a
                regular expression searched for in the parameter names.

        Raises:
            UserError: a bad expression, or one that matches nothing.
        """
        return scope_of(self.module, expression, self.family.scopes, self.family.called)

    def teacher(self, parameters: Mapping[str, nn.Parameter], *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Frozen copies of parameters as they stand; with the weights that nobody changes they are the frozen original.

        Args:
            dtype: of the copies; None for the parameters' own.
        """
        return {name: parameter.detach().to(dtype=dtype, copy=True) for name, parameter in parameters.items()}

    @torch.no_grad()
    def cast_frozen(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Cast to bf16 what is not among `parameters`, norm layers apart, since autocast computes with nothing more; and the text encoders."""
        for name, frozen in self.scope("full").items():
            if name not in parameters:
                frozen.data = frozen.data.bfloat16()
        for encoder in self.texts:
            encoder.to(torch.bfloat16)

    @contextlib.contextmanager
    def whole_graph(self) -> Iterator[None]:
        """Within it no forward pass is checkpointed, so that hooks see every activation's gradient."""
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
        """Conditions of prompts, truncated and padded to the text encoders' lengths: (B, tokens, width) float32."""
        return self.family.condition(self.family.ids(prompts))

    @torch.no_grad()
    def unconditional(self, count: int) -> Tensor:
        """What guidance leads away from: (count, tokens, width) float32."""
        return self.family.unconditional(count)

    @torch.no_grad()
    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of pictures (B, 3, h, w) in [-1, 1]: (B, c, h/f, w/f) twice."""
        posterior = self.pipeline.vae.encode(pictures.to(self.device, self.pipeline.vae.dtype)).latent_dist
        shift, scale = self._shift_and_scale()
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.pipeline.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor

    @property
    def picture_size(self) -> int:
        """Side of the pictures that the module was made for, in pixels."""
        return self.family.picture_size

    @property
    def small(self) -> bool:
        """Whether pictures are so small that many fit into one pass."""
        return self.picture_size <= 64

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of such a picture."""
        return self.family.latent_shape

    # ------------------------------------------------------------ noise

    @property
    def timesteps(self) -> int:
        """How many there are."""
        return self.process.timesteps

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t: (B, c, h, w)."""
        return self.process.noised(latents, noise, t)

    def predict(
        self, noisy: Tensor, t: Tensor, condition: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The module's output, see `target`: (B, c, h, w) float32.

        Args:
            weights: parameters by name that are swapped in for the module's own, a `teacher`'s; not with a backward pass.
        """
        if not len(noisy):  # which diffusers' attention cannot reshape
            return noisy.float()
        self.evaluations += len(noisy)
        with self.autocast(), swapped_weights(self.parameters, weights or {}):
            return self.family.predict(noisy.to(self.dtype), t, condition.to(self.dtype), self.process).float()

    def autocast(self):
        """Mixed precision around a forward pass, if asked for."""
        return torch.autocast(self.device.type, self.precision) if self.precision else contextlib.nullcontext()

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the module was trained to output, noise or a velocity: (B, c, h, w)."""
        return self.process.target(latents, noise, t)

    def loss(self, latents: Tensor, condition: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Denoising loss per sample, mean over channels and space: (B,)."""
        predicted = self.predict(self.noised(latents, noise, t), t, condition)
        return (predicted - self.target(latents, noise, t)).square().mean((1, 2, 3))

    @torch.no_grad()
    def half_finished(
        self, conditions: Tensor, noise: Tensor, *, steps: int, stop: int, guidance: float
    ) -> tuple[Tensor, Tensor]:
        """Latents of a sampling that was left after `stop` of `steps` steps, and the timestep it stands at: (B, c, h, w), (B,).

        With the module as it is now and classifier-free guidance, see `Process.descend`.
        """
        return self.process.descend(self._guided(conditions, guidance), noise, steps=steps, stop=stop)

    def _guided(self, conditions: Tensor, guidance: float) -> Predict:
        """What guidance in two passes predicts."""
        both = torch.cat([self.unconditional(1).expand_as(conditions), conditions])

        def guided(noisy: Tensor, t: Tensor) -> Tensor:
            without, under = self.predict(torch.cat([noisy, noisy]), torch.cat([t, t]), both).chunk(2)
            return without + guidance * (under - without)

        return guided

    @torch.no_grad()
    def complete(
        self, latents: Tensor, conditions: Tensor, seeds: Sequence[int], *, strength: float, steps: int, guidance: float,
        hidden: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Latents that are noised and then sampled to the end: (B, c, h, w) float32.

        By DDIM or Euler over the timesteps of a whole sampling, see `Process.descend`. Every row's noise depends on its seed
        alone. A family whose guidance is an input is given its usual one.

        Args:
            strength: in [0, 1]; the step begun at is the one whose timestep is nearest to this share of all. 0: the latents as
                they are.
            hidden: (B, 1, h, w) bool, the part that is drawn anew, from noise alone; the rest is put back as it is known, noised,
                before each step, and ends as it was (Lugmayr et al. 2022, RePaint, eq. 8, without resampling).
        """
        if not strength:
            return latents.to(self.device)
        times = self.process.times(steps)
        first = int((times - strength * self.timesteps).abs().argmin())
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=own) for own in generators]).to(self.device)
        noisy = self.noised(latents.to(self.device), noise, times[first].expand(len(noise)))
        guided = self.family.two_passes and guidance > 1  # as pipelines have it
        predict = self._guided(conditions, guidance) if guided else partial(self.predict, condition=conditions)
        if hidden is None:
            return self.process.descend(predict, noisy, steps=steps, start=first, stop=steps)[0]
        known, hidden = latents.to(self.device), hidden.to(self.device)

        def knowing(noisy: Tensor, t: Tensor) -> Tensor:
            return predict(torch.where(hidden, noisy, self.noised(known, noise, t)), t)

        drawn, _ = self.process.descend(
            knowing, torch.where(hidden, noise, noisy), steps=steps, start=first, stop=steps
        )
        return torch.where(hidden, drawn, known)

    # ------------------------------------------------------------ pictures out

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance: float,
        batch_size: int = 32,
        scheduler: str = "",
        group: ProcessGroup = SINGLE_PROCESS,
        tick: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """Sampled latents of prompts, at the model's own size, scaled: (B, c, h, w). See `sample`, which draws each batch.

        Args:
            scheduler: see `Changes`.
            group: of processes, which draw a batch each in turn; all return all pictures, the same whatever the group's size.
            tick: called with the number of pictures after each batch.
        """
        batches, starts = [], range(0, len(prompts), batch_size)
        for first in range(0, len(starts), group.count):
            own: Tensor | None = None
            if first + group.index < len(starts):
                at = starts[first + group.index]
                conditions = self.encode(prompts[at : at + batch_size])
                own = self.sample(
                    conditions, seeds[at : at + batch_size], steps=steps, guidance=guidance, changes=Changes(scheduler)
                )
            for owner, at in enumerate(starts[first : first + group.count]):
                count = len(seeds[at : at + batch_size])
                mine = own if own is not None and owner == group.index else None
                if mine is None:
                    mine = torch.empty(count, *self.latent_shape, device=self.device)
                group.broadcast([mine], owner)
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
        changes: Changes = UNCHANGED,
    ) -> Tensor:
        """Sampled latents, scaled, with the pipeline's own scheduler unless it is changed: (B, c, h, w) float32.

        Every row starts from its own CPU generator, so its noise depends on its seed alone.

        Args:
            conditions: (B, tokens, width), from `encode` or from anywhere else.
            size: (height, width) in pixels; the model's own when None.
        """
        height, width = size or (self.picture_size, self.picture_size)
        generators, more = [torch.Generator().manual_seed(seed) for seed in seeds], dict[str, Any]()
        if changes.eta:
            more["eta"] = changes.eta
        if changes.noise_scale != 1:
            more["latents"] = changes.noise_scale * self._noise(generators, (height, width))
        away = self.encode([changes.negative] * len(seeds)) if changes.negative else self.unconditional(len(seeds))
        with self._counted(), self.autocast(), scheduled(self.family, changes.scheduler):
            return self.family.sample(
                conditions, away, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width,
                generator=generators, **more,
            ).float()  # fmt: skip

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Within it the evaluations count that a pipeline makes."""

        def count(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            self.evaluations += len(given[0] if given else named["hidden_states"])

        handle = self.module.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _noise(self, generators: Sequence[torch.Generator], size: tuple[int, int]) -> Tensor:
        """Noise as pipelines draw it, a row for each generator; `size`: of the pictures in pixels."""
        channels, side, _ = self.latent_shape
        shape = (channels, *(pixels * side // self.picture_size for pixels in size))
        return torch.stack([torch.randn(shape, generator=own, dtype=self.dtype) for own in generators]).to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of scaled latents: (B, 3, h, w) float32 in [-1, 1] on the CPU."""
        vae, (shift, scale) = self.pipeline.vae, self._shift_and_scale()
        return vae.decode(latents.to(vae.dtype) / scale + shift).sample.float().clamp(-1, 1).cpu()
