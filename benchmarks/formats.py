"""Size, time and memory of every output format at Stable Diffusion 1.4's size: `python benchmarks/formats.py`.

Random weights stand for the model; of its UNet .1 % or .5 % differ from the base, wherever they lie. The table goes into
docs/benchmarks.md, its rows into docs/benchmarks.json. At full size it takes 20 GiB of disk under --scratch, all of it freed
again, and 4 GiB of memory, 10 GiB with the pages of the files that are read; `--divisor 8` and a `--document` are for trying.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import rows
import sd14
import torch
from rows import MIB, Row, markdown, probe, publish
from safetensors.torch import load_file, save_file

from sd_scissorhands import export
from sd_scissorhands.models.pipeline_directory import PipelineDirectory
from sd_scissorhands.quiet import quietly

SHARES = (0.001, 0.005)
UNET = Path("unet/diffusion_pytorch_model.safetensors")
FORMATS = (
    ("diffusers", "float32"), ("diffusers", "float16"), ("single-file", "float32"), ("single-file", "float16"),
    ("unet-only", "float16"),
)  # fmt: skip


def changed_run(base: Path, folder: Path, share: float) -> Path:
    """A finished run whose UNet differs from the base's in a share of the weights, drawn at random."""
    shutil.copytree(base, folder / "model")
    tensors, generator = load_file(base / UNET), torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        count = round(share * tensor.numel())
        tensor.view(-1)[torch.randint(tensor.numel(), (count,), generator=generator)] += 0.01
    save_file(tensors, folder / "model" / UNET, {"format": "pt"})
    del tensors
    hashes = [PipelineDirectory(where).denoiser.sha256() for where in (base, folder / "model")]
    manifest = {
        "settings": {"concepts": ["nothing"], "model": str(base)}, "source": {"model": str(base), "weights_sha256": hashes[0]},
        "stages": {"model": {"file": "model"}},
        "result": {"concepts": ["nothing"], "recipe": "none", "seed": 0, "weights_sha256": hashes[1]},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def measured(name: str, run: Path, to: str, dtype: str | None, weights: int) -> Row:
    """One export, written, read back and removed."""
    output = run.parent / ("out" if to == "diffusers" else "out.safetensors")
    before, began = probe(), time.process_time()
    turn = rows.turn(lambda: export(run, to, output=output, dtype=dtype))
    cpu = time.process_time() - began
    files = [output] if output.is_file() else [file for file in output.rglob("*") if file.is_file()]
    bytes_ = sum(file.stat().st_size for file in files)
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    row = rows.row(f"formats: {name}", [turn], [], [before], weights=weights)
    return row | {"file_bytes": bytes_, "cpu": round(cpu, 2)}


def line(one: Row) -> list[str]:
    """A row's cells."""
    size, extra = (f"{one['file_bytes'] / MIB:,.1f}", f"{one['extra_bytes'] / MIB:,.0f}")
    return [
        rows.short(one),
        size,
        f"{one['cpu']:.1f}",
        f"{one['ours']:.1f}",
        extra,
        f"{one['rounds']['probe_ms'][0]:.0f}",
    ]


def tabulate(document: Path) -> str:
    """Write the table of the rows in the JSON list."""
    found = [one for one in rows.record([], document) if one["table"] == "formats"]
    header = "format; MiB on disk; CPU, s; wall clock, s; memory beyond the start, MiB; speed probe, ms"
    note = f"One round each, {found[0]['weights']:,} weights in the UNet, on one core with other work beside it. {found[0]['machine']}"
    text = f"{markdown(header, [line(one) for one in found])}\n\n{note}"
    publish("formats", text, document)
    return text


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--divisor", type=int, default=1, help="of the widths, for trying")
    parser.add_argument("--document", type=Path, default=rows.DOCUMENT, help="with the table's marks")
    parser.add_argument("--scratch", type=Path, help="a directory with 20 GiB free; the system's own by default")
    given = parser.parse_args()
    with quietly(threads=1), tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        base = Path(scratch) / "base"
        sd14.save_pipeline(base, given.divisor)
        unet = PipelineDirectory(base).denoiser
        weights = sum(torch.Size(unet.shape(name)).numel() for name in unet.keys)
        for share in SHARES:
            run = changed_run(base, Path(scratch) / f"run-{share}", share)
            exports = [(f"{to}, {dtype}", to, dtype) for to, dtype in FORMATS] if share == SHARES[0] else []
            for name, to, dtype in [*exports, (f"delta of {share:.1%}", "delta", None)]:
                rows.record([measured(name, run, to, dtype, weights)], given.document)
            shutil.rmtree(run)
    print(tabulate(given.document))


if __name__ == "__main__":
    main()
