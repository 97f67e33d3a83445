"""The embedded model: a real, very small StableDiffusionPipeline, the world it draws, and the judge of that world."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "weights"  # a diffusers pipeline directory, fp16 safetensors
JUDGE_FILE = MODEL_DIR / "judge.safetensors"
