"""CLIP files as every release of transformers reads them: release 5 writes tensor names and tokenizers that 4 does not know."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

BESIDE = ("text_projection.", "logit_scale")  # the tensors of a CLIP that stand outside of its `text_model`


def write_classic_tokenizer(folder: Path) -> None:
    """Write vocab.json and merges.txt beside a byte-pair tokenizer.json, where they are missing."""
    whole = folder / "tokenizer.json"
    model = json.loads(whole.read_text(encoding="utf-8")).get("model", {}) if whole.exists() else {}
    if model.get("type") != "BPE" or (folder / "vocab.json").exists():
        return
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def write_classic_names(file: Path) -> None:
    """Give the tensors of a CLIP text encoder's file the names that begin with `text_model.`, as published ones have them."""
    tensors = load_file(file)
    if not any(name.startswith("text_model.") for name in tensors):
        renamed = {name if name.startswith(BESIDE) else f"text_model.{name}": one for name, one in tensors.items()}
        new = file.with_name(f".{file.name}.new")  # releases of safetensors before .5 write into what is still read
        save_file(renamed, new, {"format": "pt"})
        new.replace(file)
