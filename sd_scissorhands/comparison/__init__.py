"""Comparing recipes: every one on the same task, measured alike."""
