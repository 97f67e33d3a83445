"""Stable Diffusion 1.4's real UNet with random weights through score, selection, edit and two repair steps on the CPU.

Time and memory do not depend on the weights' values. Peak memory is the process's own high-water mark, reset before
each stage. `python benchmarks/full_size.py --scope attn` prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.task import ErasureTask
from sd_scissorhands.settings import EraseSettings
from sd_scissorhands.unlearn.edits.reinitialise import reinitialise
from sd_scissorhands.unlearn.methods import Options, score
from sd_scissorhands.unlearn.project import RULES
from sd_scissorhands.unlearn.repair import Repair
from sd_scissorhands.unlearn.selection import select_top

SD14 = dict(
    sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32,
)  # fmt: skip


def build() -> Denoiser:
    """The UNet of the published configuration in a bare pipeline."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    unet = UNet2DConditionModel(**SD14).requires_grad_(False).eval()
    return Denoiser(SimpleNamespace(unet=unet, scheduler=scheduler))


def peak_gib() -> float:
    """The process's high-water mark since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


@contextmanager
def stage(name: str, stages: list[dict]):
    """Time a stage and note its peak memory."""
    Path("/proc/self/clear_refs").write_text("5")
    began = time.monotonic()
    yield
    stages.append({"stage": name, "seconds": round(time.monotonic() - began, 2), "peak_gib": round(peak_gib(), 2)})
    print(stages[-1], file=sys.stderr, flush=True)


def main() -> None:
    """Run the stages and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scope", default="attn")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--draws", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    stages: list[dict] = []
    with stage("build", stages):
        denoiser = build()
    settings = EraseSettings(scope=asked.scope, batch_size=asked.batch_size)
    data = {
        "forget_latents": torch.randn(4, 4, 64, 64), "anchor_latents": torch.randn(4, 4, 64, 64), "retain_latents": torch.randn(4, 4, 64, 64),
        "forget_condition": torch.randn(4, 77, 768), "anchor_condition": torch.randn(4, 77, 768),
        "retain_condition": torch.randn(4, 77, 768), "empty_condition": torch.randn(77, 768),
    }  # fmt: skip
    task, parameters = ErasureTask(denoiser, data, settings), denoiser.scope(asked.scope)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with stage(f"scores ({asked.draws} forget and {asked.draws} retain draws)", stages):
        scores = score(task, parameters, "contrast", Options(draws=asked.draws))
    with stage("selection", stages):
        selection = select_top(scores, settings.top_k)
    del scores
    with stage("teacher", stages):
        task.teacher = denoiser.teacher()
    with stage("edit", stages):
        reinitialise(parameters, selection, "layer", 0)
    with stage("repair (2 steps, projected)", stages):
        Repair(task, parameters, 2, 1e-5, settings.forget_weight, RULES[settings.projection]).run()
    weights, scope = (sum(p.numel() for p in some) for some in (denoiser.module.parameters(), parameters.values()))
    sizes = {"weights": weights, "scope_size": scope, "trimmed": len(selection)}
    print(json.dumps({"scope": asked.scope, **sizes, "stages": stages}))


if __name__ == "__main__":
    main()
