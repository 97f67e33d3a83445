"""Weights as files: safetensors tensor by tensor, and where other programs keep each."""
